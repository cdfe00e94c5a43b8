"""All analyses of the traces of a job: on each rank by itself, then on what they found together.

found = analyse([Path("runs/demo/traces")])
found.tables["steps"]          # a polars frame with a row for each rank, step and device
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from . import collective_skew, critical_path, hta
from .collectives import collective_summary, collectives
from .job import Done, Reading, for_each, trace_files
from .kinds import Kind
from .report import timeline_of
from .roofline import roofline, utilisation
from .steps import host_phases, phase_breakdown, step_breakdown
from .syncs import wait_sites
from .tables import Trace

Table = Callable[[Trace], pl.DataFrame]
Progress = Callable[[int, int], None]


def _what_if(trace: Trace) -> pl.DataFrame:
    """What a step of median length would gain; see critical_path.what_if."""
    return critical_path.what_if(critical_path.dependencies(trace, step=_median_step(trace)))


def _critical(trace: Trace) -> pl.DataFrame:
    """The critical path of the same step."""
    return critical_path.critical_path(critical_path.dependencies(trace, step=_median_step(trace))).drop("rank")


def _timeline(trace: Trace) -> pl.DataFrame:
    return timeline_of(trace, step=_median_step(trace))[0].drop("rank")


def _median_step(trace: Trace) -> int | None:
    steps = trace.steps.sort("dur")
    return int(steps["step"][steps.height // 2]) if steps.height else None


def _kinds(trace: Trace) -> pl.DataFrame:
    """(kind, count, total_ns) of all events."""
    found = trace.events.group_by("kind").agg(pl.len().cast(pl.Int64).alias("count"), total_ns=pl.col("dur").sum())
    return found.with_columns(pl.col("kind").cast(pl.String)).sort("kind")


TABLES: Mapping[str, Table] = {
    "steps": step_breakdown,
    "phases": phase_breakdown,
    "host_phases": host_phases,
    "events": _kinds,
    "temporal": hta.temporal_breakdown,
    "overlap": hta.communication_overlap,
    "kernel_kinds": hta.kernel_kinds,
    "kernels": hta.kernel_names,
    "idle": hta.idle_breakdown,
    "launches": hta.launch_statistics,
    "launch_distribution": hta.launch_distribution,
    "queue_lengths": hta.queue_lengths,
    "blocked": hta.blocked_on_full_queue,
    "memory_bandwidth": hta.memory_bandwidth,
    "annotations": hta.annotation_names,
    "collectives": collectives,
    "waits": wait_sites,
    "what_if": _what_if,
}
"""What is found out about a rank; times suffice for it."""
DETAILED: Mapping[str, Table] = {"roofline": roofline, "utilisation": utilisation}
"""What shapes are needed for."""
DRAWN: Mapping[str, Table] = {"timeline": _timeline, "critical": _critical}
"""Large tables that only the report shows, of its first ranks."""
COMPAT: Mapping[str, Table] = {
    name: partial(table, compat=True)
    for name, table in {
        "temporal": hta.temporal_breakdown,
        "overlap": hta.communication_overlap,
        "kernel_kinds": hta.kernel_kinds,
        "kernels": hta.kernel_names,
        "idle": hta.idle_breakdown,
        "launches": hta.launch_statistics,
        "launch_distribution": hta.launch_distribution,
        "queue_lengths": hta.queue_lengths,
        "blocked": hta.blocked_on_full_queue,
        "memory_bandwidth": hta.memory_bandwidth,
    }.items()
}
"""The analyses that HTA has too, as HTA makes them."""
_MAX_DRAWN_RANKS = 4


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was found out about a job."""

    tables: Mapping[str, pl.DataFrame]
    """By name, each with `rank` as its first column but for those that compare ranks."""
    ranks: Sequence[int]
    notes: Sequence[str]
    """What was wrong with files, and what was left out, a sentence each."""
    num_bytes: int
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Members of the first rank's trace beside its events."""


def analyse(
    paths: Sequence[Path],
    tables: Mapping[str, Table] | None = None,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Make the tables (`TABLES`, unless told) of all traces in some files and folders; the newest window of a rank.

    Raises: TraceError if there is no trace, or none that can be read.
    """
    tables = TABLES if tables is None else tables
    done, problems = for_each(trace_files(paths), partial(_of_rank, tables=tables), reading, progress=progress)
    together = {name: _together(name, done) for name in tables}
    if "collectives" in tables:
        together |= _compared(together["collectives"])
    notes = problems + [f"rank {each.rank}: {note}" for each in done for note in (*each.notes, *each.result.notes)]
    return Analysis(
        tables=together,
        ranks=[each.rank for each in done],
        notes=notes,
        num_bytes=sum(each.num_bytes for each in done),
        header=done[0].result.header,
    )


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """What a process says of a rank; small, for it is sent."""

    tables: Mapping[str, pl.DataFrame]
    notes: Sequence[str]
    header: Mapping[str, Any]


def _of_rank(trace: Trace, tables: Mapping[str, Table]) -> _Rank:
    notes: list[str] = []
    if not trace.device.height:
        host = trace.of(Kind.OPERATOR).height or trace.of(Kind.ANNOTATION).height
        notes.append("no device events; " + ("what is said is of the host" if host else "nothing of the host either"))
    if not trace.steps.height:
        notes.append("no profiler steps; the whole trace counts as one")
    return _Rank(
        tables={name: table(trace) for name, table in tables.items()},
        notes=notes,
        header={key: trace.header[key] for key in ("deviceProperties", "distributedInfo") if key in trace.header},
    )


def _together(name: str, done: Sequence[Done[_Rank]]) -> pl.DataFrame:
    """One table of all ranks; of what is only drawn, the first ranks."""
    shown = done[:_MAX_DRAWN_RANKS] if name in DRAWN else done
    frames = [
        each.result.tables[name].select(pl.lit(each.rank, dtype=pl.Int64).alias("rank"), pl.all()) for each in shown
    ]
    return pl.concat(frames, how="vertical_relaxed")


def _compared(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """What follows from the collectives of all ranks."""
    matched = collective_skew.matched(rows)
    return {
        "collective_summary": collective_summary(rows),
        "collective_waits": collective_skew.by_collective(matched),
        "collective_ranks": collective_skew.by_rank(matched),
        "clocks": collective_skew.clock_offsets(matched),
    }
