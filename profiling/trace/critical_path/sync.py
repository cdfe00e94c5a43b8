"""Calls in which the host waits for a device, and events by which streams wait for each other."""

import re

import numpy as np
import polars as pl

from ..kinds import Kind
from ..tables import Trace
from .device import NEVER, Tasks
from .graph import Edges, Relation, edges, join_edges, words
from .host import Threads

BLOCKING = re.compile(
    r"^(cuda|hip|cu)(Stream|Device|Event|Ctx)Synchronize|^(cuda|hip|cu)Memcpy(?!.*Async)|^hipMemcpyWithStream|^cudaFree$"
)
_ASYNC_COPY = re.compile(r"^(cuda|hip|cu)Memcpy.*Async")
_EVERYWHERE = re.compile(r"(Device|Ctx)Synchronize")
_TRIES = 64


def returns(trace: Trace, found: Tasks, threads: Threads, base: int) -> tuple[Edges, np.ndarray]:
    """Edges from tasks to the ends of the calls that waited for them, and those ends where there was a wait.

    A call waited for the task that ended last before it returned, of those launched before it began; of the stream
    that the trace names, if it names one, and on every stream if the whole device was waited for. A copy that ended
    before its call returned was waited for by the call.
    """
    names = words(trace.events["name"])
    blocks = pl.Series([code for code, name in enumerate(names) if BLOCKING.search(name)], dtype=pl.UInt32)
    blocking = pl.col("name").to_physical().is_in(blocks.implode())
    calls = trace.events.filter((pl.col("kind") == Kind.LAUNCH.value) & blocking)
    end_point = threads.at(calls["row"].to_numpy().astype(np.int64), threads.end)
    start_point = threads.at(calls["row"].to_numpy().astype(np.int64), threads.start)
    inside = np.flatnonzero(end_point >= 0)
    calls, end_point, start_point = calls[inside], end_point[inside], start_point[inside]
    began, ended = threads.points.time[start_point], threads.points.time[end_point]
    which, task = _awaited_by(trace, found, calls, began, ended)
    own = np.flatnonzero(_copies_in_calls(found, names))
    own_end = threads.at(found.call[own], threads.end)
    own = own[own_end >= 0]
    own_end = own_end[own_end >= 0]
    source = np.concatenate([task, own])
    target = np.concatenate([end_point[which], own_end])
    waited = found.end[source] > threads.points.time[target - 1] if len(source) else np.zeros(0, dtype=bool)
    return edges(base + 2 * source + 1, target, Relation.SYNC), target[waited]


def _awaited_by(
    trace: Trace, found: Tasks, calls: pl.DataFrame, began: np.ndarray, ended: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a call and a task that it waited for: one, or one of each stream if it waits for the whole device."""
    said = _stream_of(trace, calls)
    says = np.array([bool(_EVERYWHERE.search(name)) for name in words(calls["name"])], dtype=bool)
    everywhere = says[calls["name"].to_physical().to_numpy()]
    one = _awaited(found, began, ended, found.frame["stream"].to_numpy(), np.where(everywhere, -2, said))
    pairs = [(np.flatnonzero(one >= 0), one[one >= 0])]
    for track in np.unique(found.track).tolist() if everywhere.any() else []:
        each = _awaited(found, began, ended, found.track, np.where(everywhere, track, -2))
        pairs.append((np.flatnonzero(each >= 0), each[each >= 0]))
    return np.concatenate([which for which, _ in pairs]), np.concatenate([task for _, task in pairs])


def _copies_in_calls(found: Tasks, names: list[str]) -> np.ndarray:
    """[K] which tasks are copies that ended before their call returned."""
    copies = (found.frame["kind"] == Kind.MEMORY.value).to_numpy()
    return copies & (found.call >= 0) & (found.end <= found.returned) & (found.start >= found.called)


def _awaited(found: Tasks, began: np.ndarray, ended: np.ndarray, stream: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The task that ended last by a time, launched before another, on a stream (-1: any, -2: none); -1 for none."""
    result = np.full(len(began), -1)
    for each in np.unique(wanted[wanted > -2]).tolist():
        mine = np.flatnonzero(wanted == each)
        of = np.arange(len(stream)) if each < 0 else np.flatnonzero(stream == each)
        if not len(of):
            continue
        order = of[np.argsort(found.end[of], kind="stable")]
        at = np.searchsorted(found.end[order], ended[mine], side="right") - 1
        for _ in range(_TRIES):
            fits = (at >= 0) & (result[mine] < 0)
            if not fits.any():
                break
            which = order[np.maximum(at, 0)]
            fits &= found.called[which] < began[mine]
            result[mine[fits]] = which[fits]
            at -= 1
    return result


def _stream_of(trace: Trace, calls: pl.DataFrame) -> np.ndarray:
    """[C] the stream that a call waited for, by the record of it; -1 if that is not said."""
    said = trace.of(Kind.SYNC).filter(
        (pl.col("correlation") > 0) & (pl.col("stream") >= 0) & (pl.col("name").cast(pl.String) == "Stream Sync")
    )
    stream = calls.join(
        said.select("correlation", pl.col("stream").alias("said")).unique("correlation", keep="first"),
        on="correlation",
        how="left",
        maintain_order="left",
    )["said"]
    return stream.fill_null(-1).to_numpy().astype(np.int64)


def recorded_waits(trace: Trace, found: Tasks, base: int) -> Edges:
    """Each stream's first task after it was told to wait for an event, after the last before the event elsewhere."""
    waits = trace.of(Kind.SYNC).filter(pl.col("name").cast(pl.String) == "Stream Wait Event")
    keys = ("wait_on_stream", "wait_on_cuda_event_record_corr_id")
    for key in keys:
        said = trace.argument(key)
        values = said.select("row", pl.col("value").cast(pl.Int64).alias(key))
        waits = waits.join(values, on="row", how="inner")
    if not waits.height:
        return edges(np.zeros(0), np.zeros(0), Relation.WAIT)
    calls = trace.of(Kind.LAUNCH, "correlation", "ts").unique("correlation", keep="first")
    waits = (
        waits.select("correlation", "stream", *keys)
        .join(calls.rename({"ts": "told"}), on="correlation")
        .join(calls.rename({"ts": "noted", "correlation": keys[1]}), on=keys[1])
    )
    made = [edges(np.zeros(0), np.zeros(0), Relation.WAIT)]
    stream = found.frame["stream"].to_numpy()
    known = found.called != NEVER
    for (of, on), group in waits.group_by("stream", keys[0]):
        behind, before = (np.flatnonzero(known & (stream == each)) for each in (of, on))
        behind = behind[np.argsort(found.called[behind], kind="stable")]
        before = before[np.argsort(found.called[before], kind="stable")]
        last = np.searchsorted(found.called[before], group["noted"].to_numpy()) - 1
        next_ = np.searchsorted(found.called[behind], group["told"].to_numpy())
        there = (last >= 0) & (next_ < len(behind))
        made.append(edges(base + 2 * before[last[there]] + 1, base + 2 * behind[next_[there]], Relation.WAIT))
    return join_edges(*made)
