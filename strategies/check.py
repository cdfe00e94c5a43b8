"""Every problem of a set of strategies, found before a process group exists and without torch."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from . import active
from .base import OWNER_OF_AXIS, Owns, Run
from .mesh import Axis


def owners(strategies: Any) -> dict[Owns, str]:
    """Which active strategy takes charge of what: the one that owns it, else one that serves."""
    served = {thing: name for name, each in active(strategies) for thing in getattr(each, "serves", ())}
    return served | {thing: name for name, each in active(strategies) for thing in each.owns}


def owned_axes(strategies: Any) -> list[Axis]:
    """Mesh axes that an active strategy takes charge of, in mesh order."""
    owned = owners(strategies)
    return [axis for axis in Axis if OWNER_OF_AXIS[axis] in owned]


def environment(strategies: Any, run: Run) -> dict[str, tuple[str, str]]:
    """Environment that active strategies need: name -> (value, the strategy that wants it)."""
    return {
        key: (value, name)
        for name, strategy in active(strategies)
        if (wants := getattr(strategy, "environment", None)) is not None
        for key, value in wants(run).items()
    }


def problems(strategies: Any, run: Run) -> Iterator[str]:
    """Conflicts of ownership, declared conflicts, and what each strategy finds by itself."""
    claims: dict[Owns, list[str]] = defaultdict(list)
    for name, strategy in active(strategies):
        for thing in sorted(strategy.owns):
            claims[thing].append(f"strategies.{name}")
    contests: dict[tuple[str, ...], list[Owns]] = defaultdict(list)
    for thing, names in claims.items():
        if len(names) > 1:
            contests[tuple(names)].append(thing)
    for names, things in contests.items():
        yield f"{' and '.join(names)}: each wants to own {' and '.join(things)}; keep one"
    if Owns.OPTIMIZER not in claims:
        yield "strategies: no active strategy owns the optimizer; add strategies.adamw = {}"
    yield from _axis_problems(strategies, run)
    for name, strategy in active(strategies):
        refused = [refusal.sentence() for refusal in strategy.conflicts if refusal.applies(strategy, run)]
        for problem in (*refused, *strategy.check(run)):
            yield f"strategies.{name}.{problem}" if _names_a_key(strategy, problem) else f"strategies.{name}: {problem}"


def _axis_problems(strategies: Any, run: Run) -> Iterator[str]:
    """Strategies whose axis is too short to matter, and sums of gradients that nobody takes."""
    for name, strategy in active(strategies):
        axes = [axis for axis in (Axis.PP, Axis.CP, Axis.EP, Axis.TP) if OWNER_OF_AXIS[axis] in strategy.owns]
        for axis in axes:
            if run.degrees[axis] == 1:
                yield f"strategies.{name}: has no effect with mesh.{axis} = 1; raise the degree or remove it"
    if Owns.GRADIENT_REDUCTION not in owners(strategies):
        for axis in (Axis.CP, Axis.EP):
            if run.degrees[axis] > 1:
                yield (
                    f"mesh.{axis} = {run.degrees[axis]}: no active strategy sums the gradients over this axis; "
                    f"add strategies.fsdp2 = {{}}"
                )


def _names_a_key(strategy: Any, problem: str) -> bool:
    """Whether a problem starts with one of the strategy's keys (then it continues the path)."""
    first = problem.split(":")[0].split(" ")[0]
    return first in getattr(strategy, "__dataclass_fields__", {})
