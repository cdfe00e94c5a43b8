"""Microbatches of another size at the same tokens per step: fewer of them when they are larger."""

from collections.abc import Sequence

from ..plan import Plan
from .arms import split_changes

MICROBATCH = "batch.microbatch_size"
_ACCUMULATION = "strategies.accumulation"


def key_of(change: str) -> str:
    """The key of `a.b=value`."""
    return change.partition("=")[0].strip()


def completed(changes: Sequence[str], plan: Plan) -> tuple[str, ...]:
    """The changes, with the number of microbatches that a new microbatch size needs, unless they say it themselves.

    As they are if no whole number of them gives the tokens of the plan.
    """
    keys = [key_of(change) for change in changes]
    if MICROBATCH not in keys or any(key == _ACCUMULATION or key.startswith(f"{_ACCUMULATION}.") for key in keys):
        return tuple(changes)
    size = changes[keys.index(MICROBATCH)].partition("=")[2].strip()
    sequences = plan.recipe.batch.microbatch_size * plan.recipe.num_microbatches
    if not size.isdecimal() or int(size) < 1 or sequences % int(size):
        return tuple(changes)
    return (*changes, accumulate(sequences // int(size)))


def accumulate(num_microbatches: int) -> str:
    """The change that gives so many microbatches; one is no accumulation."""
    return f"{_ACCUMULATION}=false" if num_microbatches == 1 else f"{_ACCUMULATION}.num_microbatches={num_microbatches}"


def resized(plan: Plan, size: int) -> tuple[str, ...] | None:
    """The changes that give microbatches of this size; None if the sequences of a step cannot be cut like that."""
    found = completed((f"{MICROBATCH}={size}",), plan)
    return found if len(found) > 1 else None


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """`a.b=1,2,4`: a key and its values. Raises: ValueError."""
    key, equals, rest = text.partition("=")
    values = tuple(split_changes(rest))
    if not equals or not key.strip() or not values:
        raise ValueError("not of the form a.b=1,2")
    return key.strip(), values
