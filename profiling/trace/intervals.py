"""Sets of half-open intervals [start, end) of whole nanoseconds: union, intersection, difference, length.

A set is a pair of int64 arrays, sorted, disjoint and not touching. Everything is a sort and a few passes of numpy.
"""

from typing import NamedTuple

import numpy as np


class Intervals(NamedTuple):
    """A set of times."""

    start: np.ndarray
    """[N] int64, increasing."""
    end: np.ndarray
    """[N] int64; each above its start and below the next start."""

    @property
    def length(self) -> int:
        """How much time is in it."""
        return int((self.end - self.start).sum())


NOTHING = Intervals(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def union(start: np.ndarray, dur: np.ndarray) -> Intervals:
    """The times at which at least one of some events runs; in any order, lengths of 0 or less count as nothing."""
    real = dur > 0
    if not real.all():
        start, dur = start[real], dur[real]
    if not len(start):
        return NOTHING
    if (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")
        start, dur = start[order], dur[order]
    reach = np.maximum.accumulate(start + dur)
    first = np.concatenate([[True], start[1:] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return Intervals(start[first], reach[last])


def join(*sets: Intervals) -> Intervals:
    """Times in any of the sets."""
    start = np.concatenate([each.start for each in sets])
    end = np.concatenate([each.end for each in sets])
    return union(start, end - start)


def common(a: Intervals, b: Intervals) -> Intervals:
    """Times in both sets."""
    if not len(a.start) or not len(b.start):
        return NOTHING
    at = np.concatenate([a.start, b.start, a.end, b.end])
    change = np.concatenate([np.ones(len(a.start) + len(b.start)), -np.ones(len(a.end) + len(b.end))]).astype(np.int8)
    order = np.lexsort((change, at))  # ends before starts, so that touching is not meeting
    at, depth = at[order], np.cumsum(change[order], dtype=np.int64)
    inside = np.flatnonzero(depth[:-1] == 2)
    return union(at[inside], at[inside + 1] - at[inside])


def without(a: Intervals, b: Intervals) -> Intervals:
    """Times in `a` and not in `b`."""
    if not len(a.start) or not len(b.start):
        return a
    low, high = min(a.start[0], b.start[0]) - 1, max(a.end[-1], b.end[-1]) + 1
    gaps = Intervals(np.concatenate([[low], b.end]), np.concatenate([b.start, [high]]))
    return common(a, gaps)


def measure(events: Intervals, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How much of the set lies in each window [start, end), which may overlap; int64."""
    return _before(events, end) - _before(events, np.minimum(start, end))


def _before(events: Intervals, at: np.ndarray) -> np.ndarray:
    """Length of the part of the set that lies before each time."""
    if not len(events.start):
        return np.zeros(len(at), dtype=np.int64)
    done = np.concatenate([[0], np.cumsum(events.end - events.start)])
    index = np.searchsorted(events.start, at, side="right")
    over = np.where(index > 0, np.maximum(events.end[np.maximum(index - 1, 0)] - at, 0), 0)
    return done[index] - over
