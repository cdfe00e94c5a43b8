"""HTA's reading of a trace (traceinsight 0.6.1), for numbers that can be compared with its own.

It differs from the exact one in five ways. Times are floats of microseconds, and if the trace has fractions of them,
starts are rounded up and ends down, so that short events have length 0 or -1. Whatever names a stream is work on the
device: waits (`cuda_sync`) and operators too. What a kernel is depends on its name alone. With two or more profiler
steps, calls from the start of the last one on are left out, and so is work whose call is not in the trace. And all
devices of a file are one.

Sources: `trace_parser.py:371-388`, `trace.py:61-130, 801-894`, `trace_filter.py:320-374`, `types.py:109-133`.
"""

import re
from collections.abc import Callable
from typing import cast

import numpy as np
import polars as pl

from ...errors import TraceError
from ..kinds import ON_DEVICE, Kind
from ..tables import Trace
from .rows import NS_PER_US, WORK, Rows, exact_rows, with_copies

OTHER = Kind.OTHER.value
"""Work that is of none of HTA's kinds."""
_STEP = re.compile(r"ProfilerStep#\d+")
_COMMUNICATION = re.compile(r"nccl|hip|hccl|.*ncclKernel")
_MEMORY = re.compile(r"(hip)?Memcpy|(hip)?Memset|dma")
_NOT_COMPUTE = re.compile(
    r"nccl|.*Memcpy|.*Memset|.*dma|.*Sync|Stream Wait Event|cuda.*LaunchKernel|runFunction|hip|job_exe|packet|pe_exe"
    r"|cpum_exe_subgraph|hccl|collective_subgraph_execution"
)
_MAX_PAIRS = 1 << 20
_HAS_CORRELATION = pl.col("correlation") != -1
_IS_MARK = pl.col("kind").is_in([Kind.ANNOTATION.value, Kind.DEVICE_ANNOTATION.value])


def kind_of_name(name: str) -> str:
    """What HTA takes a kernel of this name for."""
    if _COMMUNICATION.match(name):
        return Kind.COMMUNICATION.value
    if _MEMORY.match(name):
        return Kind.MEMORY.value
    return OTHER if _NOT_COMPUTE.match(name) else Kind.COMPUTE.value


def compat_rows(trace: Trace, *, rounding: bool = True, include_last_step: bool = False) -> Rows:
    """The rows that HTA counts; without `rounding` those of its `HTA_DISABLE_NS_ROUNDING`.

    Raises: TraceError if many calls and much work have the same correlation.
    """
    every = _in_microseconds(trace, rounding=rounding)
    some = every.filter((pl.col("stream") != -1) | _HAS_CORRELATION | _IS_MARK | pl.col("on_device"))
    linked = some.filter(pl.col("on_device") & _HAS_CORRELATION)["correlation"].unique()
    _mind_pairs(trace, some)
    kept = _on_host_in_steps(some, include_last_step=include_last_step)
    frame, starts = some, every["ts"]
    if kept is not None:
        # An inner join, as HTA's: work without a call goes, and work with two calls is there twice.
        calls = some.filter(kept & _HAS_CORRELATION).select("correlation")
        work = some.filter("on_device").join(calls, on="correlation", maintain_order="left")
        frame = pl.concat([work, some.filter(kept)]).sort("ts", maintain_order=True)
        starts = pl.concat([work["ts"], every.filter(kept)["ts"]])
    calls = frame.filter((pl.col("stream") == -1) & _HAS_CORRELATION)
    marks = frame.filter(_IS_MARK)
    return Rows(
        device=with_copies(trace, _work(frame, _first_start(every))),
        calls=calls.select(
            "row", "ts", "dur", "name", "correlation", linked=pl.col("correlation").is_in(linked.implode())
        ),
        annotations=marks.select("ts", "dur", "name", on_device=pl.col("kind") == Kind.DEVICE_ANNOTATION.value),
        compat=True,
        duration_ns=round(float(np.ptp(starts.to_numpy())) * NS_PER_US) if len(starts) else 0,
    )


def _mind_pairs(trace: Trace, some: pl.DataFrame) -> None:
    """Raise TraceError if HTA's joins of calls and work would have far more rows than the trace."""
    counts = some.filter(_HAS_CORRELATION).group_by("correlation")
    sides = counts.agg(work=pl.col("on_device").sum().cast(pl.Int64), calls=(~pl.col("on_device")).sum().cast(pl.Int64))
    num_pairs = sides.select((pl.col("work") * pl.col("calls")).sum()).item()
    if num_pairs > _MAX_PAIRS + 4 * some.height:
        raise TraceError(f"{trace.path}: {num_pairs} pairs of calls and kernels by correlation; HTA cannot read this")


def _in_microseconds(trace: Trace, *, rounding: bool) -> pl.DataFrame:
    """Every event that HTA loads, with times as it has them, and whether it takes it for one on a device."""
    ts_ns = trace.events["ts"].to_numpy() - trace.base_ns
    # The float that a reader of JSON makes is q + r/1000, rounded once: q fits a double, and r/1000 is near no tie.
    whole, part = np.divmod(ts_ns, NS_PER_US)
    ts, dur = whole + part / NS_PER_US, trace.events["dur"].to_numpy() / NS_PER_US
    if rounding and part.any():
        end = np.floor(ts + dur)
        ts = np.ceil(ts)
        dur = end - ts
    # ROCm gives calls the address of a stream, which HTA takes for none.
    stream = pl.when(pl.col("kind") != Kind.LAUNCH.value).then("stream").otherwise(-1)
    every = trace.events.select("row", "name", "kind", "correlation", "stream")
    every = every.with_columns(ts=pl.Series(ts), dur=pl.Series(dur), stream=stream)
    every = every.with_columns(
        on_device=((pl.col("stream") >= 0) & (pl.col("correlation") >= 0))
        | _named(every, lambda name: name in ("Event Sync", "Context Sync"))
    )
    # HTA drops the category `Trace`: the range of the whole capture.
    capture = _named(every, lambda name: name.startswith("PyTorch Profiler"))
    every = every.filter((pl.col("kind") != OTHER) | ~capture)
    first = pl.col("ts").min()
    return every.with_columns(pl.col("ts") - first, end=pl.col("ts") + pl.col("dur"))


def _named(frame: pl.DataFrame, wanted: Callable[[str], object]) -> pl.Expr:
    """Whether the name of a row is a wanted one; each name is looked at once."""
    names: list[str] = cast(pl.Enum, frame["name"].dtype).categories.to_list()
    return pl.col("name").to_physical().is_in([code for code, name in enumerate(names) if wanted(name)])


def _on_host_in_steps(some: pl.DataFrame, *, include_last_step: bool) -> pl.Expr | None:
    """Which rows are of the host and count; None if all rows do, as there are not two steps."""
    steps = some.filter(~pl.col("on_device") & _named(some, _STEP.match))
    if steps["name"].n_unique() < 2:
        return None
    last_start, last_end = steps.select(pl.col("ts").max(), pl.col("end").max()).row(0)
    # HTA shifts `ts` to begin at 0, and not the ends that it compares with: all rows are before the last end.
    in_steps = (pl.col("ts") <= last_end) if include_last_step else (pl.col("ts") < last_start)
    return ~pl.col("on_device") & in_steps


def _first_start(every: pl.DataFrame) -> float | None:
    """When the event begins that stands first in the file: the earliest of the name that was met first.

    HTA writes the index 0 for "there is no call", and then finds the event of that index (`trace.py:115`).
    """
    code = pl.col("name").to_physical()  # names are numbered in the order in which they were met
    return every.filter(code == code.min()).select(pl.col("ts").min()).item()


def _work(frame: pl.DataFrame, first_start: float | None) -> pl.DataFrame:
    """What has a stream, with HTA's kinds and the last of its calls."""
    callers = frame.filter(~pl.col("on_device") & _HAS_CORRELATION)
    callers = callers.group_by("correlation").agg(call_ts=pl.col("ts").last())
    device = frame.filter(pl.col("stream") != -1)
    names = device["name"].unique()
    kinds = pl.DataFrame({"name": names, "as_hta": [kind_of_name(name) for name in names.cast(pl.String).to_list()]})
    return (
        device.join(kinds, on="name", how="left", maintain_order="left")
        .join(callers, on="correlation", how="left", maintain_order="left")
        .select(
            *WORK,
            kind=pl.col("as_hta").cast(pl.Enum([kind.value for kind in Kind])),
            device=pl.lit(-1, dtype=pl.Int64),
            call_ts=pl.when("on_device").then(pl.col("call_ts").fill_null(pl.lit(first_start, dtype=pl.Float64))),
            occupies=pl.col("kind").is_in([kind.value for kind in ON_DEVICE]),
        )
    )


def rows_of(trace: Trace | Rows, *, compat: bool) -> Rows:
    """The rows of a trace in one of the readings; rows that were made before stand as they are."""
    if not isinstance(trace, Rows):
        return compat_rows(trace) if compat else exact_rows(trace)
    if compat and not trace.compat:
        raise ValueError("compat = True: these rows are of the exact reading; pass the trace, or compat_rows(trace)")
    return trace
