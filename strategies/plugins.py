"""Strategies of third parties, found through the entry-point group `stepladder.strategies`.

An entry point's name is its recipe key, its value a strategy class with `after: ClassVar[str]`: the name of the
strategy behind which it is applied. Installing such a package is the consent to run its code.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, make_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from . import Strategies

GROUP = "stepladder.strategies"


class PluginError(Exception):
    """An installed strategy cannot be used; the text is one sentence."""


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
        kind = point.load()
        after = getattr(kind, "after", None)
        if not is_dataclass(kind):
            raise PluginError(f"strategy {point.name} of {point.value}: not a dataclass; decorate it (frozen=True)")
        if point.name in names:
            raise PluginError(f"strategy {point.name} of {point.value}: the name is taken; rename its entry point")
        if after not in names:
            raise PluginError(
                f"strategy {point.name} of {point.value}: after = {after!r} names no strategy; use one of {names}"
            )
        order.insert(names.index(after) + 1, (point.name, cast(Any, kind) | None))
    return make_dataclass("Strategies", [(name, kind, None) for name, kind in order], frozen=True, kw_only=True)
