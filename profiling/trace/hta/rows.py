"""What the analyses count: work on devices, the calls that started it, and annotations.

There are two readings of a trace, and the analyses are the same functions of either. The exact one takes what the
trace says: kernels, copies and fills by their category, in whole nanoseconds, all of the capture, each device by
itself. The other, in `compat`, is that of HTA.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..intervals import Intervals, union
from ..kinds import Kind
from ..launchers import call_places, launch_calls, places
from ..tables import Keeper, Trace

NS_PER_US = 1000
WORK = ("row", "ts", "dur", "name", "stream", "correlation")
OF_A_KERNEL = (Kind.COMPUTE.value, Kind.COMMUNICATION.value, Kind.MEMORY.value)
"""Kinds of work, in the order in which tables name them together."""


@dataclass(frozen=True, kw_only=True)
class Rows(Keeper):
    """Rows by start. `ts` and `dur` are nanoseconds, int64; in HTA's reading microseconds, float64."""

    device: pl.DataFrame
    """Work: row, ts, dur, name, kind, device, stream, correlation, and, null where the trace does not have them,
    `call_ts`, the start of the call that started it, `num_bytes` and `gb_per_s` of a copy. HTA's reading has waits and
    operators with a stream among them, their `occupies` is false, and one device, -1. The exact one has `call`, the
    place in `calls`."""
    calls: pl.DataFrame
    """Calls on the host: row, ts, dur, name, correlation; of each correlation the first, in HTA's reading all, with
    `linked`."""
    annotations: pl.DataFrame
    """Ranges that a program marked: ts, dur, name, on_device."""
    compat: bool
    """Whether this is HTA's reading."""
    duration_ns: int
    """From the first start to the last start of an event."""

    @property
    def unit_ns(self) -> int:
        """Nanoseconds in the unit of `ts` and `dur`."""
        return NS_PER_US if self.compat else 1

    def ns(self, time: pl.Expr) -> pl.Expr:
        """A time of these rows in whole nanoseconds."""
        return (time * NS_PER_US).round().cast(pl.Int64) if self.compat else time.cast(pl.Int64)

    def whole_ns(self, time: float) -> int:
        """The same of one number."""
        return round(time * self.unit_ns)

    def busy(self, work: pl.DataFrame) -> Intervals:
        """When at least one of some rows runs, in the unit of the rows."""
        ts, dur = work["ts"].to_numpy(), work["dur"].to_numpy()
        return _merged_as_hta(ts, dur) if self.compat else union(ts, dur)

    def by_device(self) -> list[tuple[int, pl.DataFrame]]:
        """The work of each device, by its number."""
        numbers: list[int] = self.device["device"].unique().sort().to_list()
        if len(numbers) == 1:
            return [(numbers[0], self.device)]
        return [(number, self.device.filter(pl.col("device") == number)) for number in numbers]

    def groups(self, which: np.ndarray, keys: Sequence[str] = ("device", "stream")) -> list[np.ndarray]:
        """Places of some rows of `device` (a mask), each stream by itself, by number, in order of time."""
        # Numbers of streams and devices are small; of two bytes numpy sorts by radix.
        columns = [_narrow(self.device[key].to_numpy()[which]) for key in keys]
        order = np.lexsort([self.device["ts"].to_numpy()[which], *reversed(columns)])
        new = np.zeros(max(len(order) - 1, 0), dtype=bool)
        for column in columns:
            new |= column[order][1:] != column[order][:-1]
        parts = np.split(np.flatnonzero(which)[order], np.flatnonzero(new) + 1)
        return [part for part in parts if len(part)]


def exact_rows(trace: Trace) -> Rows:
    """The work that a trace shows, and all of it."""
    events = trace.events
    calls = launch_calls(trace).select("row", "ts", "dur", "name", "correlation")
    call = call_places(trace, trace.device)
    work = trace.device.select(*WORK, "kind", "device", call=call, call_ts=calls["ts"].gather(call))
    if (work["stream"] < 0).any():  # XPU and MTIA put work on rows, and need not name a stream
        row = trace.tracks["tid"].gather(trace.device["track"])
        work = work.with_columns(stream=pl.when(pl.col("stream") < 0).then(row).otherwise("stream"))
    marks = events.filter(pl.col("kind").is_in([Kind.ANNOTATION.value, Kind.DEVICE_ANNOTATION.value]))
    return Rows(
        device=with_copies(trace, work.with_columns(occupies=pl.lit(True))),
        calls=calls,
        annotations=marks.select("ts", "dur", "name", on_device=pl.col("kind") == Kind.DEVICE_ANNOTATION.value),
        compat=False,
        duration_ns=int(events["ts"][-1]) - int(events["ts"][0]) if events.height else 0,
    )


def with_copies(trace: Trace, work: pl.DataFrame) -> pl.DataFrame:
    """The work, with what the trace says of copies: `num_bytes` and `gb_per_s` (10^9 bytes a second)."""
    for column, key in (("num_bytes", "bytes"), ("gb_per_s", "memory bandwidth (GB/s)")):
        said = trace.argument(key)
        work = work.with_columns(said["value"].cast(pl.Float64).gather(_said_of(said, work)).alias(column))
    return work


def _said_of(said: pl.DataFrame, work: pl.DataFrame) -> pl.Series:
    """Places of what is said of the work, in a table that is sorted by `row`; null where nothing is."""
    known, wanted = said["row"].to_numpy(), work["row"].to_numpy()
    if not len(known):
        return places(np.full(len(wanted), -1))
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places(np.where(known[at] == wanted, at, -1))


def _narrow(column: np.ndarray) -> np.ndarray:
    small = np.iinfo(np.int16)
    fits = not len(column) or (column.min() >= small.min and column.max() <= small.max)
    return column.astype(np.int16) if fits else column


def _merged_as_hta(ts: np.ndarray, dur: np.ndarray) -> Intervals:
    """Groups of rows that touch; unlike a union it keeps a lone row of negative length, and subtracts it."""
    if not len(ts):
        return Intervals(ts, ts)
    order = np.argsort(ts, kind="stable")
    ts, end = ts[order], (ts + dur)[order]
    reach = np.maximum.accumulate(end)
    first = np.flatnonzero(np.concatenate([[True], ts[1:] > reach[:-1]]))
    return Intervals(ts[first], np.maximum.reduceat(end, first))
