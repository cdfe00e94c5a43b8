"""What changes over time: how much work waits in the queue of a stream, and how fast memory is copied."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from ..kinds import Kind
from ..tables import Trace, once
from .compat import rows_of
from .launches import HTA_CALLS
from .rows import Rows
from .statistics import describe, describe_levels, describe_over_time

FULL_QUEUE = 1024
"""Entries in the queue of a CUDA stream, after which a launch blocks."""
_QUEUE = ("device", "stream")
_COPIES = ("device", "name")
_HTA_CALLS = (
    *HTA_CALLS,
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "hipLaunchKernel",
    "hipExtModuleLaunchKernel",
    "hipMemsetAsync",
    "hipMemcpyAsync",
    "hipMemcpyWithStream",
)


def queue_points(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """Length of the queue of each stream at the times when work comes or goes: device, stream, ts_ns, length, lasts_ns.

    Work is in the queue from the start of its call to its own start; work whose call is not in the trace is not
    counted, and work that began before its call was never in the queue. All of a graph comes with its one call. In
    HTA's reading each event is a point, and times count from the first event.
    """
    rows = rows_of(trace, compat=compat)
    if rows.compat:
        points = _points(rows, pl.concat(_in_and_out_as_hta(rows)), _QUEUE, {"length": "change"})
        return points.select(*_QUEUE, "ts_ns", "length", "lasts_ns")
    parts = [
        _of_queue(
            rows, place, {"ts_ns": at, "length": length.astype(np.int64), "lasts_ns": np.diff(at, append=at[-1:])}
        )
        for place, at, length in _queues(rows)
    ]
    return pl.concat([rows.device.head(0).select(*_QUEUE, ts_ns="ts", length="ts", lasts_ns="dur"), *parts])


def _of_queue(rows: Rows, place: int, columns: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Columns of the queue that the work at a place was in."""
    numbers = (pl.lit(rows.device[key][place], dtype=rows.device.schema[key]).alias(key) for key in _QUEUE)
    return pl.DataFrame(columns).select(*numbers, pl.all())


def _queues(rows: Rows) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each stream the place of its first work, and when its queue had which length from then on."""
    came, went = rows.device["call_ts"], rows.device["ts"]
    waited = (came < went).fill_null(False).to_numpy()
    came, went = came.fill_null(0).to_numpy(), went.to_numpy()
    for part in rows.groups(waited):
        at = np.concatenate([came[part], went[part]])
        order = np.argsort(at, kind="stable")  # quick, as these are two sorted runs or nearly so
        change = np.where(order < len(part), np.int8(1), np.int8(-1))
        at = at[order]
        del order  # these columns are the longest there are: none is kept for longer than it is needed
        last = np.append(at[1:] != at[:-1], True)  # where several change at a time
        at, length = at[last], np.cumsum(change, dtype=np.int32)[last]
        del change, last
        yield int(part[0]), at, length


@once
def _queue_levels(rows: Rows) -> pl.DataFrame:
    """How often each queue had each length, and for how long: device, stream, length, count, lasts_ns."""
    if rows.compat:
        sums = (pl.len().cast(pl.Int64).alias("count"), pl.col("lasts_ns").sum())
        return queue_points(rows).group_by(*_QUEUE, "length").agg(sums)
    parts = [rows.device.head(0).select(*_QUEUE, length="ts", count="ts", lasts_ns="dur")]
    for place, at, length in _queues(rows):
        count, lasts = np.bincount(length), np.zeros(int(length.max()) + 1, dtype=np.int64)
        np.add.at(lasts, length, np.diff(at, append=at[-1:]))
        there = np.flatnonzero(count)
        parts.append(_of_queue(rows, place, {"length": there, "count": count[there], "lasts_ns": lasts[there]}))
    return pl.concat(parts)


def queue_lengths(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """How the length of the queue of each stream is spread over the time from its first launch to its last start.

    device, stream, count (of points), mean, std, min, p25, p50, p75, max. HTA gives each point the same weight.
    """
    rows = rows_of(trace, compat=compat)
    if rows.compat:
        return describe(queue_points(rows), _QUEUE, "length", "")
    return describe_levels(_queue_levels(rows), _QUEUE, "length", "")


def blocked_on_full_queue(trace: Trace | Rows, *, compat: bool = False, full_length: int = FULL_QUEUE) -> pl.DataFrame:
    """Time during which the queue of a stream was full, so that the next launch had to wait.

    device, stream, blocked_ns, share (of the time from the stream's first launch to its last start), of streams whose
    queue was ever full. HTA has one stream for each rank, the last, and the share of the whole trace.
    """
    rows = rows_of(trace, compat=compat)
    full = pl.col("length") >= full_length
    table = (
        _queue_levels(rows)
        .group_by(_QUEUE)
        .agg(
            blocked_ns=pl.col("lasts_ns").filter(full).sum(),
            whole_ns=pl.lit(rows.duration_ns) if rows.compat else pl.col("lasts_ns").sum(),
            ever=full.any(),
        )
        .filter("ever")
        .sort(_QUEUE)
    )
    table = table.select(*_QUEUE, "blocked_ns", share=pl.col("blocked_ns") / pl.col("whole_ns"))
    return table.tail(1) if rows.compat else table


def bandwidth_points(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """Rate at which memory is copied and filled, by the kind of copy, where it changes.

    device, name, ts_ns, gb_per_s (10^9 bytes), num_running, lasts_ns. A copy has the same rate from start to end: its
    bytes by its length, in HTA's reading the trace's own figure, with a length of 0 taken for 1 µs.
    """
    rows = rows_of(trace, compat=compat)
    copies = _copies_as_hta(rows) if rows.compat else _copies(rows)
    start = copies.select(*_COPIES, "ts", "rate", running=pl.lit(1, dtype=pl.Int64))
    end = copies.select(
        *_COPIES, ts=pl.col("ts") + pl.col("dur"), rate=-pl.col("rate"), running=pl.lit(-1, dtype=pl.Int64)
    )
    points = _points(rows, pl.concat([start, end]), _COPIES, {"gb_per_s": "rate", "num_running": "running"})
    points = points.select(*_COPIES, "ts_ns", "gb_per_s", "num_running", "lasts_ns")
    if rows.compat:
        return points
    nothing = pl.col("num_running") == 0  # else a sum of floats leaves a trace of what has ended
    return points.with_columns(gb_per_s=pl.when(nothing).then(0.0).otherwise("gb_per_s"))


def memory_bandwidth(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """How that rate is spread over the time in which something is copied.

    device, name, count (of points above 0), mean_gb_per_s, std_, min_, p25_, p50_, p75_, max_gb_per_s. HTA
    gives each point the same weight.
    """
    rows = rows_of(trace, compat=compat)
    points = bandwidth_points(rows)
    if rows.compat:
        table = describe(points.filter(pl.col("gb_per_s") > 0), _COPIES, "gb_per_s", "_gb_per_s")
    else:
        table = describe_over_time(points.filter(pl.col("num_running") > 0), _COPIES, "gb_per_s", "_gb_per_s")
    return table


def _points(rows: Rows, changes: pl.DataFrame, keys: tuple[str, str], sums: dict[str, str]) -> pl.DataFrame:
    """Sums of the changes so far, of each group by itself; in HTA's reading at each change, else once a time."""
    parts = changes.sort(keys, maintain_order=True).partition_by(keys, maintain_order=True)
    made: list[pl.DataFrame] = []
    for part in parts or [changes]:
        part = part.sort("ts", maintain_order=True)
        part = part.with_columns(pl.col(change).cum_sum().alias(total) for total, change in sums.items())
        if not rows.compat:
            part = part.filter((pl.col("ts") != pl.col("ts").shift(-1)).fill_null(True))
        lasts = (pl.col("ts").shift(-1) - pl.col("ts")).fill_null(0)
        made.append(part.with_columns(ts_ns=rows.ns(pl.col("ts")), lasts_ns=rows.ns(lasts)))
    return pl.concat(made)


def _in_and_out_as_hta(rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
    calls = rows.calls.filter("linked", pl.col("name").cast(pl.String).is_in(_HTA_CALLS))
    work = rows.device.select("device", "stream", "correlation", "ts")
    enter = calls.select("correlation", "ts").join(
        work.drop("ts"), on="correlation", how="inner", maintain_order="left_right"
    )
    leave = work.filter(pl.col("correlation").is_in(calls["correlation"].implode()))
    return (
        enter.select(*_QUEUE, "ts", change=pl.lit(1, dtype=pl.Int64)),
        leave.select(*_QUEUE, "ts", change=pl.lit(-1, dtype=pl.Int64)),
    )


def _copies(rows: Rows) -> pl.DataFrame:
    """Copies and fills of a known size or rate that took time."""
    rate = pl.coalesce(pl.col("num_bytes") / pl.col("dur"), pl.col("gb_per_s"))
    return (
        rows.device.filter(pl.col("kind") == Kind.MEMORY.value, pl.col("dur") > 0)
        .select("device", "ts", "dur", name=pl.col("name").cast(pl.String).str.split(" (").list.first(), rate=rate)
        .filter(pl.col("rate").is_finite())
    )


def _copies_as_hta(rows: Rows) -> pl.DataFrame:
    name = pl.col("name").cast(pl.String)
    copy = pl.when(name.str.starts_with("Memcpy")).then(name.str.slice(0, len("Memcpy DtoH")))
    copy = copy.when(name.str.starts_with("Memset")).then(pl.lit("Memset")).otherwise(pl.lit("Memcpy Unknown"))
    return rows.device.filter(pl.col("kind") == Kind.MEMORY.value).select(
        "device",
        "ts",
        dur=pl.when(pl.col("dur") == 0).then(1.0).otherwise("dur"),
        name=copy,
        rate=pl.col("gb_per_s").fill_null(0.0),
    )
