"""What is made of one rank's trace: tables by name, which a process can send."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import polars as pl

from . import critical_path, hta
from .advice import of_advice
from .attribution import attribute
from .collectives import collectives
from .counters_cupti import hardware_counters
from .heap import tidily
from .memory import held_at_peak, memory_peaks, memory_timeline
from .operations import operations, operators
from .report import timeline_of
from .roofline import kernel_work, roofline
from .sequences import candidates
from .steps import breakdown, host_phases
from .stragglers import exchanges
from .syncs import wait_sites
from .tables import Trace
from .utilisation import utilisation

Tables = Mapping[str, pl.DataFrame]
Maker = Callable[[Trace], Tables]
"""Makes tables of one rank's trace, by name; a function of a module, so that it can be sent to a process."""

_MAX_POINTS = 1000
"""Of a curve of memory: about as many as a page has pixels."""


def of_steps(trace: Trace) -> Tables:
    """Steps, their phases, collectives and waits: where the time went."""
    steps, phases = breakdown(trace)
    tables = {"host_phases": host_phases, "collectives": collectives, "waits": wait_sites, "events": _counts}
    return {"steps": steps, "phases": phases} | {name: tidily(table)(trace) for name, table in tables.items()}


def of_events(trace: Trace) -> Tables:
    """How many events there are of each kind."""
    return {"events": _counts(trace)}


def _counts(trace: Trace) -> pl.DataFrame:
    """Events of each kind, and their time."""
    counts = trace.events.group_by("kind").agg(pl.len().cast(pl.Int64).alias("count"), total_ns=pl.col("dur").sum())
    return counts.with_columns(pl.col("kind").cast(pl.String)).sort("kind")


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
    return {name: tidily(table)(rows, compat=compat) for name, table in tables.items()}


def of_what_if(trace: Trace) -> Tables:
    """What a step of median length would gain."""
    return {"what_if": critical_path.what_if(tidily(critical_path.dependencies)(trace, step=_median_step(trace)))}


def of_names(trace: Trace, *, compat: bool = False) -> Tables:
    """Operators, the operations of the first step as HTA compares them, and kernels that come one after the other."""
    first = {"operations": operations(trace, compat=compat)}
    return first if compat else first | {"operators": operators(trace), "sequences": candidates(trace)}


def of_exchanges(trace: Trace, *, compat: bool = False) -> Tables:
    """What tells the stragglers, once all ranks are there."""
    return {"exchanges": exchanges(trace, compat=compat)}


def of_counters(trace: Trace) -> Tables:
    """Hardware counters, for which the file is read once more if it has any."""
    return {"counters": hardware_counters(trace)}


def of_shapes(trace: Trace) -> Tables:
    """What follows from shapes, which must have been read."""
    work = kernel_work(trace)
    return {"roofline": roofline(trace, work=work), "utilisation": utilisation(trace, work=work)}


def of_memory(trace: Trace) -> Tables:
    """The allocators over time and at their peaks; their events must have been read."""
    return {
        "memory": memory_timeline(trace, max_points=_MAX_POINTS),
        "memory_peaks": memory_peaks(trace),
        "memory_held": held_at_peak(trace),
    }


def of_attribution(trace: Trace) -> Tables:
    """Whose each nanosecond is: what the difference of two runs compares."""
    return {"attribution": attribute(trace)}


def of_drawing(trace: Trace, *, several: bool = False) -> Tables:
    """Large tables of one step, that only the report shows; `several` as in `shown_step`."""
    return {"timeline": timeline_of(trace, step=shown_step(trace, several=several))[0].drop("rank")}


def _median_step(trace: Trace) -> int | None:
    steps = trace.steps.sort("dur")
    return int(steps["step"][steps.height // 2]) if steps.height else None


def shown_step(trace: Trace, *, several: bool) -> int | None:
    """The step that stands for all where only one is looked at; None without steps.

    Of a trace looked at alone that of median length. Of `several` all have to look at the same one, and each reads only
    its own trace: it is the one in the middle.
    """
    if not several:
        return _median_step(trace)
    numbers = trace.steps["step"].unique().sort()
    return int(numbers[len(numbers) // 2]) if len(numbers) else None


STANDARD: Sequence[Maker] = (of_steps, of_hta, of_exchanges, of_counters, of_what_if)
"""For which times suffice."""
COMPAT: Sequence[Maker] = (
    partial(of_hta, compat=True),
    partial(of_names, compat=True),
    partial(of_exchanges, compat=True),
)
"""As HTA makes them."""


def chosen(*, detail: bool, drawing: bool) -> list[Maker]:
    """All that a look at a run needs: without `detail` what is read anyway; with `drawing` what only a page shows."""
    makers: list[Maker] = [*STANDARD, of_advice]
    if detail:
        makers += [of_names, of_shapes, of_memory]
    return [*makers, of_drawing] if drawing else makers
