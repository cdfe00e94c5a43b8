"""Why a stream, or a device, had nothing to do between two pieces of work."""

import numpy as np
import polars as pl

from ..tables import Trace
from .compat import rows_of
from .rows import Rows
from .statistics import describe

HOST_WAIT = "host_wait"
"""The call that started the next work came after the previous work had ended: the host was late."""
KERNEL_WAIT = "kernel_wait"
"""The call had come, and the gap is short: what it costs to go from one kernel to the next."""
OTHER_WAIT = "other"
"""Anything else: waiting for another stream or another rank, or the call is not in the trace."""
ALL_STREAMS = -1
_CAUSES = pl.Enum([HOST_WAIT, KERNEL_WAIT, OTHER_WAIT])


def idle_breakdown(
    trace: Trace | Rows, *, compat: bool = False, by_stream: bool = True, kernel_wait_ns: int = 30_000
) -> pl.DataFrame:
    """Idle time by cause, of each stream, or of each device (stream -1: it is idle when all its streams are).

    device, stream, cause, idle_ns, share (of the idle time of that stream), and of the gaps count, mean_ns, std_ns,
    min_ns, p25_ns, p50_ns, p75_ns, max_ns. A gap begins where all work before it has ended, and ends with the next
    start, of the longest if several start then. A gap below `kernel_wait_ns` is a kernel wait.

    HTA begins a gap where the previous row ends, so that its gaps can be negative, counts gaps of no length, and has
    a row `other` of each stream for the first row, which has no gap. Its 30 are documented as nanoseconds, and are
    microseconds.
    """
    rows = rows_of(trace, compat=compat)
    gaps = _gaps(rows, by_stream=by_stream)
    host_late = (pl.col("call_ts") > pl.col("before")).fill_null(False)
    short = (pl.col("gap") < kernel_wait_ns / rows.unit_ns).fill_null(False)
    cause = pl.when(host_late).then(0).when(short).then(1).otherwise(2).cast(pl.UInt8).cat.to(_CAUSES)
    gaps = gaps.select("device", "stream", cause=cause, gap_ns=pl.col("gap") * rows.unit_ns)
    keys = ["device", "stream", "cause"]
    total = gaps.group_by(keys).agg(idle_ns=pl.col("gap_ns").sum().round().cast(pl.Int64))
    whole = pl.col("idle_ns").sum().over("device", "stream")
    total = total.with_columns(share=pl.when(whole != 0).then(pl.col("idle_ns") / whole))
    table = total.join(describe(gaps, keys, "gap_ns", "_ns"), on=keys, how="left").sort(keys)
    return table.with_columns(pl.col("cause").cast(pl.String))


def _gaps(rows: Rows, *, by_stream: bool) -> pl.DataFrame:
    """Where all work before has ended (`before`), how long nothing followed (`gap`), and when what followed was called.

    In HTA's reading every row has one, of any sign; the first of a stream is null.
    """
    device = rows.device
    start, dur = device["ts"].to_numpy(), device["dur"].to_numpy()
    places, ends = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=start.dtype)]
    for part in rows.groups(device["occupies"].to_numpy(), ("device", "stream") if by_stream else ("device",)):
        end = start[part] + dur[part]
        if rows.compat:
            before = np.concatenate([[np.nan], end[:-1]])
        else:
            before = np.maximum.accumulate(end)[:-1]
            idle = start[part[1:]] > before
            part, before = part[1:][idle], before[idle]
        places.append(part)
        ends.append(before)
    before = pl.Series(np.concatenate(ends), dtype=device["ts"].dtype)
    gaps = device.select("device", pl.col("stream").cast(pl.Int64), "ts", "call_ts")[np.concatenate(places)]
    gaps = gaps.with_columns(before=before.fill_nan(None) if rows.compat else before)
    if not by_stream:
        gaps = gaps.with_columns(stream=pl.lit(ALL_STREAMS, dtype=pl.Int64))
    return gaps.with_columns(gap=pl.col("ts") - pl.col("before"))
