"""The tables of one rank's trace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl

from ..spans import PROFILER_STEP
from .kinds import ON_DEVICE, Kind
from .piece import DETAIL, DTYPES, SPARSE

T = TypeVar("T")
K = TypeVar("K", bound="Keeper")
EXTERNAL = "External id"


def job_of(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a header says of the job: rank, world_size, pg_config; empty if nothing."""
    info = header.get("distributedInfo")
    return cast(dict[str, Any], info) if isinstance(info, dict) else {}


def rank_of(header: Mapping[str, Any]) -> int | None:
    """The rank that a header says; None if it says none."""
    rank = job_of(header).get("rank")
    return rank if isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank < 1 << 31 else None


def version_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change (ns) of a file; None if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class Keeper:
    """Keeps what functions made of it, for all who ask again."""

    @cached_property
    def _made(self) -> dict[object, Any]:
        return {}

    def kept(self: K, make: Callable[[K], T]) -> T:
        """What a function makes of this; it is called once, and nobody may change what it gave."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]


def once(make: Callable[[K], T]) -> Callable[[K], T]:
    """The same function, of which each trace keeps the result."""

    @wraps(make)
    def kept(keeper: K) -> T:
        return keeper.kept(make)

    return kept


@dataclass(frozen=True, kw_only=True)
class Trace(Keeper):
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
    version: tuple[int, int] | None = None
    """Size and time of change of the file when its reading began, as `version_of` has them."""
    kept_in: Path | None = None
    """The folder of its cache, if it has one."""

    @property
    def base_ns(self) -> int:
        """What the writer had taken from all times and reading has added again; 0 if the file does not tell."""
        return self.header.get("baseTimeNanoseconds", 0)

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

    @cached_property
    def names(self) -> pl.Series:
        """The words that the codes of events' names stand for."""
        return cast(pl.Enum, self.events["name"].dtype).categories

    def of(self, kind: Kind, *columns: str) -> pl.DataFrame:
        """The events of one kind; some of their columns cost less than all."""
        return (self.events.select(columns) if columns else self.events)[self.places(kind)]

    def places(self, kind: Kind) -> np.ndarray:
        """Where in `events` those of one kind are; uint32."""
        if kind not in self._made:  # only where they are: the events themselves would be all of the trace again
            number = list(Kind).index(kind)
            found = np.flatnonzero(self.events["kind"].to_physical().to_numpy() == number)
            self._made[kind] = found.astype(np.uint32)
        return self._made[kind]

    def named(self, pattern: str) -> pl.Expr:
        """Whether an event's name matches; the pattern is tried once for each name, not for each event."""
        codes = np.flatnonzero(self.names.str.contains(pattern).to_numpy())
        return pl.col("name").to_physical().is_in(pl.Series(codes, dtype=pl.UInt32).implode())

    def argument(self, key: str) -> pl.DataFrame:
        """(row, value) of a rarer key; empty if no event has it."""
        return self.args.get(key, pl.DataFrame(schema={"row": pl.UInt32, "value": pl.Null}))


def are_sound(trace: Trace) -> bool:
    """Whether the tables are such as a reading gives; for those that somebody kept in a file."""
    kinds, sorts = pl.Enum([kind.value for kind in Kind]), SPARSE | DETAIL
    whole = {"row": pl.UInt32, "ts": pl.Int64, "dur": pl.Int64, "track": pl.UInt32}
    either = ("correlation", "stream", "device", "external")
    events, instants, tracks = trace.events, trace.instants, trace.tracks
    named = {"track": pl.UInt32, "pid": pl.Int64, "tid": pl.Int64, "process": pl.String, "thread": pl.String}
    rank, size = trace.rank, trace.num_bytes
    return (
        (rank is None or (type(rank) is int and 0 <= rank < 1 << 31))
        and (type(size) is int and size >= 0)
        and isinstance(cast(object, trace.header), dict)
        and all(isinstance(cast(object, note), str) for note in trace.notes)
        and set(events.columns) == {*whole, *either, "name", "kind"}
        and all(events.schema[key] == dtype for key, dtype in whole.items())
        and all(events.schema[key].is_signed_integer() for key in either)
        and (isinstance(events.schema["name"], pl.Enum) and events.schema["kind"] == kinds)
        and (events.height > 0 and not any(events.null_count().row(0)))
        and dict(tracks.schema) == named
        and int(cast(int, events["track"].max())) < tracks.height
        and (instants.schema["ts"] == pl.Int64 and isinstance(instants.schema["name"], pl.Enum))
        and all(instants.schema[key] == DTYPES[sorts[key]] for key in instants.columns if key not in ("ts", "name"))
        and all(
            dict(frame.schema) == {"row": pl.UInt32, "value": DTYPES[sorts[key]]}
            and not frame["row"].null_count()
            and int(cast(int, frame["row"].max() or 0)) < events.height
            for key, frame in trace.args.items()
        )
    )
