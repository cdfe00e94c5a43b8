"""What it takes to start work: the calls on the host, and how long after them the work begins."""

import numpy as np
import polars as pl

from ..tables import Trace, once
from .compat import rows_of
from .rows import Rows
from .statistics import spread

HTA_CALLS = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
    "runFunction - job_prep_and_submit_for_execution",
)
"""The calls that HTA's statistics of launches know."""

SLOW_CALL_NS = 50_000
"""A call that takes longer did more than launch."""


def launches(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """Each call that started work on a device, whatever its name: a kernel, a copy, a graph; CUDA, HIP or another.

    row (of the call), call (its name), correlation, num_kernels, call_ns (length of the call), device_ns (of the work,
    summed if it is a graph), delay_ns (from the end of the call to the first start; 0 if the work began before).

    HTA knows five names, and has a row for each pair of a call and a piece of work.
    """
    return _launches(rows_of(trace, compat=compat)).with_columns(pl.col("call").cast(pl.String))


@once
def _launches(rows: Rows) -> pl.DataFrame:
    """The same, with names as numbers."""
    started = _started_as_hta(rows) if rows.compat else _started(rows)
    delay = pl.col("work_ts") - pl.col("ts") - pl.col("dur")
    return started.select(
        "row",
        pl.col("name").alias("call"),
        "correlation",
        "num_kernels",
        call_ns=rows.ns(pl.col("dur")),
        device_ns=rows.ns(pl.col("work_dur")),
        delay_ns=rows.ns(delay.clip(lower_bound=0)),
    )


def _started(rows: Rows) -> pl.DataFrame:
    """Calls that started something: when the first of it began, how long it took in all, and how much it was."""
    place = rows.device["call"]
    of = np.flatnonzero(place.is_not_null().to_numpy())
    call, num_calls = place.drop_nulls().to_numpy(), rows.calls.height
    begins, took = np.zeros(num_calls, dtype=np.int64), np.zeros(num_calls, dtype=np.int64)
    begins[call[::-1]] = rows.device["ts"].to_numpy()[
        of[::-1]
    ]  # work is in order of time, so the first is written last
    np.add.at(took, call, rows.device["dur"].to_numpy()[of])
    num = np.bincount(call, minlength=num_calls)
    calls = rows.calls.with_columns(
        work_ts=pl.Series(begins), work_dur=pl.Series(took), num_kernels=pl.Series(num, dtype=pl.Int64)
    )
    return calls.filter(pl.col("num_kernels") > 0)


def _started_as_hta(rows: Rows) -> pl.DataFrame:
    """Pairs of a call and work."""
    work = rows.device.filter(pl.col("correlation") != -1)
    work = work.select("correlation", work_ts="ts", work_dur="dur", num_kernels=pl.lit(1, dtype=pl.Int64))
    chosen = rows.calls.filter(pl.col("name").cast(pl.String).is_in(HTA_CALLS))["correlation"].unique()
    calls = rows.calls.filter(pl.col("correlation").is_in(chosen.implode()))
    return calls.join(work, on="correlation", maintain_order="left_right")


def launch_statistics(
    trace: Trace | Rows, *, compat: bool = False, slow_call_ns: int = SLOW_CALL_NS, late_start_ns: int = 100_000
) -> pl.DataFrame:
    """Launches by the name of the call, most frequent first.

    call, num_launches, num_kernels, call_ns, device_ns, delay_ns (sums), short_kernels, slow_calls, late_starts. A call
    is slow above `slow_call_ns`. A short kernel is work that took less than its call, which was not slow. Work that
    began more than `late_start_ns` after its call is late, as it is whenever the queue is long.
    """
    call, device, delay = (pl.col(name) for name in ("call_ns", "device_ns", "delay_ns"))
    return (
        _launches(rows_of(trace, compat=compat))
        .group_by("call")
        .agg(
            pl.len().cast(pl.Int64).alias("num_launches"),
            pl.col("num_kernels").sum(),
            call.sum(),
            device.sum(),
            delay.sum(),
            ((call <= slow_call_ns) & (device < call)).sum().cast(pl.Int64).alias("short_kernels"),
            (call > slow_call_ns).sum().cast(pl.Int64).alias("slow_calls"),
            (delay > late_start_ns).sum().cast(pl.Int64).alias("late_starts"),
        )
        .with_columns(pl.col("call").cast(pl.String))
        .sort("num_launches", "call", descending=[True, False])
    )


def launch_distribution(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """How `call`, `device` and `delay` of `launches` are spread.

    measure, count, mean_ns, std_ns, min_ns, p25_ns, p50_ns, p75_ns, max_ns.
    """
    table = _launches(rows_of(trace, compat=compat))
    measures = (
        table.select(pl.lit(measure).alias("measure"), *spread(f"{measure}_ns", "_ns"))
        for measure in ("call", "delay", "device")
    )
    return pl.concat(measures).filter(pl.col("count") > 0)
