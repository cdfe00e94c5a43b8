"""Where a pipeline is cut: so that its most expensive stage is as cheap as can be."""

import math
from collections.abc import Sequence
from itertools import pairwise

from ..facts import Cuts


def blocks_of_stages(starts: Sequence[int], num_blocks: int) -> list[range]:
    """The blocks of each stage; `starts` are the first blocks of all stages but the first."""
    edges = [0, *starts, num_blocks]
    return [range(left, right) for left, right in pairwise(edges)]


def stage_costs(cuts: Cuts, starts: Sequence[int]) -> list[float]:
    """Forward FLOPs a token of each stage; the first has what lies before the blocks, the last what lies after."""
    costs = [sum(cuts.block_costs[i] for i in blocks) for blocks in blocks_of_stages(starts, len(cuts.block_costs))]
    costs[0] += cuts.before_cost
    costs[-1] += cuts.after_cost
    return costs


def balanced_cuts(cuts: Cuts, num_stages: int) -> tuple[int, ...]:
    """First block of each stage after the first: no other cut has a cheaper most expensive stage.

    Among those that are equally good so far, the one whose stages differ least (least sum of squares): a heavy output
    projection may decide the maximum, and the other stages are to be even all the same. Every stage has a block.
    Backward costs twice the forward everywhere, so forward costs alone decide.
    """
    ceiling = _best(cuts, num_stages, math.inf, squares=False)[0]
    return _best(cuts, num_stages, ceiling * (1 + 1e-12), squares=True)[1]


def _best(cuts: Cuts, num_stages: int, ceiling: float, *, squares: bool) -> tuple[float, tuple[int, ...]]:
    """Smallest maximum of the stages' costs, or smallest sum of squares below a ceiling, and the cuts that give it."""
    num_blocks = len(cuts.block_costs)
    sums = [0.0]
    for cost in cuts.block_costs:
        sums.append(sums[-1] + cost)
    # best[end]: value and cuts when the first `stage + 1` stages hold the blocks before `end`.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for stage in range(num_stages):
        is_last = stage == num_stages - 1
        extra = (cuts.before_cost if stage == 0 else 0.0) + (cuts.after_cost if is_last else 0.0)
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for end in [num_blocks] if is_last else range(stage + 1, num_blocks - (num_stages - stage - 1) + 1):
            for start, (value, starts) in best.items():
                cost = sums[end] - sums[start] + extra
                if start >= end or cost > ceiling:
                    continue
                total = value + cost**2 if squares else max(value, cost)
                if end not in found or total < found[end][0]:
                    found[end] = (total, (*starts, start) if stage else ())
        best = found
    return best[num_blocks]
