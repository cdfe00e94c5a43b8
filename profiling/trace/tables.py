"""The tables of one rank's trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import polars as pl

from ..spans import PROFILER_STEP
from .kinds import ON_DEVICE, Kind

EXTERNAL = "External id"


def job_of(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a header says of the job: rank, world_size, pg_config; empty if nothing."""
    info = header.get("distributedInfo")
    return cast(dict[str, Any], info) if isinstance(info, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Everything that is kept of a trace file. Times are nanoseconds, int64; -1 stands for "none" in whole numbers."""

    path: Path
    rank: int | None
    header: Mapping[str, Any]
    notes: tuple[str, ...]
    """What was wrong with the file and could be lived with, a sentence each."""
    num_bytes: int
    """Length of the text."""
    detail: bool
    """Whether shapes, stacks, allocator events and occupancies were read."""
    events: pl.DataFrame
    """Events with a length, by start, containing ones first: row, ts, dur, name, kind, track, correlation, stream,
    device, external."""
    args: Mapping[str, pl.DataFrame]
    """Values of rarer keys: (row, value) by the key's name in the trace."""
    instants: pl.DataFrame
    """Events without a length: ts, name, and a column for each of their arguments."""
    tracks: pl.DataFrame
    """Threads and streams: track, pid, tid, process, thread."""

    @cached_property
    def device(self) -> pl.DataFrame:
        """What occupied a device: kernels, copies, fills."""
        return self.events.filter(pl.col("kind").is_in([kind.value for kind in ON_DEVICE]))

    @cached_property
    def steps(self) -> pl.DataFrame:
        """Profiler steps on the host, by start: step (its number), ts, dur, track."""
        marks = self.of(Kind.ANNOTATION).filter(pl.col("name").cast(pl.String).str.starts_with(PROFILER_STEP))
        number = pl.col("name").cast(pl.String).str.strip_prefix(PROFILER_STEP).cast(pl.Int64, strict=False)
        return marks.select(number.alias("step"), "ts", "dur", "track").drop_nulls("step")

    def of(self, kind: Kind) -> pl.DataFrame:
        """The events of one kind."""
        return self.events.filter(pl.col("kind") == kind.value)

    def argument(self, key: str) -> pl.DataFrame:
        """(row, value) of a rarer key; empty if no event has it."""
        return self.args.get(key, pl.DataFrame(schema={"row": pl.UInt32, "value": pl.Null}))
