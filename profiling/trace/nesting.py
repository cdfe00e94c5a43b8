"""Ranges that lie inside each other: which one is innermost at a moment."""

from typing import Literal

import numpy as np

NONE = -1
"""No range is open."""


def moments_of(*times: np.ndarray, first: int, last: int) -> np.ndarray:
    """All the times, moved into [first, last], once each and in order."""
    every = np.clip(np.concatenate(times), first, last)
    every.sort(kind="stable")  # these are a few sorted runs; numpy's `unique` would hash them first
    return every[np.concatenate([[True], every[1:] > every[:-1]])]


def innermost_at(start: np.ndarray, end: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Index of the range that began last among those open at each moment, or `NONE`; whole numbers.

    `start` increases; of ranges that start together the later in the list is the inner one. A range is open in
    [start, end). Ranges need not nest. `at` is in any order.
    """
    return _owner_at(start, end, at, "last")


def outermost_at(start: np.ndarray, end: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The same for the range that began first."""
    return _owner_at(start, end, at, "first")


def _owner_at(start: np.ndarray, end: np.ndarray, at: np.ndarray, which: Literal["first", "last"]) -> np.ndarray:
    """The highest (or lowest) index among the ranges around each moment.

    [Note: painting] A range covers a run of the sorted moments. A run is two runs of a power of two that overlap; each
    row of the pyramid below holds, for every run of one such length, the best range that covers it, and hands it down
    to the two halves. That is N log N whatever overlaps what, without a stack and its loop.
    """
    if not len(at) or not len(start):
        return np.full(len(at), NONE, dtype=np.int64)
    if (start[1:] >= end[:-1]).all():  # then at most one is open
        index = np.searchsorted(start, at, side="right") - 1
        return np.where(at < end[index], index, NONE)
    if 2 * len(start) < len(at):  # nothing changes but at the few borders
        cuts = moments_of(start, end, first=start.min(), last=end.max())
        return np.append(_owner_at(start, end, cuts, which), NONE)[np.searchsorted(cuts, at, side="right") - 1]
    if (at[1:] < at[:-1]).any():
        order = np.argsort(at, kind="stable")
        owner = np.empty(len(at), dtype=np.int64)
        owner[order] = _owner_at(start, end, at[order], which)
        return owner
    low = _ranks(start, at)
    covers = np.flatnonzero(end > np.append(at, np.iinfo(np.int64).max)[low])
    if not len(covers):
        return np.full(len(at), NONE, dtype=np.int64)
    first_wins = which == "first"
    if first_wins:
        covers = covers[::-1]
    mark = (len(start) - covers if first_wins else covers + 1).astype(np.int32)  # the highest wins, and 0 is nobody
    low = low[covers]
    length = np.searchsorted(at, end[covers]) - low
    row = np.frexp(length.astype(np.float64))[1] - 1
    best = np.zeros(len(at), dtype=np.int32)
    for level in range(int(row.max()), -1, -1):
        here = row == level
        for place in (low[here], (low + length - (1 << level))[here]):
            best[place] = np.maximum(best[place], mark[here])  # marks rise, so that of equal places the highest stays
        if level:
            half = 1 << (level - 1)
            lower = best.copy()
            np.maximum(lower[half:], best[:-half], out=lower[half:])
            best = lower
    if first_wins:
        return np.where(best > 0, len(start) - best, NONE)
    best -= 1
    return best


def _ranks(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How many of the sorted moments are before each value; of many sorted values by looking up the few moments."""
    if len(values) <= len(at) or (values[1:] < values[:-1]).any():
        return np.searchsorted(at, values)
    places = np.searchsorted(values, at, side="right")
    return np.repeat(np.arange(len(at) + 1, dtype=np.int32), np.diff(places, prepend=0, append=len(values)))
