"""Ranks that do not fit together: one is late, or the stages of a pipeline are uneven."""

from math import comb

import polars as pl

from ...spans import Span
from ..collective_sizes import PAIRWISE
from .facts import Facts, Findings, scalar
from .finding import Fault, Finding, place, time
from .thresholds import BUBBLE_SHARE, IMBALANCE, LATE_BY_CHANCE, MIN_SHARE_OF_TIMES

_ITS_OWN_ADVICE = (Span.DATA_WAIT.value,)


def straggler(facts: Facts) -> Findings:
    """The others wait for one rank, step after step."""
    waits = facts.table("collective_waits")
    if waits.is_empty() or facts.in_pipeline:
        return
    waits = waits.filter(~pl.col("type").is_in([kind.value for kind in PAIRWISE]), pl.col("cost_ns") > 0)
    by_rank = waits.group_by("last_rank").agg(pl.col("cost_ns").sum()).sort("cost_ns", descending=True)
    if by_rank.is_empty():
        return
    rank, cost = by_rank.row(0)
    often = _steps_late(facts, waits, rank)
    lost = cost / max(facts.num_steps, 1)
    if facts.share(lost) < MIN_SHARE_OF_TIMES or _at_least(often, facts.num_steps) > LATE_BY_CHANCE:
        return
    excess = _excess(facts, rank)
    if excess and excess[0] in _ITS_OWN_ADVICE:
        return
    mine = waits.filter(pl.col("last_rank") == rank).row(0, named=True)
    why = () if excess is None else (f"It spends {time(excess[2])} more of a step than the others in {excess[1]}.",)
    yield Finding(
        fault=Fault.STRAGGLER,
        title=f"Rank {rank} is late: the others wait for it",
        evidence=(
            f"rank {rank} comes last to exchanges and costs {time(lost)} of a step of {time(facts.step_ns)};"
            f" in {often} of {facts.num_steps} steps {MIN_SHARE_OF_TIMES:.0%} of it and more.",
            f"Most: {mine['type']} of step {mine['step']}, where it came {time(mine['skew_ns'])} after the first.",
            *why,
        ),
        cause=f"Rank {rank} has more work (uneven batches), a slower device or host, or other processes beside it.",
        remedy=f"Nothing of the recipe alone: look at the host and device of rank {rank} (clocks, temperature, power,"
        " other processes), and at what its batch holds.",
        measure_next=f"The same run with rank {rank} on another device: is the rank late again, or the device?",
        **facts.bound(lost),
        assumptions="The rank becomes as fast as the one before it.",
    )


def _steps_late(facts: Facts, waits: pl.DataFrame, rank: int) -> int:
    """In how many steps a rank costs noticeably more than all the others together."""
    own = pl.when(pl.col("last_rank") == rank).then("cost_ns").otherwise(-pl.col("cost_ns"))
    more = waits.group_by("step").agg(own.sum().alias("more_ns"))["more_ns"]
    return int((more >= MIN_SHARE_OF_TIMES * facts.step_ns).sum())


def _at_least(often: int, of: int) -> float:
    """How likely a fair coin falls on one side so often, or more often."""
    return sum(comb(of, each) for each in range(often, of + 1)) / 2**of


def pipeline(facts: Facts) -> Findings:
    """The stages wait for each other."""
    found, phases = facts.table("steps"), facts.table("phases")
    if not facts.in_pipeline or found["rank"].n_unique() < 2:
        return
    busy = facts.by_rank(found, pl.col("compute_ns") + pl.col("overlapped_communication_ns"))
    mean, most = scalar(busy["ns"].mean()), scalar(busy["ns"].max())
    waiting = phases.filter(_in_pipeline())
    waits = facts.by_rank(waiting, pl.col("idle_ns") + pl.col("exposed_communication_ns"))
    least, longest = waits.row(-1), waits.row(0)
    told = f"Waiting in a step: {time(longest[1])} on rank {longest[0]}, {time(least[1])} on rank {least[0]}."
    if most > IMBALANCE * mean and facts.share(most - mean) >= MIN_SHARE_OF_TIMES:
        each = ", ".join(f"rank {rank}: {time(ns)}" for rank, ns in busy.sort("rank").head(16).iter_rows())
        yield Finding(
            fault=Fault.UNEVEN_STAGES,
            title="The stages of the pipeline are uneven",
            evidence=(f"Computing in a step of {time(facts.step_ns)}: {each}.", told),
            cause=f"The cuts give rank {busy['rank'][0]} more than its part; the others wait for it.",
            remedy="strategies.pp.cuts = [...]   # fewer blocks for that rank; left out, the costs are estimated",
            measure_next="Computing time by rank.",
            **facts.bound(most - mean),
            assumptions="The same work can be shared out evenly, and the bubble becomes no longer.",
        )
    elif facts.share(least[1]) >= BUBBLE_SHARE:
        yield Finding(
            fault=Fault.BUBBLE,
            title="The bubble of the pipeline is large",
            evidence=(told, f"The stages are even: at most {time(most)} of computing, {time(mean)} on average."),
            cause="Too few microbatches for so many stages.",
            remedy="strategies.accumulation.num_microbatches = ...   # four for each stage, and more\n"
            'strategies.pp.schedule = "interleaved_1f1b"',
            measure_next="Waiting in the pipeline by rank.",
            **facts.bound(float(least[1])),
            assumptions="The bubble vanishes.",
        )


def _in_pipeline() -> pl.Expr:
    return (pl.col("phase") == Span.PIPELINE.value) | (pl.col("within") == Span.PIPELINE.value)


def _excess(facts: Facts, rank: int) -> tuple[str, str, float] | None:
    """The phase in which the host of a rank spends most more than the mean of the others: span, words, how much more.

    Where waiting is what a phase is for, or it contains an exchange, others spend more, so it does not come out.
    """
    table = facts.table("host_phases")
    if table.is_empty() or table["rank"].n_unique() < 2:
        return None
    steps = facts.windows.select("rank", "num_steps")
    sums = table.group_by("rank", "within", "phase").agg(pl.col("own_ns").sum()).join(steps, on="rank")
    sums = sums.with_columns(ns=pl.col("own_ns") / pl.col("num_steps"), mine=pl.col("rank") == rank)
    means = sums.group_by("within", "phase").agg(
        more=pl.col("ns").filter("mine").sum() - pl.col("ns").filter(~pl.col("mine")).sum() / (len(steps) - 1)
    )
    within, phase, more = means.sort("more", "phase", descending=[True, False]).row(0)
    return (phase, place(within, phase), more) if more > 0 else None
