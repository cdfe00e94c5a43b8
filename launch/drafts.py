"""Looks for more problems in a recipe that has some already, so that the user sees all of them at once.

A draft has defaults where the user's values were refused. A problem that rests on such a value is not the user's, so it
is left out: it will show when the value is mended, or it will be gone.
"""

import re
from collections.abc import Callable

from .errors import RecipeError, UsageError
from .plan import Plan
from .schema import Recipe

_PATH = re.compile(r"[a-z_0-9]+(?:\.[a-z_0-9]+)+")
# What problems were computed from without naming it.
_BEHIND_RANKS = ("strategies", "mesh", "run.cpu_ranks", "run.device")
_BEHIND_BATCH = (*_BEHIND_RANKS, "batch.microbatch_size", "batch.sequence_length", "strategies.accumulation")


def with_further_problems(error: RecipeError, make_plan: Callable[[Recipe], Plan]) -> UsageError:
    """The error with every problem that planning its draft would find, and that no refused value has caused."""
    if error.draft is None:
        return error
    try:
        make_plan(error.draft)
    except UsageError as further:
        return UsageError(*error.problems, *(each for each in further.problems if not _rests_on(each, error.doubtful)))
    return error


def _rests_on(problem: str, doubtful: frozenset[str]) -> bool:
    """Whether a problem speaks of, or was computed from, a key in doubt."""
    named = _PATH.findall(problem.split(";")[0])  # what follows the semicolon is advice
    if any(key == doubt or key.startswith(f"{doubt}.") for key in named for doubt in doubtful):
        return True
    behind: tuple[str, ...] = ()
    if problem.startswith("batch.tokens_per_step"):
        behind = _BEHIND_BATCH
    elif problem.startswith(("mesh", "ranks")) or "no active strategy" in problem:
        behind = _BEHIND_RANKS
    # A table is in doubt when one of its own keys is, not when something deeper is.
    return any(doubt == key or doubt.rpartition(".")[0] == key for key in behind for doubt in doubtful)
