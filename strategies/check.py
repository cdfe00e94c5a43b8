"""Every problem of a set of strategies, found before a process group exists and without torch."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from . import active
from .base import OWNER_OF_AXIS, Owns, Run
from .mesh import Axis


def owned_axes(strategies: Any) -> list[Axis]:
    """Mesh axes that an active strategy takes charge of, in mesh order."""
    owned = frozenset[Owns]().union(*(strategy.owns for _, strategy in active(strategies)))
    return [axis for axis in Axis if OWNER_OF_AXIS[axis] in owned]


def problems(strategies: Any, run: Run) -> Iterator[str]:
    """Conflicts of ownership, declared conflicts, and what each strategy finds by itself."""
    owners: dict[Owns, list[str]] = defaultdict(list)
    for name, strategy in active(strategies):
        for thing in sorted(strategy.owns):
            owners[thing].append(f"strategies.{name}")
    contests: dict[tuple[str, ...], list[Owns]] = defaultdict(list)
    for thing, names in owners.items():
        if len(names) > 1:
            contests[tuple(names)].append(thing)
    for names, things in contests.items():
        yield f"{' and '.join(names)}: each wants to own {' and '.join(things)}; keep one"
    if Owns.OPTIMIZER not in owners:
        yield "strategies: no active strategy owns the optimizer; add strategies.adamw = {}"
    for name, strategy in active(strategies):
        for other, reason in strategy.conflicts.items():
            if other in run.active:
                yield f"strategies.{name}: cannot work beside strategies.{other}: {reason}"
        for problem in strategy.check(run):
            yield f"strategies.{name}.{problem}" if _names_a_key(strategy, problem) else f"strategies.{name}: {problem}"


def _names_a_key(strategy: Any, problem: str) -> bool:
    """Whether a problem starts with one of the strategy's keys (then it continues the path)."""
    first = problem.split(":")[0].split(" ")[0]
    return first in getattr(strategy, "__dataclass_fields__", {})
