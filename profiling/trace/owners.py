"""Who owns each instant when events overlap: exactly one of those that run, by a rank; the sums are then exact.

The times at which any event starts or ends cut the axis into pieces. An event covers a run of pieces, which is the
union of two runs of 2^k pieces each; so it is enough to write it twice at level k and to hand the lowest number down
level by level. O(n log n) in a few passes of numpy, whatever the events do: nest, overlap, or both.
"""

from typing import NamedTuple

import numpy as np


class Owners(NamedTuple):
    """A function of time that changes in steps."""

    at: np.ndarray
    """[N] int64, increasing: when the owner changes, or an event of no matter starts or ends."""
    owner: np.ndarray
    """[N] int64: the place of the event that owns the time from there to the next; -1 for nobody."""

    def when(self, times: np.ndarray) -> np.ndarray:
        """Who owns each of these times; -1 for nobody."""
        if not len(self.at):
            return np.full(len(times), -1, dtype=np.int64)
        place = np.searchsorted(self.at, times, side="right") - 1
        return np.where(place >= 0, self.owner[np.maximum(place, 0)], -1)


def first_of(start: np.ndarray, end: np.ndarray) -> Owners:
    """Of the events that run, the first in the order of the arrays owns the time; those without a length own none."""
    real = np.flatnonzero(end > start)
    if not len(real):
        return Owners(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    start, end = start[real], end[real]
    at = np.sort(np.concatenate([start, end]), kind="stable")  # which is quick, as most of it is in order
    at = at[np.concatenate([[True], at[1:] > at[:-1]])]
    low, high = np.searchsorted(at, start), np.searchsorted(at, end)
    level = np.floor(np.log2(high - low)).astype(np.int64)
    level -= (1 << level) > high - low  # the logarithm of a large number may be rounded up
    backwards = np.argsort(level[::-1].astype(np.uint8), kind="stable")
    order = len(real) - 1 - backwards  # by level; of those that write to one place, the first in rank writes last
    edges = np.searchsorted(level[order], np.arange(int(level.max()) + 2))
    best = np.full(len(at), len(real), dtype=np.int32)
    for k in range(int(level.max()), -1, -1):
        mine = order[edges[k] : edges[k + 1]]
        for place in (low[mine], high[mine] - (1 << k)):
            best[place] = np.minimum(best[place], mine)
        if k:
            half = 1 << (k - 1)
            best[half:] = np.minimum(best[half:], best[:-half])
    return Owners(at, np.append(real, -1)[best])
