"""Which ranks the others wait for, by HTA's method: whose last long exchange of a step begins latest.

An exchange ends on all ranks at about the same time; so the rank that enters it last is the one that was slow before.
Of the exchanges that last at least 1 % of a mean step, the last of each (stream, name) in a step stands for it; the
(stream, name) whose length differs most between the ranks is chosen; and the latest ranks in it are counted, step by
step. `collective_skew` looks at every exchange instead, and by the clocks that it corrects.

With `compat`, as HTA: names as they are, and only those that begin with `ncclKernel`, which a modern NCCL does not
write; without the last of several steps. Else any exchange counts, by the name without its algorithm and type.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from .kernel_names import normal_form
from .kinds import Kind
from .launchers import launch_calls
from .tables import Trace

EXCHANGES: dict[str, pl.DataType] = {
    "step": pl.Int64(),
    "stream": pl.Int64(),
    "name": pl.String(),
    "ts": pl.Int64(),
    "dur_ns": pl.Int64(),
    "step_start": pl.Int64(),
    "step_end": pl.Int64(),
}
"""Columns of `exchanges`."""
STRAGGLERS: dict[str, pl.DataType] = {
    "rank": pl.Int64(),
    "num_late": pl.Int64(),
    "num_steps": pl.Int64(),
    "mean_late_ns": pl.Int64(),
    "stream": pl.Int64(),
    "name": pl.String(),
}
"""Columns of `stragglers`: in how many of the steps the rank was among the latest, and how long after the earliest it
came on average."""


def exchanges(trace: Trace, *, compat: bool = False) -> pl.DataFrame:
    """Exchanges of a rank that may be the last long one of their step, with when what was launched in it ran.

    Of each (step, stream, name) those that are longer than all that follow; a trace without steps is one step, -1.
    """
    steps = _steps(trace, compat=compat)
    calls = launch_calls(trace).select("correlation", call="ts")
    work = trace.device.join(calls, on="correlation", how="left", maintain_order="left")
    moments = work["call"].fill_null(-1) if compat else work["call"].fill_null(work["ts"])
    work = work.with_columns(step=pl.Series(_within(steps, moments.to_numpy())), end=pl.col("ts") + pl.col("dur"))
    work = work.filter(pl.col("step").is_not_null())
    extent = work.group_by("step").agg(last=pl.col("end").max())
    extent = steps.rename({"start": "step_start"}).join(extent, on="step", how="left")
    extent = extent.select("step", "step_start", step_end=pl.max_horizontal("end", "last"))
    name = pl.col("name").cast(pl.String)
    if compat:
        found = work.filter(name.str.starts_with("ncclKernel") & (pl.col("stream") > 0)).with_columns(name)
    else:
        found = work.filter(pl.col("kind") == Kind.COMMUNICATION.value)
        found = found.with_columns(name.map_elements(normal_form, return_dtype=pl.String))
    group = ["step", "stream", "name"]
    found = found.sort("ts", descending=True, maintain_order=True)
    longest_after = pl.col("dur").cum_max().shift(1).over(group)
    found = found.filter(longest_after.is_null() | (pl.col("dur") > longest_after)).join(extent, on="step")
    found = found.rename({"dur": "dur_ns"}).sort("ts")
    return found.select(pl.col(column).cast(dtype) for column, dtype in EXCHANGES.items())


def stragglers(
    frame: pl.DataFrame,
    *,
    num_latest: int = 2,
    min_share: float = 0.01,
    offsets_ns: Mapping[int, int] | None = None,
) -> pl.DataFrame:
    """Ranks by how often they are among the `num_latest` last to enter the exchange that differs most.

    `frame` is that of `exchanges`, of all ranks, with `rank`; `offsets_ns` are taken from the clocks of ranks.
    """
    empty = pl.DataFrame(schema=STRAGGLERS)
    if not frame.height:
        return empty
    offset = pl.col("rank").replace_strict(dict(offsets_ns or {}), default=0, return_dtype=pl.Int64)
    frame = frame.with_columns(pl.col("ts", "step_start", "step_end") - offset)
    first = frame["step_start"].min()
    assert isinstance(first, int)
    step_ns = (frame.select(pl.col("step_end").max()).item() - first) / frame["step"].n_unique()
    group = ["stream", "name"]
    last = frame.filter(pl.col("dur_ns") >= min_share * step_ns).sort("ts", maintain_order=True)
    last = last.group_by("rank", "step", *group, maintain_order=True).last()
    spread = last.group_by("step", *group).agg(spread=pl.col("dur_ns").std())
    spread = spread.group_by(group).agg(pl.col("spread").mean()).drop_nulls("spread")
    chosen = spread.sort("spread", *group, descending=[True, False, False]).head(1)
    found = last.join(chosen, on=group)
    if not found.height:
        return empty
    found = found.with_columns(
        late=pl.col("ts").rank("min", descending=True).over("step") <= max(1, num_latest),
        late_ns=pl.col("ts") - pl.col("ts").min().over("step"),
    )
    table = found.group_by("rank", *group).agg(
        num_late=pl.col("late").sum(), num_steps=pl.len(), mean_late_ns=pl.col("late_ns").mean().round()
    )
    table = table.sort("num_late", "mean_late_ns", "rank", descending=[True, True, False])
    return table.select(pl.col(column).cast(dtype) for column, dtype in STRAGGLERS.items())


def _steps(trace: Trace, *, compat: bool) -> pl.DataFrame:
    """(step, start, end) in order of time."""
    steps = trace.steps.unique("step", keep="first").sort("ts")
    if compat and steps.height > 1:
        steps = steps.head(-1)
    if not steps.height:
        span = trace.events.select(start=pl.col("ts").min(), end=(pl.col("ts") + pl.col("dur")).max())
        return span.select(pl.lit(-1, pl.Int64).alias("step"), "start", "end")
    return steps.select("step", start="ts", end=pl.col("ts") + pl.col("dur"))


def _within(steps: pl.DataFrame, moments: np.ndarray) -> pl.Series:
    """Number of the step in which each moment lies; null for none."""
    place = np.searchsorted(steps["start"].to_numpy(), moments, side="right") - 1
    inside = (place >= 0) & (moments < steps["end"].to_numpy()[np.maximum(place, 0)])
    numbers = steps["step"].gather(np.maximum(place, 0))
    return numbers.to_frame().select(pl.when(pl.Series(inside)).then("step")).to_series()
