"""Memory of the allocator over time, and who holds it at its peak.

A trace that was recorded with `profile_memory=True` and read with `detail=True` has an instant for each allocation and
each release: its address, its bytes (negative for a release) and the totals after it. An instant belongs to the
operator that started last of those that run at that time on any thread, and to the phase of the main thread; what was
held before the trace began is a row of its own, so that the rows of a peak add up to it.

`export_memory_timeline` of PyTorch writes another file, `*.raw.json[.gz]`, with the category of each allocation.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from ..errors import TraceError
from .kinds import Kind
from .nesting import innermost_at
from .phases import phases
from .tables import Trace

BEFORE = "(before the trace)"
CATEGORIES = (
    "parameter",
    "optimizer_state",
    "input",
    "temporary",
    "activation",
    "gradient",
    "autograd_detail",
    "unknown",
)
"""Of `export_memory_timeline`, by their number in the file."""
_MEMORY = "[memory]"
_ALLOCATES = r"^aten::(new_)?(empty|zeros|ones|full|resize)(_|$)"
_MAX_TIMELINE_BYTES = 1 << 30

_TIMELINE = {"device_type": pl.Int64, "device": pl.Int64, "ts": pl.Int64, "allocated": pl.Int64, "reserved": pl.Int64}
_PEAKS = {
    "device_type": pl.Int64,
    "device": pl.Int64,
    "ts": pl.Int64,
    "step": pl.Int64,
    "phase": pl.String,
    "peak_bytes": pl.Int64,
    "peak_reserved_bytes": pl.Int64,
    "first_bytes": pl.Int64,
    "last_bytes": pl.Int64,
    "num_allocations": pl.Int64,
    "allocated_bytes": pl.Int64,
}
_HELD = {
    "device_type": pl.Int64,
    "device": pl.Int64,
    "phase": pl.String,
    "operator": pl.String,
    "num_blocks": pl.Int64,
    "bytes": pl.Int64,
}


def memory_timeline(trace: Trace, *, max_points: int = 4000) -> pl.DataFrame:
    """(device_type, device, ts, allocated, reserved) of each device, in bytes; device_type 0 is the host, 1 CUDA.

    Of more points, in each of as many stretches the highest one is kept, so that no peak is lost.
    """
    parts = [_thinned(mine.select(*_TIMELINE), max_points) for mine in _by_device(trace)]
    return pl.concat(parts) if parts else pl.DataFrame(schema=_TIMELINE)


def memory_peaks(trace: Trace) -> pl.DataFrame:
    """A row for each device: when and in which step (-1 for none) and phase most was allocated, and how much."""
    found = phases(trace)
    rows: list[dict[str, Any]] = []
    for mine in _by_device(trace):
        at = int(mine["allocated"].to_numpy().argmax())
        ts = mine["ts"][at]
        code = pl.Series(found.at(found.main, np.array([ts])))
        step = trace.steps.filter((pl.col("ts") <= ts) & (ts < pl.col("ts") + pl.col("dur")))["step"]
        gained = mine.filter(pl.col("bytes") > 0)["bytes"]
        rows.append(
            {
                "device_type": mine["device_type"][0],
                "device": mine["device"][0],
                "ts": ts,
                "step": step[0] if len(step) else -1,
                "phase": found.named(code)[1][0],
                "peak_bytes": mine["allocated"][at],
                "peak_reserved_bytes": mine["reserved"].max(),
                "first_bytes": mine["allocated"][0] - mine["bytes"][0],
                "last_bytes": mine["allocated"][-1],
                "num_allocations": len(gained),
                "allocated_bytes": gained.sum(),
            }
        )
    return pl.DataFrame(rows, schema=_PEAKS)


def held_at_peak(trace: Trace) -> pl.DataFrame:
    """What was allocated at the peak of each device, by the phase and the operator that allocated it; most first."""
    found = phases(trace)
    parts: list[pl.DataFrame] = []
    for mine in _by_device(trace):
        at = int(mine["allocated"].to_numpy().argmax())
        latest = mine.head(at + 1).unique("address", keep="last", maintain_order=True)
        held = latest.filter(pl.col("bytes") > 0)
        moments = held["ts"].to_numpy()
        held = held.with_columns(
            phase=found.named(pl.Series(found.at(found.main, moments), dtype=pl.Int64))[1],
            operator=_operators_at(trace, moments),
        )
        keys = ["device_type", "device", "phase", "operator"]
        summed = held.group_by(keys).agg(pl.len().cast(pl.Int64).alias("num_blocks"), pl.col("bytes").sum())
        rest = mine["allocated"][at] - held["bytes"].sum()
        before = mine.head(1).select(
            "device_type",
            "device",
            phase=pl.lit(BEFORE),
            operator=pl.lit(""),
            num_blocks=pl.lit(None, pl.Int64),
            bytes=pl.lit(rest, pl.Int64),
        )
        parts.append(pl.concat([summed, before]).filter(pl.col("bytes") != 0))
    if not parts:
        return pl.DataFrame(schema=_HELD)
    return pl.concat(parts).sort("device_type", "device", "bytes", "operator", descending=[False, False, True, False])


def read_memory_timeline(path: Path) -> pl.DataFrame:
    """Bytes by category over time, of a file of `export_memory_timeline`: ts (ns; 0 is the first), and `CATEGORIES`.

    What was allocated before the first event has the time of that event.
    Raises: TraceError if the file is missing, unreadable, or no such timeline.
    """
    rows = _timeline_rows(path)
    if not rows:
        return pl.DataFrame(schema={"ts": pl.Int64} | dict.fromkeys(CATEGORIES, pl.Int64))
    table = np.array([[row[0], row[2], row[3]] for row in rows], dtype=np.int64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    ts, change, category = table.T
    if ((category < 0) | (category >= len(CATEGORIES))).any():
        raise TraceError(f"{path}: a category outside of 0 to {len(CATEGORIES) - 1}; is it a raw memory timeline?")
    began = ts[ts > 0].min() if (ts > 0).any() else 0
    ts = np.where(ts < 0, began, ts) - began
    sizes = {name: np.cumsum(np.where(category == number, change, 0)) for number, name in enumerate(CATEGORIES)}
    frame = pl.DataFrame({"ts": ts, **sizes})
    return frame.group_by("ts", maintain_order=True).last()


def _timeline_rows(path: Path) -> list[list[int]]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            text = file.read(_MAX_TIMELINE_BYTES + 1)
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such memory timeline") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    if len(text) > _MAX_TIMELINE_BYTES:
        raise TraceError(f"{path}: more than {_MAX_TIMELINE_BYTES >> 20} MiB unpacked; record fewer steps")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not JSON; is it a raw memory timeline?") from error
    if not isinstance(rows, list) or not all(_is_row(row) for row in cast(list[Any], rows)):
        raise TraceError(f"{path}: not a list of [time, action, bytes, category]; is it a raw memory timeline?")
    return cast(list[list[int]], rows)


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(cast(list[Any], row)) != 4:
        return False
    ts, _, change, category = cast(list[Any], row)
    return all(type(value) is int and abs(value) < 1 << 60 for value in (ts, change, category))


def _by_device(trace: Trace) -> list[pl.DataFrame]:
    """Allocator events of each device: device_type, device, ts, address, bytes, allocated, reserved."""
    needed = {"Bytes": "bytes", "Addr": "address", "Device Type": "device_type", "Device Id": "device"}
    instants = trace.instants
    if not set(needed) <= set(instants.columns):
        return []
    events = instants.filter(pl.col("name").cast(pl.String) == _MEMORY).drop_nulls("Bytes")
    for column in ("Total Allocated", "Total Reserved"):
        if column not in events.columns:
            events = events.with_columns(pl.lit(None, pl.Int64).alias(column))
    events = events.rename(needed | {"Total Allocated": "allocated", "Total Reserved": "reserved"})
    events = events.with_columns(pl.col("device_type", "device", "address").fill_null(-1))
    parts = events.partition_by("device_type", "device", maintain_order=True)
    # Without totals the curve begins at 0.
    return [
        mine.with_columns(pl.coalesce("allocated", pl.col("bytes").cum_sum()), pl.col("reserved").fill_null(0))
        for mine in parts
    ]


def _thinned(events: pl.DataFrame, max_points: int) -> pl.DataFrame:
    if events.height <= max_points:
        return events
    stretch = pl.int_range(pl.len()) * max_points // pl.len()
    highest = events.with_columns(stretch=stretch).sort("stretch", "allocated", maintain_order=True)
    return highest.group_by("stretch", maintain_order=True).last().drop("stretch")


def _operators_at(trace: Trace, moments: np.ndarray) -> pl.Series:
    """Name of the operator that started last of those that run, on any thread; empty for none.

    One that does nothing but allocate gives way to the one that called it.
    """
    name = pl.col("name").cast(pl.String)
    operators = trace.of(Kind.OPERATOR).filter(pl.col("dur") > 0).with_columns(name)
    found = pl.Series("name", [None] * len(moments), dtype=pl.String)
    for some in (operators.filter(~name.str.contains(_ALLOCATES)), operators):
        start, end = some["ts"].to_numpy(), (some["ts"] + some["dur"]).to_numpy()
        at = pl.Series("at", innermost_at(start, end, moments), dtype=pl.Int64)
        known = at.to_frame().select(pl.when(pl.col("at") >= 0).then("at")).to_series()
        found = pl.select(pl.coalesce(found, some["name"].gather(known))).to_series()
    return found.fill_null("")
