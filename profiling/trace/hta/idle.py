"""Why a stream, or a device, had nothing to do between two pieces of work."""

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
    keys = ["device", "stream"]
    work = rows.device.filter("occupies").select("device", "stream", "ts", "dur", "call_ts")
    if not by_stream:
        work = work.with_columns(stream=pl.lit(ALL_STREAMS, dtype=pl.Int32))
    work = work.with_columns(pl.col("stream").cast(pl.Int32)).sort(*keys, "ts", maintain_order=True)
    end = pl.col("ts") + pl.col("dur")
    before = (end if rows.compat else end.cum_max()).shift(1).over(keys)
    gaps = work.with_columns(before=before).with_columns(gap=pl.col("ts") - pl.col("before"))
    if not rows.compat:
        gaps = gaps.filter(pl.col("gap") > 0)
    host_late = (pl.col("call_ts") > pl.col("before")).fill_null(False)
    short = (pl.col("gap") < kernel_wait_ns / rows.unit_ns).fill_null(False)
    cause = pl.when(host_late).then(pl.lit(HOST_WAIT)).when(short).then(pl.lit(KERNEL_WAIT))
    gaps = gaps.with_columns(cause=cause.otherwise(pl.lit(OTHER_WAIT)), gap_ns=pl.col("gap") * rows.unit_ns)
    keys = [*keys, "cause"]
    total = gaps.group_by(keys).agg(idle_ns=pl.col("gap_ns").sum().round().cast(pl.Int64))
    whole = pl.col("idle_ns").sum().over("device", "stream")
    total = total.with_columns(share=pl.when(whole != 0).then(pl.col("idle_ns") / whole))
    return total.join(describe(gaps, keys, "gap_ns", "_ns"), on=keys, how="left").sort(keys)
