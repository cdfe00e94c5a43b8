"""What may be tried whatever the profile says: made of what the strategies declare about themselves.

A strategy says which parts of a step it can shorten (`wins`) and what it may change about the numbers (`changes`). What
may change the algorithm is never proposed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ...strategies.catalogue import strategy_class
from ...strategies.changes import Changes, Depends, Rule, declared
from ...strategies.plugins import installed
from ...strategies.wins import COMPUTE, EVERYTHING, WAITING, Part, Try, wins_of
from ..compare.arms import changes_of_table
from ..compare.equal_tokens import resized
from ..plan import Plan
from ..schema import Recipe
from .profile import Profile
from .proposal import Proposal

_OUTSIDE_STRATEGIES: Mapping[str, Try] = {
    "loader.num_workers": Try(values=(0, 2), parts=WAITING),
    "loader.pin_memory": Try(values=(True,), parts=WAITING | {Part.COPIES}),
    "loader.non_blocking": Try(values=(True,), parts=WAITING | {Part.COPIES}),
    "loader.device_prefetch": Try(values=(True,), parts=WAITING | {Part.COPIES}),
    "run.log_every": Try(values=(50,), parts=WAITING | {Part.OTHER, Part.COPIES}),
    "run.gc_every": Try(values=(100,), parts=WAITING),
    "run.deterministic": Try(values=(False,), parts=COMPUTE),
}
"""Keys beside the strategies that cost time if they are set badly, and leave the training as it is."""
_FACTORS = (4.0, 2.0, 0.5)
"""By which a microbatch may grow, or shrink where caches are what is short."""


def of_declarations(plan: Plan, profile: Profile) -> Iterator[Proposal]:
    """Strategies to be switched on or off, and keys to be changed, each alone."""
    for each in fields(installed()):
        kind = strategy_class(each.type)
        strategy: Any = getattr(plan.recipe.strategies, each.name)
        name, may, wins = f"strategies.{each.name}", declared(kind), wins_of(kind)
        if strategy is None:
            if wins.on and _stays(may.switch):
                yield _proposal({name: {}}, wins.on, profile, f"{name} is off")
            continue
        if wins.off and _stays(may.switch):
            yield _proposal({name: False}, wins.off, profile, f"{name} pays with time for something else")
        for key, attempt in wins.keys.items():
            if _stays(may.rule(key)):
                yield from _values(f"{name}.{key}", getattr(strategy, key), attempt, profile)
    for where, attempt in _OUTSIDE_STRATEGIES.items():
        table, key = where.split(".")
        yield from _values(where, getattr(getattr(plan.recipe, table), key), attempt, profile)


def of_memory(plan: Plan, profile: Profile, *, too_large: int | None, memory_gib: float | None) -> Iterator[Proposal]:
    """Microbatches of another size at the same tokens per step. too_large: a size that ran out of memory."""
    recipe: Recipe = plan.recipe
    size = recipe.batch.microbatch_size
    for factor in _FACTORS:
        wanted = int(size * factor)
        fits = too_large is None or wanted < too_large
        changes = resized(plan, wanted) if wanted >= 1 and wanted != size and fits else None
        if changes is None:
            continue
        held = "" if memory_gib is None else f" with {memory_gib:.2f} GiB"
        parts = EVERYTHING - {Part.COMMUNICATION} if factor > 1 else frozenset({Part.POINTWISE, Part.ATTENTION})
        yield Proposal(
            set=changes,
            source="memory",
            hypothesis="fewer and larger microbatches use the device better"
            if factor > 1
            else "smaller microbatches stay in the caches",
            evidence=(
                f"a step has {recipe.num_microbatches} microbatches of {size}{held}; {wanted} are as many tokens.",
                *(() if too_large is None else (f"{too_large} ran out of memory.",)),
            ),
            bound=profile.bound(frozenset(parts)),
        )


def _stays(rule: Rule) -> bool:
    """Whether a guard can show that it stays the same training."""
    return (rule.sometimes if isinstance(rule, Depends) else rule) is not Changes.ALGORITHM


def _values(where: str, value: Any, attempt: Try, profile: Profile) -> Iterator[Proposal]:
    for other in attempt.values:
        if other != value:
            said = "not set" if value is None else changes_of_table({"is": value})[0].partition("=")[2]
            yield _proposal({where: other}, attempt.parts, profile, f"{where} is {said}")


def _proposal(change: Mapping[str, Any], parts: frozenset[Part], profile: Profile, said: str) -> Proposal:
    bound = profile.bound(parts)
    words = ", ".join(part.value for part in Part if part in parts and profile.shares.get(part, 0.0) >= 0.01)
    evidence = (f"{said}; it can shorten {words}: {100 * bound:.0f} % of a step.",) if profile.shares else (f"{said}.",)
    return Proposal(
        set=changes_of_table(change),
        source="catalogue",
        hypothesis=profile.bottleneck,
        evidence=evidence,
        bound=bound,
    )
