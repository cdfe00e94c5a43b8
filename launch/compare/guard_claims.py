"""What two recipes differ in, what that may change about the numbers, and the recipes that show whether it does."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ...strategies import active
from ...strategies.changes import Changes, claims, declared, defaults
from ..plan import Plan
from ..recipe import flatten, resolved
from ..schema import Recipe

_OUTSIDE_STRATEGIES: Mapping[str, Changes] = {
    "name": Changes.NOTHING,
    "loader": Changes.NOTHING,
    "evaluation": Changes.NOTHING,
    "checkpoint": Changes.NOTHING,
    "trackers": Changes.NOTHING,
    "profiler": Changes.NOTHING,
    "run.log_every": Changes.NOTHING,
    "run.gc_every": Changes.NOTHING,
    "run.deterministic": Changes.REDUCTION_ORDER,
    "run.device": Changes.REDUCTION_ORDER,
    "run.cpu_ranks": Changes.REDUCTION_ORDER,
    "run.threads_per_rank": Changes.REDUCTION_ORDER,
    "mesh": Changes.REDUCTION_ORDER,
    "batch.microbatch_size": Changes.REDUCTION_ORDER,
    "batch.tokens_per_step": Changes.NOTHING,
}
"""Tables and keys beside the strategies; what is not named changes the algorithm."""
_ENDLESS = 1 << 30
PROXY_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One difference of two recipes."""

    key: str
    changes: Changes


def differences(baseline: Plan, arm: Plan) -> list[Claim]:
    """Every difference of two recipes, and what it may change."""
    before, after = baseline.recipe, arm.recipe
    found: list[Claim] = []
    for each in fields(before.strategies):
        left, right = (getattr(recipe.strategies, each.name, None) for recipe in (before, after))
        told = claims(each.name, left, right, baseline.run(), arm.run())
        found += [Claim(key=key, changes=changes) for key, changes in told]
    old, new = (dict(flatten(_outside(recipe))) for recipe in (before, after))
    found += [Claim(key=key, changes=_of(key)) for key in {**old, **new} if old.get(key) != new.get(key)]
    if baseline.tokens_per_step != arm.tokens_per_step:
        found.append(Claim(key="tokens per step", changes=Changes.ALGORITHM))
    return found


def _outside(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in resolved(recipe).items() if key != "strategies"}


def _of(key: str) -> Changes:
    parts = key.split(".")
    paths = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_OUTSIDE_STRATEGIES[path] for path in paths if path in _OUTSIDE_STRATEGIES), Changes.ALGORITHM)


def precision(recipe: Recipe, run: Any) -> Changes:
    """The narrowest numbers that a recipe computes with: `NOTHING` if it does without 16 bits."""
    on = [claims(name, None, strategy, run, run) for name, strategy in active(recipe.strategies)]
    narrow = [changes for told in on for _, changes in told if Changes.PRECISION <= changes < Changes.ALGORITHM]
    return max(narrow, default=Changes.NOTHING)


def at_float32(recipe: Recipe) -> Recipe:
    """The recipe without all that declares to change the precision."""
    kept: dict[str, Any] = {}
    strategy: Any
    for name, strategy in active(recipe.strategies):
        may, usual = declared(strategy), defaults(type(strategy))
        off = isinstance(may.switch, Changes) and _narrows(may.switch)
        narrow = [key for key in usual if _narrows(may.rule(key))]
        kept[name] = None if off else replace(strategy, **{key: usual[key] for key in narrow})
    return replace(recipe, strategies=replace(recipe.strategies, **kept))


def shallow(recipe: Recipe) -> Recipe:
    """The recipe with few enough blocks for float32: all are alike, so a few show what rounding does."""
    decoder = recipe.model.decoder
    if decoder is None or decoder.num_layers <= PROXY_LAYERS:
        return recipe
    return replace(recipe, model=replace(recipe.model, decoder=replace(decoder, num_layers=PROXY_LAYERS)))


def _narrows(rule: Any) -> bool:
    usually = rule if isinstance(rule, Changes) else rule.usually
    return usually in (Changes.PRECISION, Changes.LOW_PRECISION)


def to_be_run(recipe: Recipe, *, num_steps: int, seed: int | None = None, deterministic: bool = False) -> Recipe:
    """The recipe with what a check needs: without evaluation, checkpoints and profiler, and long enough.

    A schedule counts on all steps of the recipe, so that the run is ended early rather than the recipe shortened.
    """
    run = replace(
        recipe.run,
        num_steps=max(recipe.run.num_steps, num_steps),
        log_every=_ENDLESS,
        seed=recipe.run.seed if seed is None else seed,
        deterministic=deterministic or recipe.run.deterministic,
    )
    return replace(recipe, name="guard", run=run, evaluation=None, checkpoint=None, profiler=None, trackers=None)
