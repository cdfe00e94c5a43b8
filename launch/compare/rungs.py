"""What ladders, ablations, grids and climbs are made of: changes, and rows that say what came of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..schema import Recipe
from .judge import Kind
from .results import ArmResult
from .segment import Measured

FAILED = "failed"
REFUSED = "refused"
DIFFERENT = "not the same training"
NOT_TRIED = "not tried"
_BILLION = 1e9


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A change of a recipe that has a name."""

    name: str
    set: tuple[str, ...]
    """`a.b=value` each."""


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """How many times faster, with its interval."""

    times: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """Half the interval of the logarithm."""
        return math.log(self.high / self.low) / 2

    def and_then(self, other: "Multiplier") -> "Multiplier":
        """One after the other. The errors are independent, since the segments are, so that their squares add up."""
        return _around(self.times * other.times, math.hypot(self.reach, other.reach))

    def over(self, other: "Multiplier") -> "Multiplier":
        """How much larger it is than another one that was measured apart."""
        return _around(self.times / other.times, math.hypot(self.reach, other.reach))

    @property
    def differs_from_one(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        return f"{self.times:.3f}x [{self.low:.3f}, {self.high:.3f}]"


def _around(times: float, reach: float) -> Multiplier:
    return Multiplier(times=times, low=times * math.exp(-reach), high=times * math.exp(reach))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One recipe as it was measured; None is not known."""

    step_s: float
    p95_s: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    memory_gib: float | None = None
    compile_s: float | None = None
    run_s: float | None = None
    """Of all steps of the recipe."""
    cost_per_run: float | None = None
    """The same in money, with a price of a device hour."""

    @staticmethod
    def of(arm: ArmResult, recipe: Recipe) -> "Point | None":
        """What is known of an arm; None if none of its segments was measured."""
        if arm.step_s is None:
            return None
        num_tokens = recipe.run.num_steps * arm.step_s * (arm.tokens_per_s or 0.0)
        cost = arm.cost_per_billion_tokens
        return Point(
            step_s=arm.step_s,
            p95_s=arm.p95_s,
            tokens_per_s=arm.tokens_per_s,
            mfu=arm.mfu,
            memory_gib=arm.memory_gib,
            compile_s=arm.first_compile_s,
            run_s=arm.step_s * recipe.run.num_steps,
            cost_per_run=None if cost is None else cost * num_tokens / _BILLION,
        )

    @staticmethod
    def of_segment(found: Measured, recipe: Recipe) -> "Point | None":
        """What one segment tells; None if it failed."""
        if found.segment is None or found.times is None:
            return None
        step_s = found.segment.median_s
        return Point(
            step_s=step_s,
            p95_s=found.segment.p95_s,
            tokens_per_s=found.times.tokens_per_step / step_s,
            mfu=found.times.mfu(step_s),
            memory_gib=found.times.memory_gib,
            compile_s=found.compile_s,
            run_s=step_s * recipe.run.num_steps,
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One change that was tried, and what came of it; `docs/compare.md` has the keys."""

    index: int
    name: str
    set: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    verdict: str
    """A `Kind`, or one of the words above."""
    kept: bool = False
    reason: str
    multiplier: Multiplier | None = None
    """Against what stood before; only of what passed the guard."""
    ratio: Mapping[str, float] | None = None
    """The same as it was measured: times of a step, below 1 is faster."""
    cumulative: Multiplier | None = None
    parity: Mapping[str, Any] | None = None
    point: Point | None = None
    why: str | None = None
    num_pairs: int = 0
    seconds: float = 0.0
    folder: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As `results.json` holds it."""
        return asdict(self)


def of_json(told: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row, or of what has the keys of one, as its class takes them."""
    values: dict[str, Any] = dict(told)
    for key in ("multiplier", "cumulative", "when_added", "interaction"):
        if values.get(key):
            values[key] = Multiplier(**values[key])
    for key in ("set", "changes", "evidence"):
        if key in values:
            values[key] = tuple(values[key])
    if values.get("point"):
        values["point"] = Point(**values["point"])
    return values


def finding_of(arm: ArmResult, recipe: Recipe, *, guarded: bool) -> dict[str, Any]:
    """The values of a row that follow from the result of an arm.

    guarded: whether it must have passed the guard in order to be kept.
    """
    verdict = arm.verdict
    ratio: dict[str, float] | None = None
    if verdict and verdict.ratio is not None and verdict.low is not None and verdict.high is not None:
        ratio = {"ratio": verdict.ratio, "low": verdict.low, "high": verdict.high}
    said, reason = _said(arm)
    faster = verdict is not None and verdict.kind is Kind.FASTER and not arm.failure
    return {
        "verdict": said,
        "kept": faster and (arm.may_claim or not guarded),
        "reason": reason,
        "multiplier": inverted(ratio) if ratio and arm.may_claim and not arm.failure else None,
        "ratio": ratio,
        "parity": _parity(arm),
        "point": Point.of(arm, recipe),
        "why": arm.why.sentence if arm.why else None,
        "num_pairs": verdict.num_pairs if verdict else 0,
        "changes": arm.changes,
    }


def inverted(ratio: Mapping[str, float]) -> Multiplier:
    """A ratio of times as times faster."""
    return Multiplier(times=1 / ratio["ratio"], low=1 / ratio["high"], high=1 / ratio["low"])


def _parity(arm: ArmResult) -> dict[str, Any] | None:
    if arm.parity is None:
        return None
    return {
        "tier": str(arm.parity.tier),
        "passed": arm.parity.passed,
        "checked": arm.parity.checked,
        "sentence": arm.parity.sentence,
    }


def _said(arm: ArmResult) -> tuple[str, str]:
    """The verdict in a word, and its reason in a sentence that claims no more than was shown."""
    from .text import sentence

    if arm.failure:
        return FAILED, arm.failure
    if arm.parity is not None and arm.parity.checked and not arm.parity.passed:
        return DIFFERENT, arm.parity.sentence
    if arm.parity is not None and not arm.parity.checked:
        return str(arm.verdict.kind) if arm.verdict else NOT_TRIED, f"{sentence(arm)} ({arm.parity.sentence})"
    return (str(arm.verdict.kind) if arm.verdict else NOT_TRIED), sentence(arm)


def product(multipliers: Sequence[Multiplier | None]) -> Multiplier | None:
    """All of them one after the other; None if one may not be claimed."""
    known = [each for each in multipliers if each is not None]
    if len(known) < len(multipliers):
        return None
    found = Multiplier(times=1.0, low=1.0, high=1.0)
    for each in known:
        found = found.and_then(each)
    return found
