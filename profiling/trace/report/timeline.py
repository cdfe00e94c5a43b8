"""The events of a step that the report draws."""

import numpy as np
import polars as pl

from ..kinds import ON_DEVICE, Kind
from ..tables import Trace

MAX_EVENTS = 200_000
"""What a browser draws smoothly and a mail still carries: about 15 bytes each."""
SCHEMA = {
    "rank": pl.Int64,
    "place": pl.String,
    "track": pl.String,
    "start_ns": pl.Int64,
    "dur_ns": pl.Int64,
    "name": pl.String,
    "kind": pl.String,
}
_HIDDEN = (Kind.OTHER, Kind.COUNTERS)  # the range of the whole recording would lie over everything
# Rows of their own, or kernels would stand at every depth, and operators below dozens of Python's frames.
_PARTS = {Kind.DEVICE_ANNOTATION.value: " · annotations", Kind.PYTHON.value: " · Python"}
_OF_DEVICES = (*ON_DEVICE, Kind.SYNC, Kind.DEVICE_ANNOTATION)


def timeline_of(
    trace: Trace, *, rank: int | None = None, step: int | None = None, max_events: int = MAX_EVENTS
) -> tuple[pl.DataFrame, list[str]]:
    """What ran from the begin of a step to the end of the device's work that it launched, and what was left out.

    Without `step` the one of median length; in a trace without steps everything. Columns: see `SCHEMA`; by place
    ("device" or "host"), track and start, containing events first. Of too many events the shortest go, Python's first.
    Raises: ValueError if the trace does not have that step.
    """
    events = trace.events.filter(~pl.col("kind").is_in([kind.value for kind in _HIDDEN]))
    window = _window(trace, step)
    if window:
        events = events.filter((pl.col("ts") < window[1]) & (pl.col("ts") + pl.col("dur") > window[0]))
    notes: list[str] = []
    for what, droppable in (
        ("Python calls", pl.col("kind") == Kind.PYTHON.value),
        ("events", ~pl.col("kind").is_in([Kind.ANNOTATION.value])),
    ):
        over = len(events) - max_events
        if over > 0:
            events, note = _without_shortest(events, droppable, over, what)
            notes += note
    part = pl.col("kind").replace_strict(_PARTS, default="", return_dtype=pl.String)
    shown = (
        events.select("track", "ts", "dur", "name", pl.col("kind").cast(pl.String))
        .join(_labels(events, trace), on="track")
        .with_columns(part=part)
        .sort("place", "pid", "tid", "part", "ts", "dur", descending=[False, False, False, False, False, True])
        .select(
            pl.lit(rank if rank is not None else trace.rank or 0, dtype=pl.Int64).alias("rank"),
            "place",
            (pl.col("label") + pl.col("part")).alias("track"),
            pl.col("ts").alias("start_ns"),
            pl.col("dur").alias("dur_ns"),
            pl.col("name").cast(pl.String),
            "kind",
        )
    )
    return shown, notes


def _window(trace: Trace, step: int | None) -> tuple[int, int] | None:
    """Begin and end, nanoseconds; None for everything."""
    steps = trace.steps.sort("dur")
    if step is None and not len(steps):
        return None
    chosen = steps[len(steps) // 2] if step is None else steps.filter(pl.col("step") == step)[:1]
    if not len(chosen):
        raise ValueError(f"step = {step}: not in the trace; it has {trace.steps['step'].to_list()}")
    begin, end = int(chosen["ts"][0]), int(chosen["ts"][0]) + int(chosen["dur"][0])
    launched = trace.of(Kind.LAUNCH).filter(pl.col("ts").is_between(begin, end, closed="left"))["correlation"].unique()
    work = trace.device.filter((pl.col("correlation") >= 0) & pl.col("correlation").is_in(launched.implode()))
    last = (work["ts"] + work["dur"]).max() if len(work) else None
    return begin, max(end, int(last)) if isinstance(last, int) else end


def _without_shortest(
    events: pl.DataFrame, droppable: pl.Expr, num_over: int, what: str
) -> tuple[pl.DataFrame, list[str]]:
    """At least so many events fewer, if there are so many that may go, and a sentence."""
    lengths = np.sort(events.filter(droppable)["dur"].to_numpy())
    if not len(lengths):
        return events, []
    longest_ns = int(lengths[min(num_over, len(lengths)) - 1])
    kept = events.filter(~(droppable & (pl.col("dur") <= longest_ns)))
    gone = len(events) - len(kept)
    return kept, [f"The timeline leaves out {gone:,} {what} of up to {longest_ns / 1000:g} µs: too many to draw."]


def _labels(events: pl.DataFrame, trace: Trace) -> pl.DataFrame:
    """(track, pid, tid, place, label) of the tracks that have events."""
    device = pl.col("kind").is_in([kind.value for kind in _OF_DEVICES]).any()
    places = events.group_by("track").agg(
        pl.when(device).then(pl.lit("device")).otherwise(pl.lit("host")).alias("place")
    )
    tid = pl.col("tid").cast(pl.String)
    on_device = "GPU " + pl.col("pid").cast(pl.String) + " · " + pl.col("thread").fill_null("stream " + tid)
    on_host = pl.col("thread").fill_null("thread " + tid)
    label = pl.when(pl.col("place") == "device").then(on_device).otherwise(on_host).str.strip_chars().alias("label")
    return places.join(trace.tracks, on="track").select("track", "pid", "tid", "place", label)
