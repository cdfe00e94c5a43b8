"""What it takes to start work: the calls on the host, and how long after them the work begins."""

import polars as pl

from ..tables import Trace
from .compat import rows_of
from .rows import Rows
from .statistics import describe

HTA_CALLS = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
    "runFunction - job_prep_and_submit_for_execution",
)
"""The calls that HTA's statistics of launches know."""


def launches(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """Each call that started work on a device, whatever its name: a kernel, a copy, a graph; CUDA, HIP or another.

    row (of the call), call (its name), correlation, num_kernels, call_ns (length of the call), device_ns (of the work,
    summed if it is a graph), delay_ns (from the end of the call to the first start; 0 if the work began before).

    HTA knows five names, and has a row for each pair of a call and a piece of work.
    """
    rows = rows_of(trace, compat=compat)
    work = rows.device.filter(pl.col("correlation") != -1).select("correlation", work_ts="ts", work_dur="dur")
    calls = rows.calls.with_columns(pl.col("name").cast(pl.String))
    if rows.compat:
        chosen = calls.filter(pl.col("name").is_in(HTA_CALLS))["correlation"].unique()
        calls = calls.filter(pl.col("correlation").is_in(chosen.implode()))
        work = work.with_columns(num_kernels=pl.lit(1, dtype=pl.Int64))
    else:
        work = work.group_by("correlation").agg(
            pl.col("work_ts").min(), pl.col("work_dur").sum(), num_kernels=pl.len().cast(pl.Int64)
        )
    delay = pl.col("work_ts") - pl.col("ts") - pl.col("dur")
    return calls.join(work, on="correlation", maintain_order="left_right").select(
        "row",
        pl.col("name").alias("call"),
        "correlation",
        "num_kernels",
        call_ns=rows.ns(pl.col("dur")),
        device_ns=rows.ns(pl.col("work_dur")),
        delay_ns=rows.ns(delay.clip(lower_bound=0)),
    )


def launch_statistics(
    trace: Trace | Rows, *, compat: bool = False, slow_call_ns: int = 50_000, late_start_ns: int = 100_000
) -> pl.DataFrame:
    """Launches by the name of the call, most frequent first.

    call, num_launches, num_kernels, call_ns, device_ns, delay_ns (sums), short_kernels, slow_calls, late_starts. A call
    is slow above `slow_call_ns`. A short kernel is work that took less than its call, which was not slow. Work that
    began more than `late_start_ns` after its call is late, as it is whenever the queue is long.
    """
    call, device, delay = (pl.col(name) for name in ("call_ns", "device_ns", "delay_ns"))
    return (
        launches(trace, compat=compat)
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
        .sort("num_launches", "call", descending=[True, False])
    )


def launch_distribution(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """How `call`, `device` and `delay` of `launches` are spread.

    measure, count, mean_ns, std_ns, min_ns, p25_ns, p50_ns, p75_ns, max_ns.
    """
    table = launches(trace, compat=compat).select(call="call_ns", device="device_ns", delay="delay_ns")
    return describe(table.unpivot(variable_name="measure", value_name="time_ns"), ["measure"], "time_ns", "_ns")
