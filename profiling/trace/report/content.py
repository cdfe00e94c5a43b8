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
    "across": ("start_ns", "dur_ns", "name", "rank"),
    "path": ("rank", "category", "name", "time_ns", "share"),
    "gains": ("change", "gain_ns"),
    "stragglers": ("rank", "num_late"),
    "memory": ("rank", "device_type", "device", "at_ns", "allocated_bytes", "reserved_bytes"),
    "memory_steps": ("rank", "step", "at_ns"),
    "held": ("rank", "phase", "operator", "bytes"),
    "kernels": ("name", "total_ns"),
    "sequences": ("operator", "kernels", "count"),
    "operators": ("name", "own_ns"),
    "collectives": ("type",),
    "roofline": ("name", "flops", "bytes", "total_ns"),
    "counters": ("name",),
}
"""The columns that each table must have; more of them are shown too, by the endings of their names (`_ns`, `share`)."""

WHY_MISSING: Mapping[str, str] = {
    "steps": "The trace has no profiler steps: call profiler.step() in the loop, or let `stepladder run` do it.",
    "phases": "Nothing in the step is marked: no span of stepladder and no annotation of the program.",
    "host_phases": "Nothing in the step is marked on the host.",
    "timeline": "No events were chosen for a timeline.",
    "critical": "The critical path was not asked for.",
    "across": "There are not several ranks that meet in a collective of the same step.",
    "path": "The critical path was not asked for.",
    "gains": "It was not asked what a step would gain.",
    "stragglers": "There are not several ranks that exchange anything.",
    "memory": "The trace has no allocations: record with profile_memory=True, and the memory over time is known.",
    "memory_steps": "The trace has no profiler steps.",
    "held": "Nothing is known to be allocated.",
    "sequences": "No operator starts the same three or more kernels again and again.",
    "operators": "The trace has no operators, or they were not asked for.",
    "counters": "No hardware counters were recorded.",
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
    across: pl.DataFrame | None = None
    """The same of the path through all ranks, each segment with the rank that it lies on."""
    path: pl.DataFrame | None = None
    """(rank, step, category, name, count, time_ns, share): what the path is made of; the job's if there is `across`."""
    gains: pl.DataFrame | None = None
    """(change, name, gain_ns, gain_share): what a step would gain; of each rank by itself if there is `rank`."""
    stragglers: pl.DataFrame | None = None
    """(rank, num_late, num_steps, mean_late_ns, name): who comes last to the exchange that differs most."""
    memory: pl.DataFrame | None = None
    """(rank, device_type, device, at_ns, allocated_bytes, reserved_bytes), by time in each device."""
    memory_steps: pl.DataFrame | None = None
    """(rank, step, at_ns): when steps begin, by the same clock."""
    held: pl.DataFrame | None = None
    """(rank, where, phase, operator, num_blocks, bytes): what was allocated at the peak."""
    kernels: pl.DataFrame | None = None
    """(name, kind, count, total_ns, share, ...)"""
    sequences: pl.DataFrame | None = None
    """(operator, kernels, num_kernels, count, kernel_ns, operator_ns); the kernels as one text."""
    operators: pl.DataFrame | None = None
    """(name, count, own_ns, total_ns, num_kernels, kernel_ns)"""
    collectives: pl.DataFrame | None = None
    """(group, type, count, message_bytes, bus_gb_s, link_gb_s, exposed_ns, wait_ns, ...)"""
    roofline: pl.DataFrame | None = None
    """(name, flops, bytes, total_ns, achieved_tflops, achieved_gb_per_s, bound); a null stays out of the plot."""
    counters: pl.DataFrame | None = None
    """(name, operator, dur_ns, and a column for each counter)"""
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
