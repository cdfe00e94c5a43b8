"""Threads of the host as chains of points: borders of events, and between them the innermost event."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from ...spans import GLOO_PREFIX, NCCL_PREFIX
from ..kinds import Kind
from ..tables import Trace
from .graph import CATEGORIES, HOST_TIER, Category, Edges, Points, Relation, edges, join_edges, words

HOST_KINDS = (Kind.OPERATOR, Kind.LAUNCH, Kind.ANNOTATION, Kind.PYTHON)
_BACKWARD = r"autograd::engine|Backward\d*$"
_MOST = 0.5
"""A segment is a wait for the thread of the backward pass if that is at work for at least so much of it."""
NOTHING = "(between events)"
_OF_KIND = {Kind.OPERATOR: Category.OPERATOR, Kind.LAUNCH: Category.LAUNCH}


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Chains of the host threads that matter, and where their events begin and end on them."""

    points: Points
    row: np.ndarray
    """[N] the events' rows in the trace, increasing."""
    start: np.ndarray
    """[N] points at which the events begin."""
    end: np.ndarray
    """[N] points at which they end."""
    depth: np.ndarray
    """[P] how many events a segment lies in."""
    main: int
    """The thread that drives the steps; -1 if there is none."""

    def at(self, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Points of events by their rows; -1 where an event lies in no chain."""
        if not len(self.row):
            return np.full(len(rows), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.row, rows), len(self.row) - 1)
        return np.where(self.row[found] == rows, points[found].astype(np.int64), -1)


def main_track(trace: Trace) -> int:
    """The thread with the steps, else the one with the most launches, else the one with the most events; -1 if none."""
    if trace.steps.height:
        return int(trace.steps["track"][0])
    for kinds in ((Kind.LAUNCH,), (Kind.OPERATOR,), HOST_KINDS):
        counts = (
            _of(trace.events.select("kind", "track"), kinds)["track"]
            .value_counts()
            .sort(["count", "track"], descending=[True, False])
        )
        if counts.height:
            return int(counts["track"][0])
    return -1


def backward_tracks(trace: Trace, main: int) -> list[int]:
    """Other threads that run operators of a backward pass."""
    ran = trace.of(Kind.OPERATOR, "name", "track").filter(trace.named(_BACKWARD) & (pl.col("track") != main))
    return sorted(ran["track"].unique().to_list())


def _of(events: pl.DataFrame, kinds: tuple[Kind, ...]) -> pl.DataFrame:
    return events.filter(pl.col("kind").is_in([kind.value for kind in kinds]))


def threads(trace: Trace, *, main: int, others: list[int], window: tuple[int, int]) -> Threads:
    """Chains of some threads, cut to a window."""
    begin, end = window
    ts, dur = trace.events["ts"].to_numpy(), trace.events["dur"].to_numpy()
    last = np.searchsorted(ts, end)
    inside = np.flatnonzero(ts[:last] + dur[:last] >= begin)  # most events are outside
    kept = _of(trace.events[inside], HOST_KINDS).filter(pl.col("track").is_in([main, *others]))
    ts = kept["ts"].to_numpy()
    stop = np.minimum(ts + kept["dur"].to_numpy(), end)
    # Ranges of a backend begin on the thread that asks and end when the work does: they nest in nothing.
    said = enumerate(words(trace.events["name"]))
    loose = [code for code, name in said if name.startswith((GLOO_PREFIX, NCCL_PREFIX))]
    spans = np.isin(kept["name"].to_physical().to_numpy(), loose) & (kept["kind"] == Kind.ANNOTATION.value).to_numpy()
    stop = np.where(spans, np.minimum(ts, end), stop)
    kept, ts, stop = kept.filter(pl.Series(stop >= begin)), ts[stop >= begin], stop[stop >= begin]
    ts = np.maximum(ts, begin)
    order, depth, inner = _nested(ts, stop, kept["track"].to_numpy())
    n = len(ts)
    event = order // 2
    time = np.where(order % 2 == 0, ts[event], stop[event])
    before = np.concatenate([[-1], inner])[: 2 * n].astype(np.int32)
    track = kept["track"].to_numpy().astype(np.int32)[event]
    first = np.concatenate([[True], track[1:] != track[:-1]]) if n else np.zeros(0, dtype=bool)
    kinds = [CATEGORIES.index(_OF_KIND.get(Kind(word), Category.PYTHON)) for word in words(kept["kind"])]
    there, some = before >= 0, np.maximum(before, 0)
    row = kept["row"].to_numpy().astype(np.int32)
    category = np.array([*kinds, CATEGORIES.index(Category.PYTHON)])[
        np.where(there, kept["kind"].to_physical().to_numpy()[some].astype(np.int64), -1)
    ]
    at = np.empty(2 * n, dtype=np.int32)
    at[order] = np.arange(2 * n, dtype=np.int32)
    points = Points(
        time=time,
        first=first,
        least=np.where(first, 0, np.diff(time, prepend=time[:1])),
        tier=np.full(2 * n, HOST_TIER, dtype=np.uint8),
        label=np.where(there, kept["name"].to_physical().to_numpy()[some].astype(np.int32), -1).astype(np.int32),
        category=category.astype(np.uint8),
        row=np.where(there, row[some], -1).astype(np.int32),
        track=track,
        rank=np.full(2 * n, -1 if trace.rank is None else trace.rank, dtype=np.int32),
        ends=(track == main) & np.concatenate([first[1:], np.ones(min(n, 1), dtype=bool)]),
    )
    outside = np.concatenate([[0], depth])[: 2 * n]
    return Threads(points=points, row=row, start=at[0::2], end=at[1::2], depth=outside, main=main)


def _nested(ts: np.ndarray, stop: np.ndarray, track: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Borders by thread and time (2 i: event i begins, 2 i + 1: it ends); behind each, the depth and the innermost.

    The innermost event at a depth is the last that began at it, so one stable sort by depth finds all of them.
    """
    n = len(ts)
    border = np.arange(2 * n, dtype=np.int32)  # as short as it can be: steps of a million events are looked at
    closes = border % 2 == 1
    time = np.stack([ts, stop], axis=1).ravel()
    # At one time: what ends, the innermost first; then what begins, the outermost first, and what has no length.
    late = ~(closes & np.repeat(stop > ts, 2))
    order = np.lexsort((np.where(late, border, -border), late, time, np.repeat(track, 2))).astype(np.int32)
    del time, late
    depth = np.cumsum(np.where(closes[order], np.int8(-1), np.int8(1)), dtype=np.int32)
    by_depth = np.argsort(depth, kind="stable").astype(np.int32)
    last = np.maximum.accumulate(np.where(closes[order][by_depth], np.int32(0), border))
    inner = np.empty(2 * n, dtype=np.int32)
    inner[by_depth] = order[by_depth[last]] // 2 if n else 0
    return order, depth, np.where(depth > 0, inner, np.int32(-1))


def handoffs(found: Threads, backward: list[int]) -> tuple[Edges, np.ndarray]:
    """Edges between the main thread and those of the backward pass; and the points that end a wait.

    A gap of such a thread in which the main thread did something is a wait for it. A segment of the main thread most
    of which such a thread was at work is a wait for that.
    """
    points = found.points
    main = np.flatnonzero(points.track == found.main)
    made, waits = [edges(main[:0], main[:0], Relation.HANDOFF)], [main[:0]]
    if not len(main):
        return made[0], waits[0]
    time = points.time[main]
    for track in backward:
        mine = np.flatnonzero(points.track == track)
        if not len(mine):
            continue
        # The thread waits for the main one: before its first point, and in gaps that have a point of the other.
        asked = np.searchsorted(time, points.time[mine], side="right") - 1
        since = np.concatenate([time[:1] - 1, points.time[mine[:-1]]])
        gap = (found.depth[mine] == 0) & (asked >= 0) & (time[np.maximum(asked, 0)] > since)
        gap[0] = asked[0] >= 0
        made.append(edges(main[asked[gap]], mine[gap], Relation.HANDOFF))
        waits.append(mine[gap])
        # The main thread waits for it.
        at = points.time[mine]
        low = np.searchsorted(at, time[:-1], side="left")
        high = np.searchsorted(at, time[1:], side="right") - 1
        busy = at[np.maximum(high, 0)] - at[np.minimum(low, len(at) - 1)]
        span = time[1:] - time[:-1]
        launches = points.category[main[1:]] == CATEGORIES.index(Category.LAUNCH)
        waited = (high > low) & (span > 0) & (busy >= _MOST * span) & ~launches
        made.append(edges(mine[high[waited]], main[1:][waited], Relation.HANDOFF))
        waits.append(main[1:][waited])
    return join_edges(*made), np.concatenate(waits)
