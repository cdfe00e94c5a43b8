"""Exchanges between ranks that computation does not hide.

Waiting for a late rank is not counted here (`ranks`): of an exchange that several ranks recorded only what the shortest
of its kernels took. Each cause below answers for what the one before it leaves.
"""

from dataclasses import dataclass

import polars as pl

from ...spans import Span
from ..collective_sizes import PAIRWISE, Collective
from .facts import Facts, Findings, scalar, total
from .finding import Fault, Finding, number, place, size, time
from .thresholds import (
    LARGE_MESSAGE_BYTES,
    MIN_COMMUNICATION_SHARE,
    MIN_LINK_SHARE,
    MIN_SHARE,
    MIN_SMALL_EXCHANGES,
    SHORT_EXCHANGE_NS,
    SLOW_LINK_GB_S,
    SMALL_MESSAGE_BYTES,
)

_GRADIENTS = (Collective.ALL_REDUCE.value, Collective.REDUCE_SCATTER.value)
_MOST_SENT = 2
"""Bytes that a rank of a large group sends for each byte of an all-reduce."""
_ALONE = " Only one rank's trace has them, so waiting for a late rank is in it."
_UNTOLD = ("How many bytes is not in the trace, so it may also be the link: profiler.record_shapes = true tells.",)
_AUTOGRAD = "autograd::engine::evaluate_function"
_SAME = ["group", "ranks", "type"]
_FEW = 0.1


@dataclass(frozen=True)
class _Cost:
    """Of a step."""

    ns: float
    rank: int
    rows: pl.DataFrame


def exchanges(facts: Facts) -> Findings:
    """One finding at most: why the exchanges cost what they cost."""
    rows = _rows(facts)
    if rows.is_empty():
        return
    rules = (every_microbatch, small_buckets, slow_link, not_overlapped, dominating)
    if facts.in_pipeline:
        # Receiving waits for the stage before, and without groups stages are not told apart: see `ranks`.
        rows = rows.filter(~pl.col("type").is_in([kind.value for kind in PAIRWISE]))
        rules = rules[:3] if (rows["group"] == "").any() else rules
    for rule in rules:
        found = list(rule(facts, rows))
        if found:
            yield from found
            return


def every_microbatch(facts: Facts, rows: pl.DataFrame) -> Findings:
    """Gradients are reduced after each microbatch of an accumulation."""
    mine = _gradients(facts, rows)
    if mine.is_empty():
        return
    last = pl.col("microbatch").max().over("rank", "step")
    early = mine.filter(pl.col("microbatch") < last)
    cost = _cost(facts, early)
    if facts.share(cost.ns) < MIN_SHARE:
        return
    per = mine.group_by("rank", "step").agg(pl.col("microbatch").n_unique())["microbatch"].max()
    sharded = bool((early["type"] == Collective.REDUCE_SCATTER.value).any())
    yield Finding(
        fault=Fault.EVERY_MICROBATCH,
        title="Gradients are reduced in every microbatch of the accumulation",
        evidence=(
            f"rank {cost.rank}: reductions after each of {per} microbatches of a step; those before the last one take"
            f" {time(cost.ns)} of {time(facts.step_ns)}.",
            _named(cost),
        ),
        cause="The backward passes before the last one run without no_sync().",
        remedy="strategies.fsdp2.reduce_every_microbatch = false   # keeps the whole gradient on each rank"
        if sharded
        else "strategies.accumulation.num_microbatches with strategies.ddp: it reduces with the last microbatch only"
        "\n# in a loop of your own: with model.no_sync(): for all microbatches but the last",
        measure_next="The number of reductions of a step, and memory: unreduced gradients stay.",
        **facts.bound(cost.ns),
        assumptions="The reductions before the last microbatch vanish, and the last one becomes no longer.",
    )


def small_buckets(facts: Facts, rows: pl.DataFrame) -> Findings:
    """Many reductions where few would do."""
    short = pl.col("message_bytes").is_null() & (pl.col("transfer_ns") < SHORT_EXCHANGE_NS)
    small = (pl.col("message_bytes") < SMALL_MESSAGE_BYTES) | short
    mine = _gradients(facts, rows).filter(pl.col("type") == Collective.ALL_REDUCE.value, small)
    mine = mine.filter(pl.len().over("rank", "step", "microbatch") >= MIN_SMALL_EXCHANGES)
    cost = _cost(facts, mine)
    if facts.share(cost.ns) < MIN_SHARE:
        return
    here = cost.rows
    known = here["message_bytes"].drop_nulls()
    each = size(scalar(known.median())) if len(known) else time(scalar(here["transfer_ns"].median()))
    yield Finding(
        fault=Fault.SMALL_BUCKETS,
        title="Many small all-reduces"
        + (": the buckets of gradients are too small" if len(known) else ", as far as durations tell"),
        evidence=(
            f"rank {cost.rank}: {number(here.height / facts.num_steps)} all-reduces a step of {each} each (median)"
            f" cost {time(cost.ns)} of {time(facts.step_ns)}.",
            _named(cost),
            *_UNTOLD[: 1 if not len(known) else 0],
        ),
        cause="Each exchange pays latency; small buckets pay it many times, and never reach the link's bandwidth.",
        remedy="strategies.ddp.bucket_mib = 25   # and more: 50, 100",
        measure_next="gradient_sync and bus bandwidth with 25, 50 and 100: too large ones start too late to overlap.",
        **facts.bound(cost.ns),
        assumptions="One exchange of the same bytes costs nothing that computation does not hide.",
    )


def slow_link(facts: Facts, rows: pl.DataFrame) -> Findings:
    """Large messages travel at a small part of what the link can do."""
    known = rows.filter(pl.col("message_bytes") >= LARGE_MESSAGE_BYTES, pl.col("transfer_ns") > 0)
    # Of a group of unknown size: what the largest would have to send.
    known = known.with_columns(pl.col("bus_bytes").fill_null(_MOST_SENT * pl.col("message_bytes")))
    known = known.with_columns(rate=pl.col("bus_bytes") / pl.col("transfer_ns"))
    share = pl.col("rate") / pl.col("link_gb_s")
    slow = known.filter((share < MIN_LINK_SHARE) | (pl.col("link_gb_s").is_null() & (pl.col("rate") < SLOW_LINK_GB_S)))
    cost = _cost(facts, slow)
    if facts.share(cost.ns) < MIN_COMMUNICATION_SHARE:
        return
    here = cost.rows
    rate = total(here["bus_bytes"]) / total(here["transfer_ns"])
    peak = here["link_gb_s"].drop_nulls()
    against = f"{rate / peak[0]:.0%} of the link's {peak[0]:.0f} GB/s" if len(peak) else "the link's peak is unknown"
    yield Finding(
        fault=Fault.SLOW_LINK,
        title="Large exchanges are far below what the link can do",
        evidence=(
            f"rank {cost.rank}: {number(here.height / facts.num_steps)} exchanges a step of at least"
            f" {size(LARGE_MESSAGE_BYTES)} reach {rate:.3g} GB/s ({against}), and cost {time(cost.ns)} of"
            f" {time(facts.step_ns)}.",
            _named(cost),
        ),
        cause="The group spans a slow link (between nodes, PCI Express, TCP), or NCCL has chosen a bad path.",
        remedy="mesh: put the axis that exchanges most inside a node (tp, dp_shard), dp_replicate across\n"
        'strategies.ddp.compression = "bf16"   # or strategies.fsdp2.reduce_dtype = "bf16": half the bytes\n'
        'strategies.nccl.log = "INFO"          # which network and algorithm it uses',
        measure_next="Bus bandwidth of the same message in nccl-tests on the same ranks.",
        **facts.bound(cost.ns),
        assumptions="At the link's peak, and overlapped, these exchanges cost nothing.",
    )


def not_overlapped(facts: Facts, rows: pl.DataFrame) -> Findings:
    """Nothing computes during the exchanges, though there was enough to compute."""
    mine = rows.filter(~pl.col("type").is_in([kind.value for kind in PAIRWISE]))
    cost = _cost(facts, mine)
    if mine.is_empty() or facts.share(cost.ns) < MIN_COMMUNICATION_SHARE:
        return
    here = cost.rows
    exposed = total(here["exposed_ns"]) / max(total(here["dur_ns"]), 1.0)
    compute = facts.most(facts.table("steps"), pl.col("compute_ns") + pl.col("overlapped_communication_ns"))
    if exposed < 0.8 or compute.ns < cost.ns:
        return
    yield Finding(
        fault=Fault.NOT_OVERLAPPED,
        title="Exchanges do not overlap with computation",
        evidence=(
            f"rank {cost.rank}: {exposed:.0%} of the time of its exchanges nothing computes: {time(cost.ns)} of"
            f" {time(facts.step_ns)}, beside {time(compute.ns)} of computation.",
            _named(cost),
            *_UNTOLD[: 1 if here["message_bytes"].is_null().all() else 0],
        ),
        cause="The exchange begins when the last gradient is there, or its result is needed at once: no overlap, no"
        " prefetch, or one bucket for all.",
        remedy="strategies.ddp.overlap = true      # and a smaller strategies.ddp.bucket_mib\n"
        "strategies.fsdp2.overlap = true\nstrategies.fsdp2.prefetch = 2",
        measure_next="exposed against overlapped communication of a step.",
        **facts.bound(cost.ns),
        assumptions="All of it can run beside computation, which does not become slower.",
    )


def dominating(facts: Facts, rows: pl.DataFrame) -> Findings:
    """Exchanges take much of the step, whatever is done beside them."""
    cost = _cost(facts, rows)
    if facts.share(cost.ns) < MIN_COMMUNICATION_SHARE:
        return
    yield Finding(
        fault=Fault.DOMINATING,
        title="Exchanges between ranks dominate the step",
        evidence=(f"rank {cost.rank}: {time(cost.ns)} of {time(facts.step_ns)} is {_what(facts)}.", _named(cost)),
        cause="More is exchanged than the step can hide: too many ranks for so little work, or the wrong axes.",
        remedy="mesh: fewer ranks on the axis that exchanges most, that axis inside a node; or a larger"
        " batch.microbatch_size, or strategies.accumulation = {}",
        measure_next="Time of a step on one rank with the same microbatch; the difference is what exchanging costs.",
        **facts.bound(cost.ns),
        assumptions="Perfect overlap.",
    )


def _rows(facts: Facts) -> pl.DataFrame:
    """Exchanges of the steps with cost_ns, transfer_ns, phase and microbatch."""
    rows, steps = facts.table("collectives"), facts.table("steps")
    if rows.is_empty() or steps.is_empty():
        return pl.DataFrame()
    rows = rows.with_columns(pl.col("step").fill_null(-1))
    rows = rows.join(steps.select("rank", "step").unique(), on=["rank", "step"], how="semi")
    phases = facts.table("phase_exchanges")
    if phases.is_empty():
        nothing = pl.lit(None, dtype=pl.String)
        rows = rows.with_columns(within=nothing, phase=nothing, microbatch=pl.lit(-1, dtype=pl.Int64))
    else:
        rows = rows.join(phases, on=["rank", "row"], how="left")
        rows = rows.filter(pl.col("in_step").fill_null(True))  # nothing behind the last one's end
    one = [*_SAME, "step", "step_order"]
    rows = rows.with_columns(num_here=pl.col("rank").n_unique().over(one).cast(pl.Int64))
    untold = (pl.col("num_here") > 1) & facts.all_read
    is_whole = (pl.col("num_here") >= pl.col("size")).fill_null(untold)
    rows = rows.with_columns(is_whole=is_whole, transfer_ns=pl.col("dur_ns").min().over(one))
    return rows.with_columns(cost_ns=pl.min_horizontal("exposed_ns", "transfer_ns"))


def _gradients(facts: Facts, rows: pl.DataFrame) -> pl.DataFrame:
    """Reductions of gradients: launched in backward passes, in groups that do not reduce in forward passes.

    Where passes are not marked, every reduction of a program that has a backward pass.
    """
    operators, reduces = facts.table("phase_operators"), pl.col("type").is_in(_GRADIENTS)
    if (rows["microbatch"] < 0).all():
        trains = not operators.is_empty() and operators["name"].str.starts_with(_AUTOGRAD).any()
        return rows.filter(reduces) if trains else rows.clear()
    backward = (Span.BACKWARD.value, Span.GRADIENT_SYNC.value)
    inside = pl.col("within").is_in(backward) | pl.col("phase").is_in(backward)
    forward = (pl.col("within") == Span.FORWARD.value).fill_null(False).any().over("rank", *_SAME)
    return rows.filter(inside & ~forward, reduces)


def _cost(facts: Facts, rows: pl.DataFrame) -> _Cost:
    """Of a step, on the rank where it is most; on the host all of it costs, for it takes cores from the computation."""
    if rows.is_empty():
        return _Cost(0.0, -1, rows)
    column = pl.when(pl.col("on_host")).then("transfer_ns").otherwise("cost_ns")
    devices = rows.select(pl.col("device").n_unique().over("rank").max()).item()
    most = facts.most(rows.drop("device"), column / devices)
    exposed, hidden = "exposed_communication_ns", "overlapped_communication_ns"
    here = facts.table("steps").filter(pl.col("rank") == most.rank)
    # Those that run at the same time cost it once.
    whole = facts.most(here, pl.col(exposed) + pl.col(hidden) if facts.on_host else pl.col(exposed))
    return _Cost(min(most.ns, whole.ns), most.rank, rows.filter(pl.col("rank") == most.rank))


def _what(facts: Facts) -> str:
    """What `_cost` counts, in the words of the table of steps."""
    return "exchange, exposed or overlapped: on the host it takes cores" if facts.on_host else "exposed exchange"


def _named(cost: _Cost) -> str:
    """The kind of exchange that costs most, and where."""
    groups = cost.rows.group_by("name", "type", "ranks", "within", "phase").agg(
        pl.len().alias("num"), pl.col("cost_ns").sum(), pl.col("step").n_unique().alias("steps")
    )
    row = groups.sort("cost_ns", "name", descending=[True, False]).row(0, named=True)
    ranks = f" among ranks {row['ranks']}" if row["ranks"] else ""
    where = place(row["within"], row["phase"])
    said = (
        f"Most of it: {row['type']} ({row['name'][:80]}){ranks}, {row['num']} in {row['steps']} steps, phase {where}."
    )
    return said + _waiting_in_it(cost)


def _waiting_in_it(cost: _Cost) -> str:
    """Where it cannot be told how much of the cost is waiting; a few rows at the edges of a trace do not matter."""
    there = cost.rows.filter(~pl.col("is_whole"))
    if total(there["cost_ns"]) < _FEW * total(cost.rows["cost_ns"]) or there.is_empty():
        return ""
    row = there.sort("cost_ns", descending=True).row(0, named=True)
    if row["num_here"] == 1:
        return _ALONE
    of = f" of its {row['size']}" if row["size"] else ""
    return f" Only {row['num_here']}{of} ranks' traces are here, so waiting for one of the others may be in it."
