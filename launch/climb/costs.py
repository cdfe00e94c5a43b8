"""What it takes to try a change: its segments, and the runs of the guard that it asks for if it is faster."""

from ...strategies.changes import Changes
from ..compare.guard import Effort
from ..compare.guard_bias import NUM_LOOKS
from ..compare.guard_claims import differences
from ..compare.segment import Measured
from ..compare.sequential import MIN_PAIRS
from ..plan import Plan

_NEAR_RUNS = 5
"""Both recipes at float32, the baseline in the opposite order, and both at their own precision."""
_PROFILES = 3
"""Both arms of the comparison, and the new stack."""


def estimated_s(stack: Plan, candidate: Plan, measured: Measured, *, guarded: bool, profiled: bool) -> float:
    """Seconds from the first segment to the decision, for a change that is found out with the fewest pairs.

    measured: a segment of the stack; the candidate is thought to take as long.
    """
    found = (1 + 2 * MIN_PAIRS + (_PROFILES if profiled else 0)) * measured.seconds
    if not guarded or measured.segment is None:
        return found
    changes = max((claim.changes for claim in differences(stack, candidate)), default=Changes.NOTHING)
    return found + sum(
        num_runs * ((measured.startup_s or 0.0) + num_steps * measured.segment.median_s)
        for num_runs, num_steps in _runs(changes)
    )


def _runs(changes: Changes) -> list[tuple[int, int]]:
    """Numbers of runs of the guard, and of steps in each."""
    effort = Effort()
    if changes is Changes.NOTHING:
        return [(2, effort.num_steps)]
    near = [(_NEAR_RUNS, effort.num_steps)]
    return near if changes is Changes.REDUCTION_ORDER else [*near, (2 * NUM_LOOKS * effort.seeds, effort.bias_steps)]
