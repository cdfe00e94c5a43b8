"""The events of a step that the report draws."""

import numpy as np
import polars as pl

from ..kinds import ON_DEVICE, Kind
from ..tables import Trace

MAX_EVENTS = 200_000
"""What a browser draws smoothly and a mail still carries: about 12 bytes each."""
SCHEMA = {
    "rank": pl.Int64,
    "place": pl.String,
    "track": pl.String,
    "start_ns": pl.Int64,
    "dur_ns": pl.Int64,
    "name": pl.String,
    "kind": pl.String,
}
_HIDDEN = (Kind.OTHER, Kind.COUNTERS)  # the range of the whole recording lies over everything


def timeline_of(
    trace: Trace, *, rank: int | None = None, step: int | None = None, max_events: int = MAX_EVENTS
) -> tuple[pl.DataFrame, list[str]]:
    """Events of a step and of the device's work that it launched, and sentences about what was left out.

    Without `step` the step of median length; in a trace without steps everything. Columns: rank, place ("device" or
    "host"), track, start_ns, dur_ns, name, kind; by track and start, containing events first. Of too many events the
    shortest go, those of Python first.
    Raises: ValueError if the trace does not have that step.
    """
    events = trace.events.filter(~pl.col("kind").is_in([kind.value for kind in _HIDDEN]))
    window = _window(trace, step)
    if window is not None:
        begin, end = window
        events = events.filter((pl.col("ts") < end) & (pl.col("ts") + pl.col("dur") > begin))
        mine = _launched_in(events, begin, trace, step)
        events = events.filter(mine)
    notes: list[str] = []
    for kinds, what in (([Kind.PYTHON], "Python calls"), (None, "events")):
        over = len(events) - max_events
        if over <= 0:
            break
        events, shortest_ns, num_gone = _without_shortest(events, kinds, over)
        notes.append(f"timeline: {num_gone} {what} shorter than {shortest_ns} ns are left out")
    on_device = pl.col("kind").is_in([*(kind.value for kind in ON_DEVICE), Kind.SYNC, Kind.DEVICE_ANNOTATION])
    shown = (
        events.with_columns(place=pl.when(on_device).then(pl.lit("device")).otherwise(pl.lit("host")))
        .join(_labels(events, trace), on=["track", "device", "stream"], how="left", nulls_equal=True)
        .select(
            pl.lit(rank if rank is not None else trace.rank or 0, dtype=pl.Int64).alias("rank"),
            "place",
            pl.col("label").alias("track"),
            pl.col("ts").alias("start_ns"),
            pl.col("dur").alias("dur_ns"),
            pl.col("name").cast(pl.String),
            pl.col("kind").cast(pl.String),
        )
    )
    return shown.sort("place", "track", "start_ns", "dur_ns", descending=[False, False, False, True]), notes
