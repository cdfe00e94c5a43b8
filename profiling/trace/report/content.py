"""What a report shows: tables that the analyses made, each of which may be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

PARTS = ("compute_ns", "overlapped_communication_ns", "exposed_communication_ns", "copy_ns", "idle_ns")
"""What a step is made of, as `steps` defines it: the five add up to the window."""
FRAMES: Mapping[str, tuple[str, ...]] = {
    "steps": ("rank", "step", "device", "window_ns", *PARTS),
    "phases": ("rank", "step", "device", "phase", *PARTS),
    "host_phases": ("rank", "step", "phase", "own_ns", "operator_ns"),
    "timeline": ("rank", "track", "start_ns", "dur_ns", "name", "kind"),
    "critical": ("start_ns", "dur_ns", "name"),
    "kernels": ("name", "total_ns"),
    "collectives": ("type",),
    "roofline": ("name", "flops", "bytes", "total_ns"),
}
"""The columns that each table must have; more of them are shown too, by the endings of their names (`_ns`, `share`)."""

WHY_MISSING: Mapping[str, str] = {
    "steps": "The trace has no profiler steps: call profiler.step() in the loop, or let `stepladder run` do it.",
    "phases": "Nothing in the step is marked: no span of stepladder and no annotation of the program.",
    "host_phases": "Nothing in the step is marked on the host.",
    "timeline": "No events were chosen for a timeline.",
    "critical": "The critical path was not asked for.",
    "kernels": "The trace has no kernels: it was recorded without a device.",
    "collectives": "The trace has no collectives: one rank, or a backend that the profiler does not see.",
    "roofline": "The trace has no shapes: record with record_shapes=True, and FLOPs and bytes of kernels are known.",
    "advice": "No advice was asked for.",
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that is shown. Times are int64 nanoseconds, shares are fractions; of a missing table it says why."""

    title: str
    subtitle: str = ""
    notes: Sequence[str] = ()
    """What was wrong with the files, and what was left out, a sentence each."""
    steps: pl.DataFrame | None = None
    """A row for each step of a device: rank, step (-1: a whole trace), device (-1: the host), window_ns, and `PARTS`;
    computing over communication is not in compute_ns."""
    phases: pl.DataFrame | None = None
    """The same with phase, and within."""
    host_phases: pl.DataFrame | None = None
    """(rank, step, within, phase, own_ns, operator_ns, runtime_ns) of the main thread."""
    timeline: pl.DataFrame | None = None
    """Events of a few ranks, as `timeline_of` makes them; clocks of the ranks already put right."""
    critical: pl.DataFrame | None = None
    """Segments of the critical path in the timeline's clock: start_ns, dur_ns, name, and rank and category if known."""
    kernels: pl.DataFrame | None = None
    """(name, kind, count, total_ns, share, ...)"""
    collectives: pl.DataFrame | None = None
    """(group, type, count, message_bytes, bus_gb_s, link_gb_s, exposed_ns, wait_ns, ...)"""
    roofline: pl.DataFrame | None = None
    """(name, flops, bytes, total_ns, achieved_tflops, achieved_gb_per_s, bound); a null stays out of the plot."""
    peak_tflops: Mapping[str, float] = field(default_factory=dict[str, float])
    """Flat ceilings of the roofline by label."""
    peak_gb_per_s: Mapping[str, float] = field(default_factory=dict[str, float])
    """Its slopes."""
    advice: Sequence[Mapping[str, Any]] | None = None
    """Ranked: title, evidence, cause, remedy, measure_next, wins_at_most_ns, assumptions; empty on a good trace."""
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why a table is not there, by its name, where the usual sentence would be wrong."""

    def __post_init__(self) -> None:
        for name, columns in FRAMES.items():
            frame: pl.DataFrame | None = getattr(self, name)
            lacking = [] if frame is None else [each for each in columns if each not in frame.columns]
            if lacking:
                raise ValueError(f"Content.{name} lacks {', '.join(lacking)}: every report needs these columns")

    def why_missing(self, name: str) -> str | None:
        """The sentence that stands where a table would; None if it is there."""
        shown: object = getattr(self, name)
        if shown is None or (isinstance(shown, pl.DataFrame) and not len(shown)):
            return self.missing.get(name) or WHY_MISSING[name]
        return None
