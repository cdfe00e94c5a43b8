"""The host stands still: for the loader, for the device, for the garbage collector, for the compiler."""

import polars as pl

from .. import syncs
from ..phases import NO_PHASE
from .facts import Facts, Findings, scalar, total
from .finding import Fault, Finding, number, place, time
from .thresholds import MIN_SHARE, MIN_SHARE_OF_TIMES, MIN_STEPS

_MAX_SITES = 3
_MAY_READ = "(?i)optimizer|clip|logging|checkpoint|evaluation|zero_grad"
"""Phases in which a number may be read: a fused optimizer counts its steps, logging is there to read."""
_SYNCHRONISES = (syncs.ITEM, syncs.SHAPE, syncs.SYNCHRONIZE, syncs.COPY, syncs.ALLOCATOR)


def loader(facts: Facts) -> Findings:
    """Nothing runs while the next batch is made."""
    sites, column = _sites(facts, (syncs.LOADER,))
    lost = facts.most(sites, column)
    if facts.share(lost.ns) < MIN_SHARE_OF_TIMES:
        return
    waited = facts.most(sites, "waited_ns")
    what = "the host waits" if facts.on_host else "the device is idle"
    yield Finding(
        fault=Fault.LOADER,
        title="The loader is too slow: the step waits for its batch",
        evidence=(
            f"rank {lost.rank}: {what} for {time(lost.ns)} of a step of {time(facts.step_ns)} in the loader"
            f" ({time(waited.ns)} in the call itself).",
            *_places(facts, sites, lost.rank, column),
        ),
        cause="Making a batch (reading, tokenising, collating) takes longer than computing one, or is not done ahead.",
        remedy="loader.num_workers = 4\nloader.prefetch_factor = 4\nloader.persistent_workers = true",
        measure_next="data_wait of a step with these, and with data.synthetic in the place of the data:"
        " what remains then is not the loader.",
        **facts.bound(lost.ns),
        assumptions="Workers find free cores, and storage delivers; then the wait vanishes.",
    )


def synchronisations(facts: Facts) -> Findings:
    """The host waits for the device, and the device then for the host."""
    if facts.on_host:
        return
    sites, _ = _sites(facts, _SYNCHRONISES)
    lost = facts.most(sites, "idle_ns")
    if facts.share(lost.ns) < MIN_SHARE:
        return
    here = sites.filter(pl.col("rank") == lost.rank)
    yield Finding(
        fault=Fault.SYNCHRONISATION,
        title="The host waits for the device in the middle of the step",
        evidence=(
            f"rank {lost.rank}: {number(total(here['num']) / facts.num_steps)} waits a step, after which the device is"
            f" idle for {time(lost.ns)} of {time(facts.step_ns)}.",
            *_places(facts, sites, lost.rank, "idle_ns"),
        ),
        cause="The host needs a number, a shape or a copy, and can launch nothing more until it is there.",
        remedy="Remove the .item(), .cpu(), nonzero() or synchronize() at these places: keep the value on the device,"
        " and read it every run.log_every steps.",
        measure_next="Idle time of the step, and the same table of waits; with profiler.with_stack = true it names the"
        " line of the program.",
        **facts.bound(lost.ns),
        assumptions="Without the wait the host is far enough ahead that the device never runs dry.",
    )


def reads_on_host(facts: Facts) -> Findings:
    """On a trace without a device: what would be a wait on one."""
    sites = facts.table("waits")
    if not facts.on_host or sites.is_empty():
        return
    phase = pl.col("within") + " " + pl.col("phase")
    sites = sites.filter(
        pl.col("cause").is_in(_SYNCHRONISES), pl.col("num_steps") >= max(facts.num_steps, MIN_STEPS),
        ~phase.str.contains(_MAY_READ) & (pl.col("phase") != NO_PHASE) | pl.col("frame").is_not_null(),
    )  # fmt: skip
    if sites.is_empty():
        return
    lost = facts.most(sites, "waited_ns")
    here = sites.filter(pl.col("rank") == lost.rank)
    yield Finding(
        fault=Fault.READ_ON_HOST,
        title="A number is read from a tensor in every step",
        evidence=(
            f"rank {lost.rank}: {number(total(here['num']) / facts.num_steps)} values are read in a step; on a device"
            " each would stop the host until all work launched before is done.",
            *_places(facts, sites, lost.rank, "waited_ns"),
        ),
        cause="A .item(), float(tensor) or a branch on a tensor's value inside the step.",
        remedy="Keep the value in a tensor, and read it every run.log_every steps.",
        measure_next="The same run on a device: idle time after these calls.",
        **facts.bound(lost.ns),
        assumptions="On this host reading costs only its own time; what it costs on a device is not in this trace.",
    )


def garbage(facts: Facts) -> Findings:
    """Python collects garbage during steps."""
    sites, column = _sites(facts, (syncs.GARBAGE,))
    lost = facts.most(sites, column)
    if facts.share(lost.ns) < MIN_SHARE:
        return
    here = sites.filter(pl.col("rank") == lost.rank)
    yield Finding(
        fault=Fault.GARBAGE,
        title="Garbage collections stop the host",
        evidence=(
            f"rank {lost.rank}: {number(total(here['num']) / facts.num_steps)} collections a step, {time(lost.ns)} of"
            f" {time(facts.step_ns)}; the longest {time(scalar(here['longest_ns'].max()))}.",
            *_places(facts, sites, lost.rank, column),
        ),
        cause="Automatic collection, or gc.collect() in the loop, goes through all objects of the process.",
        remedy="run.gc_every = 100   # and gc.freeze() after the start, no gc.collect() in the loop",
        measure_next="The longest step against the median one, on all ranks: one that collects stops the others.",
        **facts.bound(lost.ns),
        assumptions="Collections become so rare that they no longer count.",
    )


def recompilation(facts: Facts) -> Findings:
    """The compiler is at work in several steps."""
    sites, column = _sites(facts, (syncs.COMPILATION,))
    lost = facts.most(sites, column)
    if sites.is_empty() or facts.share(lost.ns) < MIN_SHARE:
        return
    here = sites.filter(pl.col("rank") == lost.rank)
    in_steps = max(int(scalar(here["num_steps"].max())), _steps_of(facts, here))
    if in_steps < MIN_STEPS:
        return
    yield Finding(
        fault=Fault.RECOMPILATION,
        title="The model is compiled again in several steps",
        evidence=(
            f"rank {lost.rank}: {total(here['num']):.0f} compilations in {in_steps} of {facts.num_steps} steps,"
            f" {time(lost.ns)} of a step of {time(facts.step_ns)}.",
            *_places(facts, sites, lost.rank, column),
        ),
        cause="A guard fails in each step: a shape, a Python number or an object that changes.",
        remedy="strategies.compile.dynamic = true   # for shapes that change; else make the value a tensor",
        measure_next="TORCH_LOGS=recompiles names the guard; after the second step there must be no compilation.",
        **facts.bound(lost.ns),
        assumptions="Everything has been compiled before the first of these steps.",
    )


def _sites(facts: Facts, causes: tuple[str, ...]) -> tuple[pl.DataFrame, str]:
    """The waits of some causes, and which of their times is lost."""
    sites = facts.table("waits")
    if not sites.is_empty():
        sites = sites.filter(pl.col("cause").is_in(causes))
    return (pl.DataFrame() if sites.is_empty() else sites), "waited_ns" if facts.on_host else "idle_ns"


def _steps_of(facts: Facts, sites: pl.DataFrame) -> int:
    """In how many steps the first waits of the sites were."""
    steps = facts.table("steps").filter(pl.col("rank") == sites["rank"][0])
    first = sites.select(at="first_ts_ns").sort("at")
    starts = steps.select(at="start_ns", step="step").unique("at").sort("at")
    return first.join_asof(starts, on="at")["step"].drop_nulls().n_unique()


def _places(facts: Facts, sites: pl.DataFrame, rank: int, column: str) -> list[str]:
    """A sentence for each of the costliest places of a rank."""
    found: list[str] = []
    here = sites.filter(pl.col("rank") == rank).sort(column, descending=True).head(_MAX_SITES)
    for row in here.iter_rows(named=True):
        said = f"{row['cause']}: {row['call']}" + (f" in {row['operator']}" if row["operator"] else "")
        said += f", phase {place(row['within'], row['phase'])}, {number(row['num'] / facts.num_steps)} times a step"
        said += f", {time(row[column] / facts.num_steps)} a step"
        found.append(said + (f", at {row['frame']}." if row["frame"] else "."))
    return found
