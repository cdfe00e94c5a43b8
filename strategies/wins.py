"""What a strategy can make shorter: declared beside its keys, so that a search for speed knows what is worth a try.

Bounds, no promises: whatever becomes shorter cannot win more than the time that it takes now.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Part(StrEnum):
    """The kinds of time that a step is told apart in."""

    ATTENTION = "attention"
    MATRICES = "matrix products"
    POINTWISE = "pointwise"
    OPTIMIZER = "optimizer"
    COPIES = "copies"
    COMMUNICATION = "communication"
    IDLE = "idle"
    LAUNCH = "launch"
    OTHER = "other"


COMPUTE = frozenset({Part.ATTENTION, Part.MATRICES, Part.POINTWISE, Part.OTHER})
WAITING = frozenset({Part.IDLE, Part.LAUNCH})
EVERYTHING = frozenset(Part)


@dataclass(frozen=True, kw_only=True)
class Try:
    """Values of a key that may be faster, and where."""

    values: tuple[Any, ...]
    parts: frozenset[Part]


@dataclass(frozen=True, kw_only=True)
class Wins:
    """Which parts of a step become shorter, if it helps at all."""

    on: frozenset[Part] = frozenset()
    """When it is switched on with its defaults; none if it serves something else than speed."""
    off: frozenset[Part] = frozenset()
    """When it is switched off, since it pays with time for something else."""
    keys: Mapping[str, Try] = field(default_factory=dict[str, Try])
    """When one of its keys is changed."""


def wins_of(strategy: Any) -> Wins:
    """What a strategy, or its class, declares; nothing if it does not say."""
    return getattr(strategy, "wins", Wins())
