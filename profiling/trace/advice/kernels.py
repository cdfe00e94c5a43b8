"""Too many pieces of work, each too small: launches, chains of small kernels, the optimizer."""

import polars as pl

from ..critical_path.whatif import MEMORY_BOUND
from ..work import MATRIX
from .facts import Facts, Findings, Mean, scalar, total
from .finding import Fault, Finding, number, time
from .thresholds import (
    FUSION_SHARE,
    MIN_FUSIBLE_KERNELS,
    MIN_LAUNCHES,
    MIN_OPTIMIZER_CALLS,
    MIN_SHARE,
    MIN_SHARE_OF_TIMES,
    MIN_SHORT_OPERATORS,
    NEARLY_ALL,
    SHORT_KERNELS_SHARE,
    SHORT_OPERATOR_NS,
    SHORT_OPERATORS_SHARE,
)

_OPTIMIZER = r"^Optimizer\.step#|stepladder::optimizer$"
_HAS_FUSED = r"(?i)adam|sgd|adagrad"
_IS_FUSED = r"_fused_|^Optimizer\.step#Fused|CompiledFxGraph|Torch-Compiled Region"
_MAX_NAMES = 3


def launch_bound(facts: Facts) -> Findings:
    """The device waits for launches, most of which start less work than they take."""
    launches, gain = facts.table("step_launches"), facts.what_if("launches free")
    if facts.on_host or launches.is_empty() or facts.share(gain.ns) < MIN_SHARE_OF_TIMES:
        return
    here = launches.filter(pl.col("rank") == gain.rank)
    num, short = total(here["num"]), total(here["num_short"]) + total(here["num_slow"])
    lost = min(gain.ns, facts.most(facts.table("steps"), pl.col("window_ns") - pl.col("compute_ns")).ns)
    many = num >= MIN_LAUNCHES * facts.num_steps
    if not many or short < SHORT_KERNELS_SHARE * num or facts.share(lost) < MIN_SHARE_OF_TIMES:
        return
    call, device = total(here["call_ns"]) / num, total(here["device_ns"]) / num
    yield Finding(
        fault=Fault.LAUNCH_BOUND,
        title="The step is bound by launches: many kernels are shorter than their launch",
        evidence=(
            f"rank {gain.rank}: {number(num / facts.num_steps)} launches a step; {short / num:.0%} of them start less"
            f" work than the call takes. A call takes {time(call)}, its work {time(device)}.",
            f"What-if: without launches and the gaps between kernels a step is shorter by {time(gain.ns)}.",
            *_names(facts, gain.rank),
        ),
        cause="Small tensors, or operators that Python launches one by one: the host cannot keep the device busy.",
        remedy="strategies.compile = {}      # fewer kernels\nstrategies.cuda_graph = {}   # or: one launch for all",
        measure_next="Idle time and the number of launches of a step with each of them alone.",
        **facts.bound(lost),
        assumptions="Everything launched can be captured in a graph; Python between the operators remains.",
    )


def fusion(facts: Facts) -> Findings:
    """Chains of kernels that read and write the same tensors again."""
    kernels, gain = facts.table("step_kernels"), facts.what_if("kernels fused")
    if facts.on_host or kernels.is_empty() or facts.share(gain.ns) < FUSION_SHARE:
        return
    name = pl.col("name")
    mine = kernels.filter(
        pl.col("rank") == gain.rank, pl.col("kind") == "compute",
        name.str.contains(f"(?i){MEMORY_BOUND.pattern}") & ~name.str.starts_with("triton_"),
    )  # fmt: skip
    spent = facts.most(mine, "busy_ns")
    num = total(mine["num"]) / facts.num_steps
    if num < MIN_FUSIBLE_KERNELS or facts.share(spent.ns) < FUSION_SHARE:
        return
    idle = facts.most(facts.table("steps"), "idle_ns")
    yield Finding(
        fault=Fault.UNFUSED,
        title="Many small kernels only move memory: fuse them",
        evidence=(
            f"rank {gain.rank}: {number(num)} kernels a step that mostly move memory, {time(spent.ns)} of"
            f" {time(facts.step_ns)}.",
            f"What-if: with neighbours as one kernel, as long as the longest, a step is shorter by {time(gain.ns)}.",
            *_names(facts, gain.rank, mine),
            *_rates(facts, gain.rank),
        ),
        cause="Each elementwise operator reads and writes whole tensors; a fused one would keep them in registers.",
        remedy="strategies.compile = {}",
        measure_next="The number of kernels of a step and their time by name; then the achieved bandwidth of the rest.",
        **facts.bound(min(gain.ns, spent.ns + idle.ns)),
        assumptions="Every chain of neighbours on a stream becomes one kernel, as long as the longest of them.",
    )


def tiny_operators(facts: Facts) -> Findings:
    """On a host without a device: operators that are mostly dispatch."""
    every = facts.table("phase_operators")
    if not facts.on_host or every.is_empty():
        return
    interrupted = pl.col("num_short") >= NEARLY_ALL * pl.col("num")
    every = every.with_columns(short_ns=pl.when(interrupted).then("own_ns").otherwise("short_ns"))
    short = facts.most(every, "short_ns")
    here = every.filter(pl.col("rank") == short.rank).sort("short_ns", descending=True)
    num = total(here["num_short"]) / facts.num_steps
    if num < MIN_SHORT_OPERATORS or facts.share(short.ns) < SHORT_OPERATORS_SHARE:
        return
    here = here.filter(pl.col("num_short") > 0)
    top = here.group_by("name", maintain_order=True).agg(pl.col("num_short", "short_ns").sum()).head(_MAX_NAMES)
    yield Finding(
        fault=Fault.TINY_OPERATORS,
        title="Many tiny operators: the step is bound by their dispatch",
        evidence=(
            f"rank {short.rank}: {number(num)} operators a step with less than {time(SHORT_OPERATOR_NS)} of their own;"
            f" operators of this kind take {time(short.ns)} of {time(facts.step_ns)}.",
            *(
                f"{name}: {number(count / facts.num_steps)} a step, {time(ns / count)} each."
                for name, count, ns in top.iter_rows()
            ),
        ),
        cause="Tensors are so small that going through the dispatcher and Python takes longer than computing.",
        remedy="strategies.compile = {}\n# or larger: batch.microbatch_size, model.decoder.dim",
        measure_next="The number of operators of a step, and its time, with it.",
        **facts.bound(short.ns),
        assumptions="Fused into a few large ones these operators cost nothing of their own. Single long calls of an"
        f" operator of which {NEARLY_ALL:.0%} are short were interrupted.",
    )


def optimizer(facts: Facts) -> Findings:
    """The optimizer goes through the parameters one by one, or in several passes."""
    every = facts.table("phase_operators")
    if every.is_empty():
        return
    phase = pl.col("phase").str.contains(_OPTIMIZER) | pl.col("within").str.contains(_OPTIMIZER)
    mine = every.filter(phase)
    if mine.is_empty() or mine.select(pl.any_horizontal(pl.col("name", "phase").str.contains(_IS_FUSED)).any()).item():
        return
    spent, calls = _optimizer_time(facts, phase), mine.group_by("rank").agg(pl.col("num").sum())["num"].max()
    num = scalar(calls) / facts.num_steps
    if num < MIN_OPTIMIZER_CALLS or facts.share(spent.ns) < MIN_SHARE:
        return
    titles = mine.filter(pl.col("phase").str.starts_with("Optimizer.step#"))["phase"].unique().sort().to_list()
    foreach = mine["name"].str.contains("_foreach_").any()
    top = mine.group_by("name").agg(pl.col("num").sum()).sort("num", "name", descending=[True, False])["name"]
    has = not titles or any(pl.Series(titles).str.contains(_HAS_FUSED))
    yield Finding(
        fault=Fault.OPTIMIZER,
        title="The optimizer is not fused",
        evidence=(
            f"rank {spent.rank}: {', '.join(titles) or 'the optimizer'} takes {time(spent.ns)} of"
            f" {time(facts.step_ns)}, with {number(num)} operators a step ({', '.join(top.head(_MAX_NAMES))}) and no"
            " fused one.",
            *_launched(facts, phase),
        ),
        cause="implementation = foreach: several passes over all parameters."
        if foreach
        else "A loop over the parameters: several operators for each of them.",
        remedy='strategies.adamw.implementation = "fused"'
        if has
        else "strategies.compile = {}   # this optimizer has no fused form; compile its step",
        measure_next="Time of the optimizer phase, and its number of kernels.",
        **facts.bound(spent.ns),
        assumptions="A fused step costs nothing; it must still read and write parameters and moments once.",
    )


def _optimizer_time(facts: Facts, phase: pl.Expr) -> Mean:
    """Of a step: on the device its work and idle time of that phase, on the host the phase."""
    if facts.on_host:
        table = facts.table("host_phases")
        return facts.most(table if table.is_empty() else table.filter(phase), "own_ns")
    table = facts.table("phases")
    return facts.most(table if table.is_empty() else table.filter(phase), pl.col("compute_ns") + pl.col("idle_ns"))


def _launched(facts: Facts, phase: pl.Expr) -> list[str]:
    work = facts.table("phase_work")
    if work.is_empty() or facts.on_host:
        return []
    sums = work.filter(phase).group_by("rank").agg(pl.col("num", "busy_ns").sum()).sort("num", descending=True)
    return [
        f"rank {rank}: it launches {number(num / facts.num_steps)} kernels a step, {time(busy / max(num, 1))} each."
        for rank, num, busy in sums.head(1).iter_rows()
    ]


def _names(facts: Facts, rank: int, kernels: pl.DataFrame | None = None) -> list[str]:
    """The kernels that are launched most often."""
    table = facts.table("step_kernels") if kernels is None else kernels
    if table.is_empty():
        return []
    mine = table.filter(pl.col("rank") == rank, pl.col("kind") == "compute").group_by("name")
    mine = mine.agg(pl.col("num", "busy_ns").sum()).sort("num", "name", descending=[True, False])
    return [
        f"{name[:100]}: {number(num / facts.num_steps)} a step, {time(busy / num)} each."
        for name, num, busy in mine.head(_MAX_NAMES).iter_rows()
    ]


def _rates(facts: Facts, rank: int) -> list[str]:
    """How close to the memory's peak those are whose shapes are known."""
    table = facts.table("roofline")
    if table.is_empty():
        return []
    mine = table.filter(pl.col("rank") == rank, pl.col("bound") == "memory", pl.col("byte_s").is_not_null())
    mine = mine.filter(~pl.col("family").is_in([family.value for family in MATRIX]))  # no chain has products in it
    mine = mine.sort("dur_ns", descending=True)
    return [
        f"Bound by memory: {name[:100]} moves {rate / 1e9:.0f} GB/s, {efficiency:.0%} of what the device can."
        for name, rate, efficiency in mine.select("name", "byte_s", "efficiency").head(1).iter_rows()
        if efficiency is not None
    ]
