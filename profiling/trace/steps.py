"""Where each nanosecond of a step went: computing, communicating, copying, nothing; and in which phase.

The five parts of a row (defined in `segments`) add up to its window, to the nanosecond; all computing is
`compute_ns + overlapped_communication_ns`.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from .intervals import measure, union
from .kinds import Kind
from .nesting import NONE, moments_of
from .phases import Phases, phases
from .segments import PARTS, By, Windows, pieces, segments, windows
from .tables import Trace

PART_COLUMNS = tuple(f"{part}_ns" for part in PARTS)
MAX_PHASES = 200
"""Phases (with what they are within) that keep a row; time in rarer ones counts for `RARER`."""
RARER = "(rarer phases)"
STEP_SCHEMA = {
    "step": pl.Int64,
    "device": pl.Int64,
    "start_ns": pl.Int64,
    "window_ns": pl.Int64,
    **dict.fromkeys(PART_COLUMNS, pl.Int64),
    "earlier_ns": pl.Int64,
    "unlinked_ns": pl.Int64,
    "num_pieces": pl.Int64,
}
PHASE_SCHEMA = {
    "step": pl.Int64,
    "device": pl.Int64,
    "within": pl.String,
    "phase": pl.String,
    **dict.fromkeys(PART_COLUMNS, pl.Int64),
}
HOST_SCHEMA = {
    "step": pl.Int64,
    "within": pl.String,
    "phase": pl.String,
    "own_ns": pl.Int64,
    "operator_ns": pl.Int64,
    "runtime_ns": pl.Int64,
}


def breakdown(trace: Trace, *, by: By = "time") -> tuple[pl.DataFrame, pl.DataFrame]:
    """`step_breakdown` and `phase_breakdown`, at the cost of one."""
    found, steps = phases(trace), windows(trace)
    if not len(steps.start):
        return pl.DataFrame(schema=STEP_SCHEMA), pl.DataFrame(schema=PHASE_SCHEMA)
    work = pieces(trace, found, steps)
    cut = segments(trace, work, found, steps, by)
    sums = cut.group_by("step", "device", "code").agg(
        *(pl.col("ns").filter(pl.col("part") == index).sum().alias(key) for index, key in enumerate(PART_COLUMNS)),
        pl.col("ns").sum(),
        earlier_ns=pl.col("ns").filter("earlier").sum(),
        unlinked_ns=pl.col("ns").filter("unlinked").sum(),
    )
    totals = sums.group_by("step", "device").agg(pl.col(*PART_COLUMNS, "ns", "earlier_ns", "unlinked_ns").sum())
    totals = totals.join(_num_pieces(work, steps, by), on=["step", "device"], how="left").rename({"ns": "window_ns"})
    totals = _with_numbers(totals, steps).with_columns(pl.col("num_pieces").fill_null(0))
    return totals.select(pl.col(key).cast(kind) for key, kind in STEP_SCHEMA.items()), _phase_rows(sums, found, steps)


def step_breakdown(trace: Trace, *, by: By = "time") -> pl.DataFrame:
    """One row for each step and device: the parts of `PARTS`, which add up to `window_ns`.

    `by="launch"` gives each piece of work to the step that launched it, however late it ran, and idle time to the step
    whose work ended it; a row without a step is work of none. `earlier_ns`: work in the window that was launched before
    it; `unlinked_ns`: work whose launch is not in the trace (with `by="launch"`, of the step that it began in).
    `num_pieces`: kernels, copies and fills that began in the window (were launched in it).
    A trace without steps has one row for each device, of step -1. A trace without a device has device -1, the host
    itself: its operators compute, its collectives communicate.
    """
    return breakdown(trace, by=by)[0]


def phase_breakdown(trace: Trace, *, by: By = "time") -> pl.DataFrame:
    """One row for each step, device, phase and what the phase is within: the same parts; sums are those of the step."""
    return breakdown(trace, by=by)[1]


def host_phases(trace: Trace) -> pl.DataFrame:
    """One row for each step and phase of the main thread: how long it was innermost, and what the thread did in it.

    `own_ns` adds up to the step. Of it, `operator_ns` were in operators and `runtime_ns` in calls of the device's
    runtime.
    """
    found, steps = phases(trace), windows(trace)
    if not len(steps.start):
        return pl.DataFrame(schema=HOST_SCHEMA)
    main = found.host.get(found.main)
    edges = [steps.start, steps.end, *([main.start, main.end] if main else [])]
    cuts = moments_of(*edges, first=int(steps.start[0]), last=int(steps.end.max()))
    at = cuts[:-1]
    done = {"own_ns": np.diff(cuts)}
    for key, kind in (("operator_ns", Kind.OPERATOR), ("runtime_ns", Kind.LAUNCH)):
        mine = trace.places(kind)
        mine = mine[trace.events["track"].to_numpy()[mine] == found.main]
        times = union(*(trace.events[each].to_numpy()[mine] for each in ("ts", "dur")))
        done[key] = measure(times, at, cuts[1:])
    frame = pl.DataFrame({"step": steps.at(at), "code": found.at(found.main, at), "ns": done["own_ns"], **done})
    frame = frame.filter(pl.col("step") != NONE).with_columns(device=pl.lit(0, dtype=pl.Int64))
    sums = frame.group_by("step", "device", "code").agg(pl.col("ns", *done).sum())
    return _phase_rows(sums, found, steps, HOST_SCHEMA)


def _phase_rows(
    sums: pl.DataFrame, found: Phases, steps: Windows, schema: Mapping[str, type[pl.DataType]] = PHASE_SCHEMA
) -> pl.DataFrame:
    """Sums by code, with the names of their phases; rare ones as one."""
    within, phase = found.named(sums["code"])
    order = sums.group_by("code").agg(pl.col("ns").sum()).sort("ns", "code", descending=[True, False])["code"]
    kept = sums["code"].is_in(order.head(MAX_PHASES).implode())
    sums = sums.with_columns(within=within, phase=phase, kept=kept).with_columns(
        pl.when("kept").then(pl.col(key)).otherwise(pl.lit(RARER)).alias(key) for key in ("within", "phase")
    )
    columns = [key for key in schema if key.endswith("_ns")]
    sums = sums.group_by("step", "device", "within", "phase").agg(pl.col("ns", *columns).sum())
    sums = _with_numbers(sums.sort("ns", "within", "phase", descending=[True, False, False]), steps)
    return sums.select(pl.col(key).cast(kind) for key, kind in schema.items())


def _with_numbers(sums: pl.DataFrame, steps: Windows) -> pl.DataFrame:
    """Numbers and starts of steps for their indices, in order of time, what belongs to no step last."""
    known = pl.DataFrame({"index": np.arange(len(steps.step)), "number": steps.step, "start_ns": steps.start})
    order = pl.when(pl.col("step") == NONE).then(None).otherwise(pl.col("step"))
    sums = sums.with_columns(index=order).sort("index", "device", nulls_last=True, maintain_order=True)
    return sums.join(known, on="index", how="left", maintain_order="left").with_columns(step="number")


def _num_pieces(work: pl.DataFrame, steps: Windows, by: By) -> pl.DataFrame:
    step = work["launch_step"]
    if by == "time" and not steps.whole:
        step = pl.Series(steps.at(work["ts"].to_numpy()))
    return work.select("device", step=step).group_by("step", "device").agg(num_pieces=pl.len().cast(pl.Int64))
