"""Operators and kernels of one step by name, and what changed between two of them: HTA's `compare_traces`, `ops_diff`.

Flat: neither callers nor shapes, nor names that changed; `difference` has those. It is here for a first look, and to be
compared with HTA. What runs on the host belongs to the step in which it starts, what runs on a device to that in which
it was launched. With `compat` times are HTA's: whole microseconds, starts rounded up and ends down.
"""

from typing import Literal

import polars as pl

from .kinds import ON_DEVICE, Kind
from .launchers import launch_calls
from .tables import Trace

Where = Literal["all", "host", "device"]
_US = 1000


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
    base = trace.header.get("baseTimeNanoseconds")
    ts = trace.events["ts"].to_numpy() - (base if isinstance(base, int) else 0)
    if not (ts % _US).any():
        return rows
    start = rows["ts"].to_numpy() - (base if isinstance(base, int) else 0)
    first, last = -(-start // _US), (start + rows["dur"].to_numpy()) // _US
    return rows.with_columns(dur=pl.Series((last - first) * _US, dtype=pl.Int64))
