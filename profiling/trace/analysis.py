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
from .attribution import attribute
from .collectives import collective_summary, collectives
from .job import Done, Reading, for_each, trace_files
from .kinds import Kind
from .report import timeline_of
from .roofline import kernel_work, roofline, utilisation
from .steps import breakdown, host_phases
from .syncs import wait_sites
from .tables import Trace

Tables = Mapping[str, pl.DataFrame]
Maker = Callable[[Trace], Tables]
"""Makes tables of one rank's trace, by name; a function of a module, so that it can be sent to a process."""
Progress = Callable[[int, int], None]


def of_steps(trace: Trace) -> Tables:
    """Steps, their phases, collectives and waits: where the time went."""
    steps, phases = breakdown(trace)
    return {
        "steps": steps,
        "phases": phases,
        "host_phases": host_phases(trace),
        "collectives": collectives(trace),
        "waits": wait_sites(trace),
        "events": trace.events.group_by(pl.col("kind").cast(pl.String))
        .agg(pl.len().cast(pl.Int64).alias("count"), total_ns=pl.col("dur").sum())
        .sort("kind"),
    }


def of_hta(trace: Trace, *, compat: bool = False) -> Tables:
    """What HTA has too; with `compat` as it has it."""
    rows = hta.compat_rows(trace) if compat else hta.exact_rows(trace)
    tables = {
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
    }
    return {name: table(rows, compat=compat) for name, table in tables.items()}


def of_what_if(trace: Trace) -> Tables:
    """What a step of median length would gain."""
    return {"what_if": critical_path.what_if(critical_path.dependencies(trace, step=_median_step(trace)))}


def of_shapes(trace: Trace) -> Tables:
    """What follows from shapes, which must have been read."""
    work = kernel_work(trace)
    return {"roofline": roofline(trace, work=work), "utilisation": utilisation(trace, work=work)}


def of_attribution(trace: Trace) -> Tables:
    """Whose each nanosecond is: what the difference of two runs compares."""
    return {"attribution": attribute(trace)}


def of_drawing(trace: Trace) -> Tables:
    """Large tables of one step, that only the report shows."""
    step = _median_step(trace)
    path = critical_path.critical_path(critical_path.dependencies(trace, step=step))
    return {"timeline": timeline_of(trace, step=step)[0].drop("rank"), "critical": path.drop("rank")}


def _median_step(trace: Trace) -> int | None:
    steps = trace.steps.sort("dur")
    return int(steps["step"][steps.height // 2]) if steps.height else None


STANDARD: Sequence[Maker] = (of_steps, of_hta, of_what_if)
"""For which times suffice."""
COMPAT: Sequence[Maker] = (partial(of_hta, compat=True),)
"""As HTA makes them."""
_DRAWN = ("timeline", "critical")
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
    makers: Sequence[Maker] = STANDARD,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Make the tables of all traces in some files and folders, of each rank the newest window.

    Raises: TraceError if there is no trace, or none that can be read.
    """
    done, problems = for_each(trace_files(paths), partial(_of_rank, makers=makers), reading, progress=progress)
    together = {name: _together(name, done) for name in done[0].result.tables}
    if "collectives" in together:
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


def _of_rank(trace: Trace, makers: Sequence[Maker]) -> _Rank:
    notes: list[str] = []
    if not trace.device.height:
        host = trace.of(Kind.OPERATOR).height or trace.of(Kind.ANNOTATION).height
        notes.append("no device events; " + ("what is said is of the host" if host else "nothing of the host either"))
    if not trace.steps.height:
        notes.append("no profiler steps; the whole trace counts as one")
    return _Rank(
        tables={name: table for make in makers for name, table in make(trace).items()},
        notes=notes,
        header={key: trace.header[key] for key in ("deviceProperties", "distributedInfo") if key in trace.header},
    )


def _together(name: str, done: Sequence[Done[_Rank]]) -> pl.DataFrame:
    """One table of all ranks; of what is only drawn, the first ranks."""
    shown = done[:_MAX_DRAWN_RANKS] if name in _DRAWN else done
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
