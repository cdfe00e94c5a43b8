"""The guard: whether an arm is the same training as the baseline, in the sense that its changes promise.

[Note: tiers]
Each difference of two recipes declares what it may change (`strategies/changes.py`); the largest says what is shown:

- nothing: a few steps of both, deterministic, give the same bits;
- the order of sums: a few steps of both at float32 differ by no more than rounding does, and at their own precision,
  if that is narrower, by no more than its rounding does;
- precision: the same at float32, where something is left to compare, and a test over several seeds that the narrower
  numbers bias neither loss nor gradients nor updates;
- the algorithm: it is another training, which no check can make the same.

Whatever fails makes the arm "not the same training"; no speed-up is worth telling then.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ...strategies.changes import Changes
from ..errors import UsageError
from ..plan import Plan, plan_here
from ..recipe import recipe_hash
from ..schema import Recipe
from ..testimony import Testimony
from .guard_bias import ALPHA, LIMITS, NUM_LOOKS, Bias, biases
from .guard_checks import Check, exact, narrow, near
from .guard_claims import Claim, at_float32, differences, precision, shallow, to_be_run
from .guard_runs import Role, RunError, Task, Train


class Tier(StrEnum):
    """What was shown, or was to be shown."""

    BITWISE = "bitwise"
    FLOAT32 = "float32 proxy"
    BIAS = "bias test"
    NONE = "none"
    """Another training by declaration."""


_TIERS = {
    Changes.NOTHING: Tier.BITWISE,
    Changes.REDUCTION_ORDER: Tier.FLOAT32,
    Changes.PRECISION: Tier.BIAS,
    Changes.LOW_PRECISION: Tier.BIAS,
    Changes.ALGORITHM: Tier.NONE,
}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is run."""

    num_steps: int = 20
    """Steps that must have the same bits, or be near at float32."""
    bias_steps: int = 100
    """Steps of each run of the bias test; the second half counts."""
    seeds: int = 4
    """Pairs of runs before the first look of the bias test; the second look has twice as many."""


@dataclass(frozen=True, kw_only=True)
class GuardResult:
    """What is known of the sameness of an arm."""

    tier: str
    """See `Tier`."""
    passed: bool
    sentence: str
    claims: tuple[Claim, ...] = ()
    """Differences of the recipes, and what each may change."""
    checks: tuple[Check, ...] = ()
    biases: tuple[Bias, ...] = ()
    checked: bool = True
    """False if a run came to no end, so that nothing is known."""

    def json(self) -> dict[str, Any]:
        """The result as JSON values; what is not finite becomes a string."""
        told = asdict(self) | {"claims": {claim.key: claim.changes.words for claim in self.claims}}
        return _finite(told)


@dataclass(frozen=True, kw_only=True)
class _Guard:
    """One check of one arm."""

    baseline: Plan
    arm: Plan
    train: Train
    effort: Effort
    claims: tuple[Claim, ...]
    refused: Callable[[Recipe], str]
    """Why a recipe cannot be run; an empty string if it can."""

    @property
    def changes(self) -> Changes:
        """The most that the arm may change."""
        return max((claim.changes for claim in self.claims), default=Changes.NOTHING)

    def result(self) -> GuardResult:
        """Run what the claims ask for."""
        tier = _TIERS[self.changes]
        if tier is Tier.NONE:
            keys = ", ".join(claim.key for claim in self.claims if claim.changes is Changes.ALGORITHM)
            return self._told(tier, passed=False, sentence=f"not the same training: {keys} may change the algorithm")
        try:
            return {Tier.BITWISE: self._bitwise, Tier.FLOAT32: self._reordered, Tier.BIAS: self._narrower}[tier]()
        except RunError as error:
            return self._told(tier, passed=False, sentence=f"not checked: {error}", checked=False)

    def _bitwise(self) -> GuardResult:
        base, arm = self._pair(self.baseline.recipe, self.arm.recipe)
        checks = tuple(exact(base, arm))
        weights = f"{len(base.final.digests)} weights after step {len(base.losses)}"
        return self._judged(Tier.BITWISE, checks, f"the same bits: {len(base.losses)} losses, {weights}")

    def _reordered(self) -> GuardResult:
        checks = self._near()
        said = f"the same mathematics: {_most_telling(checks)}"
        return self._judged(Tier.FLOAT32, checks, said)

    def _near(self) -> tuple[Check, ...]:
        """At float32, and at their own precision if they compute with narrower numbers."""
        before, after = at_float32(self.baseline.recipe), at_float32(self.arm.recipe)
        if not (self.refused(shallow(before)) or self.refused(shallow(after))):
            before, after = shallow(before), shallow(after)
        checks: list[Check] = []
        own = max(precision(plan.recipe, plan.run()) for plan in (self.baseline, self.arm))
        if problem := self.refused(before) or self.refused(after):
            checks.append(Check(what=f"runs at float32 that are refused ({problem})", found=1, allowed=0))
        elif recipe_hash(before) != recipe_hash(after):
            base, arm = self._pair(before, after)
            checks += near(base, arm, self._run(before, "baseline", backwards=True))
        if own is not Changes.NOTHING:
            base, arm = self._pair(self.baseline.recipe, self.arm.recipe)
            checks += narrow(base, arm, own)
        return tuple(checks)

    def _narrower(self) -> GuardResult:
        checks = self._near()
        if not all(check.passed for check in checks):
            return self._judged(Tier.BIAS, checks, "")
        found: tuple[Bias, ...] = ()
        for look in range(1, NUM_LOOKS + 1):
            found = tuple(self._biases(look * self.effort.seeds))
            if all(bias.shown for bias in found) or any(bias.refuted for bias in found):
                break
        passed = all(bias.shown for bias in found)
        loss = next(bias for bias in found if bias.what == "loss")
        steps = f"over steps {self.effort.bias_steps // 2 + 1}-{self.effort.bias_steps} of {loss.num_seeds} seeds"
        failing = next((bias for bias in found if bias.refuted), None) or next((b for b in found if not b.shown), loss)
        if passed:
            chance = min(bias.passes_if_unbiased for bias in found)
            said = f"no bias: {loss.sentence} {steps}; unbiased arms pass in {100 * chance:.0f} %"
        elif failing.refuted:
            said = f"not the same training: {failing.sentence} {steps}"
        else:
            said = f"not the same training, as far as was shown: {failing.sentence} {steps}; more seeds would tell"
        return self._told(Tier.BIAS, passed=passed, sentence=said, checks=checks, biases=found)

    def _biases(self, num_seeds: int) -> Iterator[Bias]:
        """From runs that end with the schedule as the recipe has it, or where the recipe itself ends."""

        def seeded(recipe: Recipe, role: Role, seed: int) -> Testimony:
            prepared = to_be_run(recipe, num_steps=steps, seed=(recipe.run.seed + seed) % 2**32)
            return self.train(Task(recipe=prepared, num_steps=steps, role=role))

        steps = self.effort.bias_steps
        before, after = self.baseline.recipe, self.arm.recipe
        pairs = [(seeded(before, "baseline", seed), seeded(after, "arm", seed)) for seed in range(num_seeds)]
        yield from biases(pairs, LIMITS[self.changes], alpha=ALPHA / NUM_LOOKS)

    def _pair(self, before: Recipe, after: Recipe) -> tuple[Testimony, Testimony]:
        return self._run(before, "baseline"), self._run(after, "arm")

    def _run(self, recipe: Recipe, role: Role, *, backwards: bool = False) -> Testimony:
        steps = self.effort.num_steps
        prepared = to_be_run(recipe, num_steps=steps, deterministic=True)
        return self.train(Task(recipe=prepared, num_steps=steps, role=role, backwards=backwards))

    def _judged(self, tier: Tier, checks: Sequence[Check], said: str) -> GuardResult:
        failed = [check for check in checks if not check.passed]
        if failed:
            keys = ", ".join(claim.key for claim in self.claims) or "nothing"
            said = f"not the same training: {failed[0].sentence}, where {keys} may change {self.changes.words}"
        return self._told(tier, passed=not failed, sentence=said, checks=tuple(checks))

    def _told(self, tier: Tier, *, passed: bool, sentence: str, **more: Any) -> GuardResult:
        return GuardResult(tier=tier, passed=passed, sentence=sentence, claims=self.claims, **more)


def check_parity(
    baseline: Recipe,
    arm: Recipe,
    *,
    run: Train,
    effort: Effort | None = None,
    plan: Callable[[Recipe], Plan] = plan_here,
) -> GuardResult:
    """Whether an arm is the same training as the baseline: what its changes promise, shown by runs.

    `plan` makes plans of recipes, for ranks other than those that this machine would start.
    Raises: UsageError if one of the two recipes cannot be run at all.
    """
    plans = plan(baseline), plan(arm)

    def refused(recipe: Recipe) -> str:
        try:
            plan(recipe)
        except UsageError as error:
            return error.problems[0]
        return ""

    return _Guard(
        baseline=plans[0],
        arm=plans[1],
        train=run,
        effort=effort or Effort(),
        claims=tuple(differences(*plans)),
        refused=refused,
    ).result()


def _most_telling(checks: Sequence[Check]) -> str:
    """The check that came nearest to failing."""
    closest = max(
        (check for check in checks if check.allowed), key=lambda each: each.found / each.allowed, default=None
    )
    return closest.sentence if closest else "nothing is left to compare"


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
