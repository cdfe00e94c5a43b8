"""Whose is each nanosecond of a step: a partition of the step's time, so that the parts of two runs can be subtracted.

At each instant of a window (a ProfilerStep; the whole trace, if it has none) a device has exactly one owner:

1. the kernel that computes; of several the one that started first (what started later is hidden behind it);
2. else the exchange with other ranks, which is then exposed; else the copy or fill;
3. else nobody, and the time belongs to why the next kernel had not begun. Before its launch was called: `idle`, for the
   `host` was doing something else, in the phase in which the host was. After that: `launch`, the call and the way to
   the device. If it had been launched before the device fell idle: `idle`, it was `queued` behind something.

Without a device the host is looked at in the same way: the innermost operator of the thread that takes the steps, else
one of another thread (the backward pass), else an exchange, else nobody. Kernels belong to the phase in which they were
launched. What a device still has to do after the last window is in none; so steps should be several.
"""

import re
from typing import cast

import numpy as np
import polars as pl

from ..spans import GLOO_PREFIX, NCCL_PREFIX
from .intervals import union
from .kinds import Kind
from .launchers import launchers, places
from .nesting import outermost_at
from .phases import phase_of_work, phases
from .tables import Trace

SCHEMA: dict[str, pl.DataType] = {
    "phase": pl.String(),
    "part": pl.String(),
    "name": pl.String(),
    "operator": pl.String(),
    "shapes": pl.String(),
    "count": pl.Int64(),
    "busy_ns": pl.Int64(),
    "owned_ns": pl.Int64(),
    "position": pl.Float64(),
    "num_windows": pl.Int64(),
}
"""`part`: compute, communication, memory, launch, idle. `count` and `busy_ns` are of the events that start in a window,
with their whole length; `owned_ns` adds up to the length of the windows. `position`: when, as a share of the window."""

_KEYS = ["phase", "part", "name", "operator", "shapes"]
_ORDER = {Kind.COMPUTE.value: 0, Kind.COMMUNICATION.value: 1, Kind.MEMORY.value: 2}
_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+")
_REASONS = ("nothing follows", "unknown", "host", "queued")
_EXCHANGE = ("c10d::", "record_param_comms", "_c10d_functional", GLOO_PREFIX, NCCL_PREFIX)


def attribute(trace: Trace) -> pl.DataFrame:
    """Time of all windows by phase, part, kernel, launching operator and its shapes (those only with `detail`)."""
    windows = step_windows(trace)
    found = _Phases(trace)
    device = trace.device.filter(pl.col("dur") > 0)
    if not device.height:
        parts = [_host(trace, windows, found)]
    else:
        device = _launched(trace, device, found)
        numbers: list[int] = device["device"].unique(maintain_order=True).to_list()
        each = (device.filter(pl.col("device") == number) if len(numbers) > 1 else device for number in numbers)
        parts = [_device(mine, windows, found) for mine in each]
    num_windows = windows.height * len(parts)
    every = pl.concat(parts)
    every = every.with_columns(found.label(every["phase"]))
    table = every.group_by(_KEYS, maintain_order=True).agg(
        pl.col("count", "busy_ns", "owned_ns").sum(), pl.col("position").mean(), num_windows=pl.lit(num_windows)
    )
    return table.select(pl.col(key).cast(dtype) for key, dtype in SCHEMA.items()).sort(_KEYS)


def step_windows(trace: Trace) -> pl.DataFrame:
    """(step, start, end) of what counts as a step, disjoint and in order; step is -1 if the trace has none."""
    steps = trace.steps.filter(pl.col("dur") > 0)
    if steps.height:
        steps = steps.filter(pl.col("track") == pl.col("track").mode().min())
        end = pl.col("ts") + pl.col("dur")
        start = pl.max_horizontal("ts", end.cum_max().shift(1))
        return steps.sort("ts").select("step", start=start, end=end).filter(pl.col("start") < pl.col("end"))
    known = trace.events.filter(pl.col("kind") != Kind.OTHER.value)
    events = known if known.height else trace.events
    span = events.select(step=pl.lit(-1, pl.Int64), start=pl.col("ts").min(), end=(pl.col("ts") + pl.col("dur")).max())
    return span.filter(pl.col("start") < pl.col("end"))


class _Phases:
    """In which phase the thread that takes the steps is."""

    def __init__(self, trace: Trace) -> None:
        self.found = phases(trace)
        marks = self.found.host.get(self.found.main)
        self.changes = np.concatenate([marks.start, marks.end]) if marks else np.zeros(0, dtype=np.int64)

    def when(self, times: np.ndarray) -> np.ndarray:
        """Code of the phase at each of these times."""
        return self.found.at(self.found.main, times)

    def label(self, codes: pl.Series) -> pl.Series:
        """Names of phases: `stepladder::forward`, `stepladder::forward / FSDP::all_gather (layers.#)`."""
        known = codes.unique()
        names = [
            _NUMBER.sub("#", phase if within == phase else f"{within} / {phase}")
            for within, phase in zip(*self.found.named(known), strict=True)
        ]
        return codes.replace_strict(known, pl.Series(names, dtype=pl.String), return_dtype=pl.String)


def _launched(trace: Trace, device: pl.DataFrame, found: _Phases) -> pl.DataFrame:
    """Events of a device with what launched them: called (its start; -1 unknown), caller, operator, shapes, phase."""
    calls, names = launchers(trace, device), trace.events["name"]
    shapes = trace.argument("Input Dims").select(pl.col("row").cast(pl.Int64), shapes=pl.col("value").cast(pl.String))
    calls = calls.join(shapes, left_on="operator", right_on="row", how="left", maintain_order="left")
    launch, operator = (places(calls[key].to_numpy()) for key in ("launch", "operator"))
    work = device.select("ts", "dur", "name", "kind", "track", "device").with_columns(
        calls["launch_ts"], calls["track"].alias("launch_track"), (pl.col("ts") + pl.col("dur")).alias("end")
    )
    return work.with_columns(
        pl.col("device").clip(0),
        called=pl.col("launch_ts").fill_null(-1),
        caller=names.gather(launch),
        operator=names.gather(operator),
        shapes=calls["shapes"],
        phase=pl.Series(phase_of_work(work, found.found)),
    )


def _main_track(marks: pl.DataFrame) -> int:
    """The thread with the most time in these; -1 if there are none."""
    longest = marks.group_by("track").agg(pl.col("dur").sum()).sort("dur", "track", descending=[True, False])
    return longest["track"][0] if longest.height else -1


def _operators(trace: Trace) -> pl.DataFrame:
    """Operators on the host, by start, with their shapes as a text."""
    operators = trace.of(Kind.OPERATOR).filter(pl.col("dur") > 0)
    shapes = trace.argument("Input Dims").select("row", shapes=pl.col("value").cast(pl.String))
    operators = operators.join(shapes, on="row", how="left", maintain_order="left")
    return operators.with_columns(pl.col("shapes").fill_null(""))


def _pieces(cuts: list[np.ndarray], windows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the pieces that the windows are cut into."""
    begin, end = windows["start"].to_numpy(), windows["end"].to_numpy()
    edges = np.sort(np.concatenate([*cuts, begin, end]), kind="stable")  # quick, as most of it is in order
    edges = edges[np.diff(edges, append=edges[-1:] + 1) > 0]  # np.unique makes a hash first, which takes longer
    start, length = edges[:-1], np.diff(edges)
    place = np.searchsorted(begin, start, side="right") - 1
    inside = (place >= 0) & (start < end[np.maximum(place, 0)]) if len(begin) else np.zeros(len(start), dtype=bool)
    return start[inside], length[inside]


def _device(events: pl.DataFrame, windows: pl.DataFrame, found: _Phases) -> pl.DataFrame:
    """Rows of one device: its kernels, and its empty times by reason."""
    start = events["ts"].to_numpy()
    end = start + events["dur"].to_numpy()
    called = events["called"].to_numpy()
    kinds = cast(pl.Enum, events["kind"].dtype).categories.to_list()
    rank = np.array([_ORDER.get(kind, len(_ORDER)) for kind in kinds], dtype=np.int8)[events["kind"].to_physical()]
    order = np.argsort(rank, kind="stable")  # they are in order of start
    gaps_end = union(start, end - start).start
    at, length = _pieces([start, end, called[np.searchsorted(start, gaps_end)], found.changes], windows)
    owned, idle = _owned(start, end, order, at, length)
    return pl.concat([_counted(events, owned, windows), _empty(events, at[idle], length[idle], found)])


def _owned(
    start: np.ndarray, end: np.ndarray, order: np.ndarray, at: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much of the pieces each event owns, of those that run the first in order; and which pieces nobody owns."""
    who = outermost_at(start[order], end[order], at)
    owned = np.zeros(len(start), dtype=np.int64)
    np.add.at(owned, order[who[who >= 0]], length[who >= 0])
    return owned, who < 0


def _counted(events: pl.DataFrame, owned: np.ndarray, windows: pl.DataFrame) -> pl.DataFrame:
    """Rows of events that run, given how much time each owns."""
    start = events["ts"].to_numpy()
    begin, end = windows["start"].to_numpy(), windows["end"].to_numpy()
    place = np.searchsorted(begin, start, side="right") - 1
    at = np.maximum(place, 0)
    counted = (place >= 0) & (start < end[at]) if len(begin) else np.zeros(len(start), dtype=bool)
    position = np.where(counted, (start - begin[at]) / (end - begin)[at], np.nan) if len(begin) else start * np.nan
    table = events.select(
        "phase",
        pl.col("kind").alias("part"),
        "name",
        "operator",
        "shapes",
        count=pl.Series(counted.astype(np.int64)),
        busy_ns=pl.Series(np.where(counted, events["dur"].to_numpy(), 0)),
        owned_ns=pl.Series(owned),
        position=pl.Series(position).fill_nan(None),
    ).filter((pl.col("count") > 0) | (pl.col("owned_ns") > 0))
    table = table.group_by(_KEYS, maintain_order=True).agg(
        pl.col("count", "busy_ns", "owned_ns").sum(), pl.col("position").mean()
    )
    return table.with_columns(pl.col(*_KEYS[1:]).cast(pl.String).fill_null(""))


def _empty(events: pl.DataFrame, at: np.ndarray, length: np.ndarray, found: _Phases) -> pl.DataFrame:
    """Rows of the times in which nothing runs, by what the next kernel waited for."""
    start, called = events["ts"].to_numpy(), events["called"].to_numpy()
    following = np.searchsorted(start, at, side="left")
    none_follows = following == len(start)
    following = np.minimum(following, len(start) - 1)
    call = called[following]
    reach = np.maximum.accumulate(start + events["dur"].to_numpy())
    before = np.searchsorted(start, at, side="right") - 1
    fell_idle = np.where(before >= 0, reach[np.maximum(before, 0)], np.iinfo(np.int64).min)
    reasons = [none_follows, call < 0, at < call, call < fell_idle]  # as in `_REASONS`; else it is being launched
    reason = np.select(reasons, [0, 1, 2, 3], len(_REASONS))
    own_phase = events["phase"].to_numpy()[following]
    phase = np.where(reason >= 3, own_phase, found.when(at))
    table = pl.DataFrame(
        {
            "phase": pl.Series(phase),
            "reason": reason.astype(np.int8),
            "caller": events["caller"].gather(following),
            "owned_ns": length,
        }
    )
    launching = pl.col("reason") == len(_REASONS)
    caller = pl.when(launching).then("caller")
    table = table.group_by("phase", "reason", caller, maintain_order=True).agg(pl.col("owned_ns").sum())
    word = pl.Series(_REASONS, dtype=pl.String).gather(table["reason"].replace({len(_REASONS): None}))
    return _in_full(
        table.with_columns(
            part=pl.when(launching).then(pl.lit("launch")).otherwise(pl.lit("idle")),
            name=pl.coalesce(word.alias("word"), pl.col("caller").cast(pl.String), pl.lit("")),
        )
    )


def _in_full(table: pl.DataFrame) -> pl.DataFrame:
    """Rows of empty times, summed, with the columns of kernels."""
    summed = table.group_by("phase", "part", "name", maintain_order=True).agg(pl.col("owned_ns").sum())
    return summed.select(
        "phase",
        "part",
        "name",
        operator=pl.lit(""),
        shapes=pl.lit(""),
        count=pl.lit(0, pl.Int64),
        busy_ns=pl.lit(0, pl.Int64),
        owned_ns=pl.col("owned_ns"),
        position=pl.lit(None, pl.Float64),
    )


def _host(trace: Trace, windows: pl.DataFrame, found: _Phases) -> pl.DataFrame:
    """Rows of a trace without a device: operators by their own time, and the times in which none runs."""
    name = pl.col("name").cast(pl.String)
    exchange = pl.any_horizontal(*(name.str.starts_with(prefix) for prefix in _EXCHANGE))
    marks = trace.of(Kind.ANNOTATION).filter(exchange & (pl.col("dur") > 0)).with_columns(shapes=pl.lit(""))
    events = pl.concat([_operators(trace), marks]).sort("row").with_columns(name)
    main = found.found.main if found.found.main >= 0 else _main_track(events)
    events = events.with_columns(
        pl.when(exchange).then(pl.lit(Kind.COMMUNICATION.value)).otherwise(pl.lit(Kind.COMPUTE.value)).alias("kind"),
        phase=found.when(events["ts"].to_numpy()),
        operator=pl.lit(""),
    )
    start = events["ts"].to_numpy()
    end = start + events["dur"].to_numpy()
    rank = np.where(
        (events["kind"] == Kind.COMMUNICATION.value).to_numpy(), 2, (events["track"].cast(pl.Int64) != main).to_numpy()
    )
    order = np.lexsort((-np.arange(len(start)), rank))  # the innermost is the last to start
    at, length = _pieces([start, end, found.changes], windows)
    owned, idle = _owned(start, end, order, at, length)
    rest = pl.DataFrame({"phase": found.when(at[idle]), "owned_ns": length[idle]}).with_columns(
        part=pl.lit("idle"), name=pl.lit("no operator")
    )
    return pl.concat([_counted(events, owned, windows), _in_full(rest)])
