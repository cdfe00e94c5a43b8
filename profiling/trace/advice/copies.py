"""Copies between host and device that nothing hides."""

import polars as pl

from .. import syncs
from .facts import Facts, Findings, total
from .finding import Fault, Finding, number, time
from .thresholds import MIN_SHARE, MIN_SHARE_OF_TIMES

_PAGEABLE = "(?i)HtoD.*Pageable|Pageable -> Device|DtoH.*Pageable|Device -> Pageable"


def pageable(facts: Facts) -> Findings:
    """Copies from or to memory that may be paged out, which must be staged and make the host wait."""
    kernels, sites = facts.table("step_kernels"), facts.table("waits")
    if facts.on_host or kernels.is_empty():
        return
    copied = kernels.filter(pl.col("name").str.contains(_PAGEABLE))
    if not sites.is_empty():
        sites = sites.filter(pl.col("cause") == syncs.PAGEABLE)
    if copied.is_empty() or sites.is_empty():
        return
    idle, copy = facts.most(sites, "idle_ns"), facts.most(copied, "busy_ns")
    not_idle = facts.most(facts.table("steps"), pl.col("copy_ns"))
    lost = idle.ns + min(copy.ns, not_idle.ns)
    if facts.share(lost) < MIN_SHARE:
        return
    here = sites.filter(pl.col("rank") == idle.rank)
    row = here.sort("waited_ns", descending=True).row(0, named=True)
    yield Finding(
        fault=Fault.PAGEABLE,
        title="Copies go through pageable memory",
        evidence=(
            f"rank {copy.rank}: {time(copy.ns)} of a step in {copied['name'][0]};"
            f" rank {idle.rank}: {number(total(here['num']) / facts.num_steps)} waits a step for such copies, after"
            f" which the device is idle for {time(idle.ns)}.",
            f"Longest: {row['call']} in {row['operator'] or 'no operator'}, {time(row['longest_ns'])}"
            + (f", at {row['frame']}." if row["frame"] else "."),
        ),
        cause="The tensors on the host are not page-locked, so that each copy is staged by the driver, and waits.",
        remedy="loader.pin_memory = true\nloader.non_blocking = true\nloader.device_prefetch = true",
        measure_next="The names of the copies (Pinned -> Device), and idle time in host_to_device.",
        **facts.bound(lost),
        assumptions="The copies then run beside computation, and no launch waits for them.",
    )


def exposed_copies(facts: Facts) -> Findings:
    """Copies during which nothing else runs."""
    steps = facts.table("steps")
    if facts.on_host:
        return
    lost = facts.most(steps, "copy_ns")
    if facts.share(lost.ns) < MIN_SHARE_OF_TIMES or any(pageable(facts)):
        return
    kernels = facts.table("kernels")
    names = kernels if kernels.is_empty() else kernels.filter((pl.col("kind") == "memory"), pl.col("rank") == lost.rank)
    longest = () if names.is_empty() else (f"Most of it: {names['name'][0]}, {names['count'][0]} times in the trace.",)
    yield Finding(
        fault=Fault.EXPOSED_COPY,
        title="Copies run while nothing computes",
        evidence=(
            f"rank {lost.rank}: {time(lost.ns)} of a step of {time(facts.step_ns)} only copies or fills.",
            *longest,
        ),
        cause="The batch, or what is offloaded, is copied when it is needed, not before.",
        remedy="loader.device_prefetch = true",
        measure_next="copy of the step, and overlap of the copy's stream with kernels.",
        **facts.bound(lost.ns),
        assumptions="All of the copies can run beside computation.",
    )
