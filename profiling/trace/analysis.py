"""All analyses of the traces of a job: on each rank by itself, then on what they found together.

found = analyse([Path("runs/demo/traces")])
found.tables["steps"]          # a polars frame with a row for each rank, step and device
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from . import collective_skew, job_path
from .cache import kept_tables
from .collectives import collective_summary
from .files import Paths, choose_traces
from .job import Done, Reading, Told, for_each
from .job_path import StepGraph
from .kinds import Kind
from .makers import (
    COMPAT,
    STANDARD,
    Maker,
    chosen,
    of_attribution,
    of_drawing,
    of_hta,
    of_memory,
    of_shapes,
    of_steps,
    of_what_if,
)
from .one_job import Recorded, absent, doubts, recorded
from .stragglers import stragglers
from .tables import Trace

__all__ = [
    "COMPAT",
    "DRAWN",
    "STANDARD",
    "Analysis",
    "Maker",
    "analyse",
    "chosen",
    "of_attribution",
    "of_drawing",
    "of_hta",
    "of_memory",
    "of_shapes",
    "of_steps",
    "of_what_if",
]

DRAWN = ("timeline", "critical", "critical_across")
"""Tables that only a report shows: a row for each event of a step."""
_MAX_DRAWN_RANKS = 4
_HTA_STRAGGLERS = 2
_US = 1000


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was found out about a job."""

    tables: Mapping[str, pl.DataFrame]
    """By name, each with `rank` as its first column but for those that compare ranks."""
    ranks: Sequence[int]
    files: Sequence[Path] = ()
    """What was read, in the order of `ranks`."""
    notes: Sequence[str]
    """What was wrong with files, and what was left out, a sentence each."""
    num_bytes: int
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Members of the first rank's trace beside its events."""


def analyse(
    paths: Paths,
    makers: Sequence[Maker] = STANDARD,
    *,
    reading: Reading | None = None,
    with_path: bool = False,
    progress: Told | None = None,
) -> Analysis:
    """Make the tables of all traces in some files and folders (or one), of each rank the newest window.

    `with_path` adds the critical path of a step, of each rank and through all of them. `progress` is told how many
    bytes of the files are read, of how many.
    Raises: TraceError if there is no trace, or none that can be read.
    """
    files, left_out = choose_traces(paths)
    work = partial(
        _of_rank,
        makers=makers,
        drawn=frozenset(files[:_MAX_DRAWN_RANKS]),
        followed=frozenset(files if with_path else ()),
        sent=frozenset(files[: job_path.MAX_RANKS] if with_path and len(files) > 1 else ()),
        several=len(files) > 1,
    )
    done, problems = for_each(files, work, reading, progress=progress)
    names = dict.fromkeys(name for each in done for name in each.result.tables)
    together = {name: _together(name, done) for name in names}
    ranks = {each.rank: each.result.recorded for each in done}
    met, largest_group = None, 0
    if "collectives" in together:
        met = collective_skew.matched(together["collectives"], all_read=not absent(ranks))
        together |= _compared(together["collectives"], met)
        largest_group = max(together["collectives"]["size"].drop_nulls().to_list(), default=0)
    if "exchanges" in together:
        together["stragglers"] = _stragglers(together.pop("exchanges"), together.get("clocks"))
    notes = left_out + problems + doubts(ranks, largest_group=largest_group)
    notes += [f"rank {each.rank}: {note}" for each in done for note in (*each.notes, *each.result.notes)]
    notes += clock_notes(together.get("clocks"))
    if with_path:
        more, path_notes = _path(done, offsets_of(together.get("clocks")), met)
        if of_drawing not in makers:
            del more["critical_across"]
        together, notes = together | more, notes + path_notes
    return Analysis(
        tables=together,
        ranks=[each.rank for each in done],
        files=[each.path for each in done],
        notes=notes,
        num_bytes=sum(each.num_bytes for each in done),
        header=done[0].result.header,
    )


def offsets_of(clocks: pl.DataFrame | None) -> dict[int, int]:
    """By how many nanoseconds each rank's clock is ahead of that of the lowest rank it can be compared with."""
    return {} if clocks is None else dict(clocks.select("rank", "offset_ns").iter_rows())


def clock_notes(clocks: pl.DataFrame | None) -> list[str]:
    """By what the ranks were aligned, and which could not be."""
    if clocks is None or clocks.height < 2:
        return []
    notes: list[str] = []
    base = clocks["rank"][0]
    apart = clocks.filter(pl.col("compared_with") == base, pl.col("offset_ns") != 0)
    if apart.height:
        rank, offset, spread = apart.sort(pl.col("offset_ns").abs(), descending=True).row(0)[:3]
        where = "ahead of" if offset > 0 else "behind"
        notes.append(
            f"clocks of ranks were aligned by the ends of their collectives; that of rank {rank} was"
            f" {abs(offset) / _US:.1f} us {where} that of rank {base} (give or take {spread / _US:.1f})"
            + (", no other further off" if apart.height > 1 else "")
        )
    alone = clocks.filter(pl.col("compared_with") != base)["rank"].to_list()
    if alone:
        which = f"rank{'s' if len(alone) > 1 else ''} {', '.join(map(str, alone))}"
        notes.append(f"{which}: in no collective with rank {base}, so the clocks could not be compared")
    return notes


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """What a process says of a rank; small, for it is sent."""

    tables: dict[str, bytes]
    """Packed, for those of all ranks wait until the last has come; emptied when they are put together."""
    notes: Sequence[str]
    header: Mapping[str, Any]
    recorded: Recorded
    graph: StepGraph | None


def _of_rank(
    trace: Trace,
    makers: Sequence[Maker],
    drawn: frozenset[Path],
    followed: frozenset[Path],
    sent: frozenset[Path],
    several: bool,
) -> _Rank:
    notes: list[str] = []
    if not trace.device.height:
        host = trace.of(Kind.OPERATOR).height or trace.of(Kind.ANNOTATION).height
        notes.append("no device events; " + ("what is said is of the host" if host else "nothing of the host either"))
    if not trace.steps.height:
        notes.append("no profiler steps; the whole trace counts as one")
    is_drawn = of_drawing in makers and trace.path in drawn
    mine = [make for make in makers if make is not of_drawing]
    mine += [partial(of_drawing, several=several)] if is_drawn else []
    tables = {name: table for make in mine for name, table in kept_tables(trace, make).items()}
    graph = job_path.step_graph(trace, several=several) if trace.path in followed else None
    if graph is not None:
        tables["path"] = job_path.path_of_rank(graph)
        if is_drawn:
            tables["critical"] = job_path.segments_of_rank(graph)
    return _Rank(
        tables={name: _packed(table) for name, table in tables.items()},
        notes=notes,
        header={key: trace.header[key] for key in ("deviceProperties", "distributedInfo") if key in trace.header},
        recorded=recorded(trace),
        graph=graph if trace.path in sent else None,
    )


def _packed(table: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    table.write_ipc_stream(file, compression="zstd")
    return file.getvalue()


def _unpacked(packed: bytes) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(packed))


def _together(name: str, done: Sequence[Done[_Rank]]) -> pl.DataFrame:
    """One table of all ranks that have it; counters differ in their columns."""
    frames = [
        _unpacked(each.result.tables.pop(name)).select(pl.lit(each.rank, dtype=pl.Int64).alias("rank"), pl.all())
        for each in done
        if name in each.result.tables
    ]
    return pl.concat(frames, how="diagonal_relaxed")


def _compared(rows: pl.DataFrame, matched: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """What follows from the collectives of all ranks."""
    return {
        "collective_summary": collective_summary(rows),
        "collective_waits": collective_skew.by_collective(matched),
        "collective_ranks": collective_skew.by_rank(matched),
        "clocks": collective_skew.clock_offsets(matched),
    }


def _stragglers(exchanges: pl.DataFrame, clocks: pl.DataFrame | None) -> pl.DataFrame:
    """The latest rank of each step; as HTA, which compares no clocks, the two latest."""
    latest = _HTA_STRAGGLERS if clocks is None else 1
    return stragglers(exchanges, num_latest=latest, offsets_ns=offsets_of(clocks))


def _path(
    done: Sequence[Done[_Rank]], offsets: Mapping[int, int], met: pl.DataFrame | None
) -> tuple[dict[str, pl.DataFrame], list[str]]:
    graphs = {each.rank: each.result.graph for each in done if each.result.graph is not None}
    tables, notes = job_path.path_of_job(graphs, offsets, met)
    if graphs and len(graphs) < len(done):
        notes.append(f"the critical path goes through {len(graphs)} of {len(done)} ranks: more would need much memory")
    return tables, notes
