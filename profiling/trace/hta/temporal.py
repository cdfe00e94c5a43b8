"""How long each device was busy, and how far communication ran beside computation."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from ..intervals import Intervals
from ..kinds import Kind
from ..tables import Trace, once
from .compat import rows_of
from .rows import NS_PER_US, OF_A_KERNEL, Rows

BESIDE = " overlapping "
"""Between the kinds that run at a time."""


def temporal_breakdown(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """Time of each device from its first start to its last end: computing, busy otherwise, idle.

    device, span_ns, idle_ns, compute_ns, non_compute_ns, and three shares of the span. `non_compute` is communication
    and memory that no computation hides. In HTA's reading it can be negative, where HTA raises an AssertionError.
    """
    rows = rows_of(trace, compat=compat)
    found: list[dict[str, int]] = []
    for device, work in rows.by_device():
        every, compute = rows.busy(work), _busy(rows)[device][Kind.COMPUTE.value]
        if rows.compat:
            span = every.end[-1] - every.start[0]
        else:
            span = work.select((pl.col("ts") + pl.col("dur")).max() - pl.col("ts").min()).item()
        span_ns, busy_ns, compute_ns = (rows.whole_ns(time) for time in (span, _length(every), _length(compute)))
        found.append(
            {
                "device": device,
                "span_ns": span_ns,
                "idle_ns": span_ns - busy_ns,
                "compute_ns": compute_ns,
                "non_compute_ns": busy_ns - compute_ns,
            }
        )
    times = ("span_ns", "idle_ns", "compute_ns", "non_compute_ns")
    table = pl.DataFrame(found, schema={"device": pl.Int64} | dict.fromkeys(times, pl.Int64))
    return table.with_columns(
        share("idle_ns", "span_ns").alias("idle_share"),
        share("compute_ns", "span_ns").alias("compute_share"),
        share("non_compute_ns", "span_ns").alias("non_compute_share"),
    )


def communication_overlap(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """How much of the communication of each device ran beside computation.

    device, communication_ns, overlapped_ns, overlapped_share (null without communication).
    """
    rows = rows_of(trace, compat=compat)
    found: list[dict[str, int]] = []
    for device, busy in _busy(rows).items():
        sets = {kind: busy[kind] for kind in (Kind.COMPUTE.value, Kind.COMMUNICATION.value)}
        both = _slices(sets).get(0b11, np.zeros(1)).sum().item()
        found.append(
            {
                "device": device,
                "communication_ns": rows.whole_ns(_length(sets[Kind.COMMUNICATION.value])),
                "overlapped_ns": rows.whole_ns(both),
            }
        )
    schema = {"device": pl.Int64, "communication_ns": pl.Int64, "overlapped_ns": pl.Int64}
    return pl.DataFrame(found, schema=schema).with_columns(
        share("overlapped_ns", "communication_ns").alias("overlapped_share")
    )


def kernel_kinds(trace: Trace | Rows, *, compat: bool = False) -> pl.DataFrame:
    """Busy time of each device by what ran at a time: `compute`, `compute overlapping communication`, ...

    device, kinds, time_ns, share (of the busy time), longest first. HTA cuts each slice to whole microseconds, and
    leaves out what is of no kind.
    """
    rows = rows_of(trace, compat=compat)
    found: list[dict[str, object]] = []
    for device, sets in _busy(rows).items():
        for running, lengths in _slices(sets).items():
            time_ns = int((np.trunc(lengths) * NS_PER_US if rows.compat else lengths).sum())
            kinds = BESIDE.join(kind for bit, kind in enumerate(OF_A_KERNEL) if running >> bit & 1)
            if kinds and time_ns:
                found.append({"device": device, "kinds": kinds, "time_ns": time_ns})
    table = pl.DataFrame(found, schema={"device": pl.Int64, "kinds": pl.String, "time_ns": pl.Int64})
    table = table.group_by("device", "kinds").agg(pl.col("time_ns").sum())
    return table.with_columns((pl.col("time_ns") / pl.col("time_ns").sum().over("device")).alias("share")).sort(
        "device", "time_ns", "kinds", descending=[False, True, False]
    )


@once
def _busy(rows: Rows) -> Mapping[int, Mapping[str, Intervals]]:
    """When work of each kind ran, on each device."""
    return {
        device: {
            kind: rows.busy(work.select("ts", "dur").filter((work["kind"] == kind).fill_null(False)))
            for kind in OF_A_KERNEL
        }
        for device, work in rows.by_device()
    }


def share(part: str, whole: str) -> pl.Expr:
    """A part of a whole as a fraction; null if there is no whole."""
    return pl.when(pl.col(whole) != 0).then(pl.col(part) / pl.col(whole))


def _length(times: Intervals) -> float:
    return (times.end - times.start).sum().item() if len(times.start) else 0


def _slices(sets: Mapping[str, Intervals]) -> dict[int, np.ndarray]:
    """Lengths of the pieces of time between two changes, by what runs in them: bit i for the i-th set."""
    at = np.concatenate([side for each in sets.values() for side in (each.start, each.end)])
    sizes = [(bit, len(each.start)) for bit, each in enumerate(sets.values())]
    changes = [np.repeat(np.array([1 << bit, -(1 << bit)], dtype=np.int8), size) for bit, size in sizes]
    order = np.argsort(at, kind="stable")
    running, lengths = np.cumsum(np.concatenate(changes)[order], dtype=np.int8)[:-1], np.diff(at[order])
    every = {value: lengths[running == value] for value in range(1, 1 << len(sets))}
    return {value: each for value, each in every.items() if len(each)}
