"""Operators by name; and all operations of one step, and what changed between two: HTA's `compare_traces`, `ops_diff`.

Operations are flat: neither callers nor shapes, nor names that changed; `difference` has those. They are here for a
first look, and to be compared with HTA. What runs on the host belongs to the step in which it starts, what runs on a
device to that in which it was launched. With `compat` times are HTA's: whole microseconds, starts rounded up and ends
down.
"""

from typing import Literal

import numpy as np
import polars as pl

from .kinds import ON_DEVICE, Kind
from .launchers import launch_calls, launchers, parents
from .tables import Trace

Where = Literal["all", "host", "device"]
_US = 1000
OPERATORS = {
    "name": pl.String,
    "count": pl.Int64,
    "total_ns": pl.Int64,
    "own_ns": pl.Int64,
    "num_kernels": pl.Int64,
    "kernel_ns": pl.Int64,
}
"""Columns of `operators`."""


def operators(trace: Trace) -> pl.DataFrame:
    """Operators of the host by name, over the whole trace, the longest by their own time first.

    `own_ns` is `total_ns` without the operators inside. `num_kernels` and `kernel_ns` are what an operator started
    itself: work of a device belongs to the innermost.
    """
    found = trace.of(Kind.OPERATOR)
    started = launchers(trace).select(pl.col("operator").cast(pl.Int64), dur=trace.device["dur"])
    started = started.group_by("operator").agg(num_kernels=pl.len().cast(pl.Int64), kernel_ns=pl.col("dur").sum())
    rows = found.select(pl.col("row").cast(pl.Int64), "name", "dur", own=pl.Series(_own_ns(found), dtype=pl.Int64))
    rows = rows.join(started, left_on="row", right_on="operator", how="left")
    summed = rows.group_by("name").agg(
        pl.len().alias("count"),
        pl.col("num_kernels", "kernel_ns").sum(),
        total_ns=pl.col("dur").sum(),
        own_ns=pl.col("own").sum(),
    )
    summed = summed.select(pl.col(column).cast(dtype) for column, dtype in OPERATORS.items())
    return summed.sort("own_ns", "name", descending=[True, False])


def _own_ns(found: pl.DataFrame) -> np.ndarray:
    """Length of each operator without those directly inside of it, on the same thread."""
    dur, own = found["dur"].to_numpy(), found["dur"].to_numpy().copy()
    end = found["ts"].to_numpy() + dur
    tracks = found["track"].to_numpy()
    for track in found["track"].unique().to_list():
        mine = np.flatnonzero(tracks == track)
        around = parents(end[mine])
        inside = np.flatnonzero(around >= 0)
        np.subtract.at(own, mine[around[inside]], dur[mine[inside]])
    return np.maximum(own, 0)  # where the clock's digits let two of them overlap


def operations(trace: Trace, *, step: int | None = None, where: Where = "all", compat: bool = False) -> pl.DataFrame:
    """(name, on_device, count, total_ns) of what belongs to a step, by default the first; of all without steps."""
    rows = _of_step(trace, step).select("ts", "dur", name=pl.col("name").cast(pl.String), on_device=_ON_DEVICE)
    if where != "all":
        rows = rows.filter(pl.col("on_device") == (where == "device"))
    if compat:
        rows = _rounded(trace, rows)
    summed = rows.group_by("name", "on_device").agg(
        pl.len().cast(pl.Int64).alias("count"), total_ns=pl.col("dur").sum()
    )
    return summed.sort("name", "on_device")


def compare_operations(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Counts and durations of both sides by name, and the change: added, deleted, increased, decreased, unchanged."""
    sides = [
        frame.group_by("name")
        .agg(pl.col("count", "total_ns").sum())
        .rename({"count": f"count_{side}", "total_ns": f"total_ns_{side}"})
        for side, frame in (("before", before), ("after", after))
    ]
    table = sides[0].join(sides[1], on="name", how="full", coalesce=True)
    table = table.with_columns(pl.exclude("name").fill_null(0))
    more = pl.col("count_after") - pl.col("count_before")
    change = (
        pl.when(pl.col("count_before") == 0)
        .then(pl.lit("added"))
        .when(pl.col("count_after") == 0)
        .then(pl.lit("deleted"))
        .otherwise(
            pl.when(more > 0)
            .then(pl.lit("increased"))
            .when(more < 0)
            .then(pl.lit("decreased"))
            .otherwise(pl.lit("unchanged"))
        )
    )
    duration = pl.col("total_ns_after") - pl.col("total_ns_before")
    return table.with_columns(change=change, change_count=more, change_ns=duration).sort("name")


_ON_DEVICE = pl.col("kind").is_in([*(kind.value for kind in ON_DEVICE), Kind.SYNC.value])


def _of_step(trace: Trace, step: int | None) -> pl.DataFrame:
    """The events of a step."""
    steps = trace.steps
    if not steps.height:
        return trace.events
    chosen = steps.filter(pl.col("step") == (steps["step"].min() if step is None else step))
    inside = pl.lit(False)
    for start, dur in chosen.select("ts", "dur").rows():
        inside = inside | pl.col("ts").is_between(start, start + dur, closed="left")
    calls = launch_calls(trace)
    launched = calls.filter(inside).select("correlation").with_columns(launched=True)
    linked = calls.select("correlation").with_columns(linked=True)
    device = trace.events.filter(_ON_DEVICE)
    device = device.join(launched, on="correlation", how="left", maintain_order="left")
    device = device.join(linked, on="correlation", how="left", maintain_order="left")
    device = device.filter(pl.col("launched") | (pl.col("linked").is_null() & inside)).drop("launched", "linked")
    host = trace.events.filter(~_ON_DEVICE & (pl.col("kind") != Kind.DEVICE_ANNOTATION.value) & inside)
    return pl.concat([host, device])


def _rounded(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with HTA's times, in nanoseconds; a trace in whole microseconds is left as it is."""
    ts = trace.events["ts"].to_numpy() - trace.base_ns
    if not (ts % _US).any():
        return rows
    start = rows["ts"].to_numpy() - trace.base_ns
    first, last = -(-start // _US), (start + rows["dur"].to_numpy()) // _US
    return rows.with_columns(dur=pl.Series((last - first) * _US, dtype=pl.Int64))
