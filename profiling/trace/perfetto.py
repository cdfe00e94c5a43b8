"""The trace again, for Perfetto, with what the analysis knows in it: counters, and ranges in a process of their own.

Events go through as they are, piece by piece, so that memory does not grow with the file; what stands behind a cut is
not there, but the result is whole JSON. Times are those of the source: its own base is taken off ours.
"""

import gzip
import json
import math
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl
import pyarrow as pa
import pyarrow.json as pj

from ..capture import publish
from .dialect import one_by_one
from .hta.counters import bandwidth_points, queue_points
from .intervals import Intervals, union, without
from .source import Limits, Source
from .tables import Trace

PROCESS = "stepladder"
COUNTERS = pl.Schema({"track": pl.String, "series": pl.String, "ts_ns": pl.Int64, "value": pl.Float64})
RANGES = pl.Schema({"track": pl.String, "start_ns": pl.Int64, "dur_ns": pl.Int64, "name": pl.String})
_ROWS_AT_A_TIME = 20_000
_FIRST_PID = 1 << 30  # Perfetto takes a process number of 31 bits; the kernel's own end far below
_ANY_EVENTS = pa.schema([("e", pa.list_(pa.list_(pa.struct([]))))])
_ONLY_ARROW_S = {b"NaN": re.compile(rb"NaN\s*[,}\]]"), b"Inf": re.compile(rb"Inf(?:inity)?\s*[,}\]]")}
_TEXT_OR_NUMBER = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|-?(?:NaN|Inf(?:inity)?)', re.DOTALL)


def write_annotated(
    trace: Trace,
    target: Path,
    *,
    counters: pl.DataFrame | None = None,
    ranges: pl.DataFrame | None = None,
    limits: Limits | None = None,
) -> list[str]:
    """Write the trace's file with counters and ranges added, gzip if the name ends in `.gz`, whole or not at all.

    `counters` has the columns of `COUNTERS`, `ranges` those of `RANGES`, in the trace's time; ranges of one track must
    nest. Without them: `counters_of` and `ranges_of` the trace. Gives sentences about what was wrong with the source.
    Raises: TraceError if the source cannot be read any more.
    """
    counters = counters_of(trace) if counters is None else counters
    ranges = ranges_of(trace) if ranges is None else ranges
    source = Source(path=trace.path, limits=limits or Limits())
    added = _added(trace, counters, ranges)
    left_out = 0

    def write(partial: Path) -> None:
        nonlocal left_out
        with _opened(partial, packed=target.suffix == ".gz") as file:
            left_out = _write(file, source, added)

    publish(target, write)
    return source.notes + ([f"{left_out} events cannot be read and were left out"] if left_out else [])


def counters_of(trace: Trace) -> pl.DataFrame:
    """Kernels that run, by kind; length of each stream's queue; rate of copies: the columns of `COUNTERS`."""
    several = trace.device["device"].n_unique() > 1
    queue = queue_points(trace).select(
        pl.format("queue of stream {}", "stream").alias("track")
        if not several
        else pl.format("queue of stream {} of GPU {}", "stream", "device").alias("track"),
        pl.lit("launched, not started").alias("series"),
        "ts_ns",
        pl.col("length").alias("value"),
    )
    copies = bandwidth_points(trace).select(
        (pl.lit("copies, GB/s") if not several else pl.format("copies of GPU {}, GB/s", "device")).alias("track"),
        pl.col("name").cast(pl.String).alias("series"),
        "ts_ns",
        pl.col("gb_per_s").alias("value"),
    )
    parts = [_running(trace, several), queue, copies]
    return pl.concat([part.cast(COUNTERS) for part in parts]).sort("track", "series", "ts_ns", maintain_order=True)


def _running(trace: Trace, several: bool) -> pl.DataFrame:
    """How many pieces of work of each kind a device runs, where that changes."""
    work = trace.device.filter(pl.col("dur") > 0).select("device", pl.col("kind").cast(pl.String), "ts", "dur")
    begin = work.select("device", "kind", pl.col("ts").alias("ts_ns"), change=pl.lit(1, dtype=pl.Int64))
    end = work.select(
        "device", "kind", (pl.col("ts") + pl.col("dur")).alias("ts_ns"), change=pl.lit(-1, dtype=pl.Int64)
    )
    changes = pl.concat([begin, end]).group_by("device", "kind", "ts_ns").agg(pl.col("change").sum())
    changes = changes.filter(pl.col("change") != 0).sort("device", "kind", "ts_ns")
    return changes.select(
        (pl.lit("running") if not several else pl.format("running on GPU {}", "device")).alias("track"),
        pl.col("kind").alias("series"),
        "ts_ns",
        pl.col("change").cum_sum().over("device", "kind").alias("value"),
    )


def ranges_of(trace: Trace) -> pl.DataFrame:
    """Steps, and the times in which a device has nothing to do between its first and last work."""
    steps = trace.steps.select(
        pl.lit("steps").alias("track"),
        pl.col("ts").alias("start_ns"),
        pl.col("dur").alias("dur_ns"),
        pl.format("step {}", "step").alias("name"),
    )
    parts = [steps.cast(RANGES)]
    for device in sorted(trace.device["device"].unique().to_list()):
        work = trace.device.filter(pl.col("device") == device)
        busy = union(work["ts"].to_numpy(), work["dur"].to_numpy())
        if not len(busy.start):
            continue
        idle = without(Intervals(busy.start[:1], busy.end[-1:]), busy)
        gaps = {"start_ns": idle.start, "dur_ns": idle.end - idle.start}
        named = [pl.lit(f"idle on GPU {device}").alias("track"), "start_ns", "dur_ns", pl.lit("idle").alias("name")]
        parts.append(pl.DataFrame(gaps).select(named).cast(RANGES))
    return pl.concat(parts)


@contextmanager
def _opened(path: Path, *, packed: bool) -> Generator[BinaryIO]:
    with path.open("wb") as file:
        if not packed:
            yield file
            return
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4, mtime=0) as inner:
            yield cast(BinaryIO, inner)


def _write(file: BinaryIO, source: Source, added: Iterable[str]) -> int:
    """The whole document; how many events were left out."""
    left_out = 0
    pieces = source.pieces()
    first = next(pieces, b"")
    file.write(b"{" + b"".join(member + b",\n" for member in _members(source.header)) + b'"traceEvents": [\n')
    known = set(source.header)
    is_first = True
    for piece in _chain(first, pieces):
        text, gone = _valid(piece)
        left_out += gone
        if text:
            file.write(text if is_first else b",\n" + text)
            is_first = False
    for text in added:
        file.write(text.encode() if is_first else b",\n" + text.encode())
        is_first = False
    behind = {key: value for key, value in source.header.items() if key not in known}
    file.write(b"\n]" + b"".join(b",\n" + member for member in _members(behind)) + b"}\n")
    return left_out


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _members(header: dict[str, Any]) -> list[bytes]:
    """Members of the document beside the events."""
    return [
        f"{json.dumps(key)}: {json.dumps(_finite(value))}".encode()
        for key, value in header.items()
        if key != "traceEvents"
    ]


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in cast(dict[str, Any], value).items()}
    return [_finite(each) for each in cast(list[Any], value)] if isinstance(value, list) else value


def _valid(piece: bytes) -> tuple[bytes, int]:
    """The piece unchanged if it is JSON; else its events one by one, mended, and how many could not be.

    Arrow takes NaN and Inf for numbers; they become null, but for those inside of texts.
    """
    if any(word in piece and number.search(piece) for word, number in _ONLY_ARROW_S.items()):
        piece = _TEXT_OR_NUMBER.sub(lambda match: match[1] or b"null", piece)
    try:
        piece.decode()
        text = b'{"e":[[' + piece + b"]]}"
        options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
        parse = pj.ParseOptions(explicit_schema=_ANY_EVENTS, unexpected_field_behavior="ignore")
        if pj.read_json(pa.BufferReader(text), read_options=options, parse_options=parse).num_rows == 1:
            return piece, 0
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    found = list(one_by_one(piece, real=float))
    return b",\n".join(json.dumps(_finite(event)).encode() for event in found if event is not None), found.count(None)


def _added(trace: Trace, counters: pl.DataFrame, ranges: pl.DataFrame) -> Iterator[str]:
    """Events of ours, a text of several at a time."""
    taken = set(trace.tracks["pid"].to_list())
    pid = next(number for number in range(_FIRST_PID, _FIRST_PID + len(taken) + 1) if number not in taken)
    said = {"ph": "M", "pid": pid, "tid": 0, "ts": 0}
    yield json.dumps(said | {"name": "process_name", "args": {"name": PROCESS}})
    yield json.dumps(said | {"name": "process_sort_index", "args": {"sort_index": -1}})
    for tid, track in enumerate(ranges["track"].unique(maintain_order=True).to_list(), start=1):
        yield json.dumps(said | {"tid": tid, "name": "thread_name", "args": {"name": track}})
        yield json.dumps(said | {"tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}})
        mine = ranges.filter(pl.col("track") == track).with_columns(_quoted("name"))
        yield from _lines(
            mine,
            pl.lit(f'{{"ph": "X", "cat": "stepladder", "pid": {pid}, "tid": {tid}, "ts": '),
            _microseconds(pl.col("start_ns") - trace.base_ns),
            pl.lit(', "dur": '),
            _microseconds(pl.col("dur_ns")),
            pl.lit(', "name": '),
            pl.col("name"),
            pl.lit("}"),
        )
    yield from _lines(
        counters.filter(pl.col("value").is_finite()).with_columns(_quoted("track"), _quoted("series")),
        pl.lit(f'{{"ph": "C", "pid": {pid}, "ts": '),
        _microseconds(pl.col("ts_ns") - trace.base_ns),
        pl.lit(', "name": '),
        pl.col("track"),
        pl.lit(', "args": {'),
        pl.col("series"),
        pl.lit(": "),
        pl.col("value").cast(pl.String),
        pl.lit("}}"),
    )


def _lines(frame: pl.DataFrame, *parts: pl.Expr) -> Iterator[str]:
    """The rows as events, thousands of them at a time."""
    for rows in frame.iter_slices(_ROWS_AT_A_TIME):
        yield ",\n".join(rows.select(pl.concat_str(*parts)).to_series().to_list())


def _quoted(column: str) -> pl.Expr:
    """Texts as JSON writes them; few differ."""
    return pl.col(column).map_batches(_quote, return_dtype=pl.String)


def _quote(texts: pl.Series) -> pl.Series:
    words = texts.unique()
    return texts.replace_strict(words, pl.Series([json.dumps(word) for word in words.to_list()], dtype=pl.String))


def _microseconds(ns: pl.Expr) -> pl.Expr:
    """Text of a number of microseconds with three digits behind the point: exact, which a double would not be."""
    size = ns.abs()
    sign = pl.when(ns < 0).then(pl.lit("-")).otherwise(pl.lit(""))
    return pl.concat_str(sign, size // 1000, pl.lit("."), (size % 1000).cast(pl.String).str.zfill(3))
