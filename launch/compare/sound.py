"""Whether numbers that were read from a file can be what was written: files are edited, cut short and mixed up."""

from collections.abc import Mapping
from typing import Any

_LARGEST, _MOST = 1e300, 1 << 31


def is_number(value: Any, *, above: float = -_LARGEST) -> bool:
    """Whether it is a finite number, and larger than that."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return above < value < _LARGEST


def is_time(value: Any) -> bool:
    """Whether it can be seconds that passed; none may have."""
    return is_number(value, above=-1e-9)


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number, so large at least."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MOST


def seconds_in(told: Mapping[str, Any] | None) -> float:
    """The time that a segment's file tells; none if it is no such file."""
    found: Any = told.get("seconds") if isinstance(told, Mapping) else None
    return float(found) if is_time(found) else 0.0
