"""Kernels and copies of a window: which they are, what launched them, and their order on streams."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from ..kinds import Kind
from ..launchers import call_places, launch_calls
from ..tables import Trace
from .graph import CATEGORIES, END_TIER, START_TIER, Category, Edges, Points, Relation, edges, join_edges, words

NEVER = np.iinfo(np.int64).min
_OF_KIND = {Kind.COMMUNICATION: Category.COMMUNICATION, Kind.MEMORY: Category.COPY}
_BITS = 46  # of a time after the beginning in nanoseconds: 19 hours
PROMPT_NS = 30_000
"""A kernel that starts so soon after one of another stream, and has nothing else to wait for, waited for that one."""
_PATIENCE = 3
"""... and had been launched so many usual launch delays ago."""
_USUAL_DELAY_NS = 10_000
"""That delay where every kernel waited in a queue, so that none shows it."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What ran on devices, by start; cut to begin in the window."""

    frame: pl.DataFrame
    """The events."""
    start: np.ndarray
    """[K] int64."""
    end: np.ndarray
    """[K] int64."""
    call: np.ndarray
    """[K] int64: row of the call that launched it; -1 if it is not recorded."""
    called: np.ndarray
    """[K] int64: when that call began; `NEVER` if it is not recorded."""
    returned: np.ndarray
    """[K] int64: when it returned."""
    own: np.ndarray
    """[K] bool: launched in the window, or began in it if no launch is recorded."""

    @property
    def track(self) -> np.ndarray:
        """[K] streams, by their number in the trace."""
        return self.frame["track"].to_numpy().astype(np.int64)

    @property
    def previous_end(self) -> np.ndarray:
        """[K] when all that began earlier on the same stream had ended; `NEVER` for the first."""
        _, reach, _ = _streams(self)
        return reach


def tasks(trace: Trace, window: tuple[int, int]) -> Tasks:
    """Tasks that the window launched, and earlier ones that still ran in it."""
    begin, end = window
    every, calls = trace.device, launch_calls(trace)
    place = call_places(trace, every)
    known = place.is_not_null().to_numpy()
    which = place.fill_null(-1).to_numpy()
    # What stands behind the last call is that of no call.
    ts, dur, rows = (np.append(calls[key].to_numpy().astype(np.int64), 0) for key in ("ts", "dur", "row"))
    call = np.where(known, rows[which], -1)
    called = np.where(known, ts[which], NEVER)
    returned = np.where(known, ts[which] + dur[which], NEVER)
    start = every["ts"].to_numpy()
    stop = start + every["dur"].to_numpy()
    since = np.where(known, called, start)
    own = (since >= begin) & (since < end)
    last = max(end, int(stop[own].max())) if own.any() else end
    kept = own | ((since < begin) & (stop > begin) & (start < last))
    order = np.flatnonzero(kept)
    return Tasks(
        frame=every[order],
        start=np.maximum(start[order], begin),
        end=stop[order],
        call=call[order],
        called=called[order],
        returned=returned[order],
        own=own[order],
    )


def chains(trace: Trace, found: Tasks) -> Points:
    """Two points for each task: 2 k where it starts, 2 k + 1 where it ends."""
    frame = found.frame
    n = frame.height
    kinds = [CATEGORIES.index(_OF_KIND.get(Kind(word), Category.COMPUTE)) for word in words(frame["kind"])]
    time = np.stack([found.start, found.end], axis=1).ravel()
    instant = found.start == found.end
    tiers = np.stack([np.full(n, START_TIER), np.where(instant, START_TIER, END_TIER)], axis=1)
    ends = np.stack([np.zeros(n, dtype=bool), found.own], axis=1)

    def both(column: np.ndarray, dtype: type) -> np.ndarray:
        return np.repeat(column, 2).astype(dtype)

    return Points(
        time=time,
        first=np.tile([True, False], n),
        least=np.stack([np.zeros(n, dtype=np.int64), found.end - found.start], axis=1).ravel(),
        tier=tiers.ravel().astype(np.uint8),
        label=both(frame["name"].to_physical().to_numpy(), np.int32),
        category=both(np.array(kinds, dtype=np.uint8)[frame["kind"].to_physical().to_numpy()], np.uint8),
        row=both(frame["row"].to_numpy(), np.int32),
        track=both(found.track, np.int32),
        rank=np.full(2 * n, -1 if trace.rank is None else trace.rank, dtype=np.int32),
        ends=ends.ravel(),
    )


def _streams(found: Tasks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By task: the one before it on its stream (-1), when all before had ended, and which of those ended last (-1)."""
    n = len(found.start)
    zero = found.start.min() if n else 0
    order = np.lexsort((np.arange(n), found.track))
    stream = found.track[order]
    key = (stream << _BITS) + (found.end - zero)[order]
    reach = np.maximum.accumulate(key)
    holder = np.maximum.accumulate(np.where(key == reach, np.arange(n), 0))
    same = np.concatenate([[False], stream[1:] == stream[:-1]])[:n]
    previous, last, until = np.full(n, -1), np.full(n, -1), np.full(n, NEVER)
    behind = np.flatnonzero(same)
    previous[order[behind]] = order[behind - 1]
    last[order[behind]] = order[holder[behind - 1]]
    until[order[behind]] = found.end[order[holder[behind - 1]]]
    return previous, until, last


def order_on_streams(found: Tasks, base: int) -> Edges:
    """Each task after the one of its stream that ended last; if that still ran, after the start of the one before.

    `base` is the number of the first task's first point.
    """
    previous, until, last = _streams(found)
    k = np.arange(len(previous))
    after = (last >= 0) & (until <= found.start)
    beside = (last >= 0) & ~after
    made = [
        edges(base + 2 * last[after] + 1, base + 2 * k[after], Relation.STREAM),
        edges(base + 2 * previous[beside], base + 2 * k[beside], Relation.STREAM),
    ]
    if beside.any():
        ended = latest_ended(found, found.track[beside], found.start[beside])
        there = (ended >= 0) & (ended < k[beside])
        made.append(edges(base + 2 * ended[there] + 1, base + 2 * k[beside][there], Relation.STREAM))
    return join_edges(*made)


def latest_ended(found: Tasks, track: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The task of a stream that ended last, no later than a time; -1 if none had."""
    zero = found.start.min() if len(found.start) else 0
    key = (found.track << _BITS) + (found.end - zero)
    order = np.argsort(key, kind="stable")
    wanted = (track.astype(np.int64) << _BITS) + np.maximum(by - zero, 0)
    at = np.searchsorted(key[order], wanted, side="right") - 1
    which = order[np.maximum(at, 0)]
    return np.where((at >= 0) & (found.track[which] == track) & (found.end[which] <= by), which, -1)


def launches(found: Tasks, began: np.ndarray, ended: np.ndarray, base: int) -> Edges:
    """Each task after its call; `began`, `ended`: points of the calls, -1 where a call lies in no chain.

    The least delay is the smallest that the window shows, or 0 if every task waited in a queue. Where the stream was
    free when the call returned, the whole call was waited for.
    """
    k = np.arange(len(found.start))
    there = (began >= 0) & (found.called <= found.start)
    delays = delays_ns(found)
    least = min(int(delays.min()), int((found.start - found.called)[there].min())) if len(delays) and there.any() else 0
    whole = there & (found.returned <= found.start) & (found.previous_end <= found.returned)
    return join_edges(
        edges(began[there], base + 2 * k[there], Relation.LAUNCH, least),
        edges(ended[whole], base + 2 * k[whole], Relation.LAUNCH),
    )


def delays_ns(found: Tasks) -> np.ndarray:
    """Times from calls to their tasks, where the stream had work before, and was free when the call began."""
    before = found.previous_end
    free = (before != NEVER) & (before <= found.called) & (found.called <= found.start)
    return (found.start - found.called)[free]


def waits_for_other_streams(found: Tasks, base: int) -> Edges:
    """What the times suggest where no event of a stream is recorded: see `PROMPT_NS`."""
    before = np.maximum(found.previous_end, found.called)
    delays = delays_ns(found)
    usual = int(np.median(delays)) if len(delays) else _USUAL_DELAY_NS
    patient = (found.called == NEVER) | (found.start - found.called > _PATIENCE * usual)
    late = np.flatnonzero(patient & (found.start > before))
    best, end = np.full(len(late), -1), before[late].copy()
    for track in np.unique(found.track).tolist():
        candidate = latest_ended(found, np.full(len(late), track), found.start[late])
        ended = found.end[candidate]
        better = (candidate >= 0) & (found.track[late] != track) & (ended > end) & (candidate != late)
        best[better], end[better] = candidate[better], ended[better]
    prompt = (best >= 0) & (found.start[late] - end <= PROMPT_NS)
    return edges(base + 2 * best[prompt] + 1, base + 2 * late[prompt], Relation.WAIT)
