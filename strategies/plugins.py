"""Strategies of third parties, found through the entry-point group `stepladder.strategies`.

An entry point's name is its recipe key, its value a strategy class with `after: ClassVar[str]`: the name of the
strategy behind which it is applied. Installing such a package is the consent to run its code.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, make_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from keyword import iskeyword
from typing import Any, cast

from . import Strategies
from .errors import PluginError

GROUP = "stepladder.strategies"
_MEMBERS = ("after", "conflicts", "owns", "check", "apply")


@cache
def installed() -> type[Any]:
    """`Strategies`, with every installed third-party strategy at its declared position."""
    return extended(sorted(entry_points(group=GROUP), key=lambda point: point.name))


def extended(points: Sequence[EntryPoint]) -> type[Any]:
    """`Strategies` with the given entry points. Raises: PluginError for one that does not fit."""
    if not points:
        return Strategies
    order: list[tuple[str, Any]] = [(each.name, each.type) for each in fields(Strategies)]
    for point in points:
        names = [name for name, _ in order]
        kind = _load(point)
        if not point.name.isidentifier() or iskeyword(point.name):
            raise _error(point, "not a name that a recipe can spell; use letters, digits and underscores")
        if point.name in names:
            raise _error(point, "the name is taken; rename its entry point")
        if kind.after not in names:
            raise _error(point, f"after = {kind.after!r} names no strategy; use one of {names}")
        order.insert(names.index(kind.after) + 1, (point.name, kind | None))
    return make_dataclass("Strategies", [(name, kind, None) for name, kind in order], frozen=True, kw_only=True)


def _load(point: EntryPoint) -> Any:
    """The class behind an entry point. Raises: PluginError if it is no strategy."""
    try:
        kind = point.load()
    except Exception as error:  # importing a stranger's module can fail in any way
        raise _error(point, f"cannot be loaded ({type(error).__name__}: {error}); repair or uninstall it") from error
    if not is_dataclass(kind):
        raise _error(point, "not a dataclass; decorate it (frozen=True)")
    if not cast(Any, kind).__dataclass_params__.frozen:
        raise _error(point, "not frozen; decorate it (frozen=True)")
    if missing := [name for name in _MEMBERS if not hasattr(kind, name)]:
        raise _error(point, f"has no {', '.join(missing)}; see stepladder.strategies.base.Strategy")
    return kind


def _error(point: EntryPoint, said: str) -> PluginError:
    return PluginError(f"strategy {point.name} of {point.value}: " + " ".join(said.split()))
