"""Matrix products that do not use what tensor cores can do. Shapes must have been recorded."""

import polars as pl

from ..peaks import peak_of_header
from ..work import MATRIX
from .facts import Facts, Findings
from .finding import Fault, Finding, time
from .thresholds import FLOAT32_SHARE, MIN_SHARE_OF_TIMES

_MAX_NAMES = 3


def float32(facts: Facts) -> Findings:
    """Products of float32 on a device that is several times faster with narrower types."""
    table, peak = facts.table("roofline"), peak_of_header(facts.analysis.header)
    if table.is_empty() or peak is None:
        return
    narrow, wide = peak.of("bfloat16") or peak.of("half"), peak.of("float")
    if not narrow or not wide or narrow < 2 * wide:
        return
    mine = table.filter(_is_matrix(), pl.col("dtype") == "float")
    spent = facts.most(mine, "in_steps_ns")
    if facts.share(spent.ns) < FLOAT32_SHARE:
        return
    yield Finding(
        fault=Fault.FLOAT32,
        title="Matrix products run in float32, without tensor cores",
        evidence=(
            f"rank {spent.rank}: {time(spent.ns)} of {time(facts.step_ns)} in products of float32; {peak.name} does"
            f" {wide / 1e12:.0f} TFLOP/s with it, {narrow / 1e12:.0f} with 16 bits.",
            *_shapes(mine, spent.rank),
        ),
        cause="No autocast, no narrower parameters, and TF32 is off.",
        remedy='strategies.amp = {}                        # or strategies.fsdp2.param_dtype = "bf16"\n'
        'strategies.matmul_precision.precision = "high"   # TF32, for what must stay float32',
        measure_next="Loss after some hundred steps, and the share of products whose type is 16 bits wide.",
        **facts.bound(spent.ns * (1 - wide / narrow)),
        assumptions="The products keep their efficiency, and casts cost nothing.",
    )


def odd_sides(facts: Facts) -> Findings:
    """Products with sides that do not fill 16 bytes."""
    table = facts.table("roofline")
    if table.is_empty():
        return
    mine = table.filter(_is_matrix(), pl.col("aligned") == False)  # noqa: E712
    lost = facts.most(mine, pl.col("in_steps_ns") * (1 - pl.col("efficiency").fill_null(0.0).clip(0.0, 1.0)))
    if facts.share(lost.ns) < MIN_SHARE_OF_TIMES:
        return
    yield Finding(
        fault=Fault.ODD_SIDES,
        title="Sides of matrices do not suit tensor cores",
        evidence=(f"rank {lost.rank}: such products lose up to {time(lost.ns)} of a step.", *_shapes(mine, lost.rank)),
        cause="A dimension that is no multiple of 8 (16 bits) or 16 (8 bits): loads are narrower, tiles are padded.",
        remedy="Round the named sides up: model.decoder.vocab_size, model.decoder.ffn_dim or model.decoder.dim to a"
        " multiple of 64, batch.sequence_length to one of 8.",
        measure_next="Efficiency of these products in the roofline.",
        **facts.bound(lost.ns),
        assumptions="With even sides they reach the roof of the device.",
    )


def _is_matrix() -> pl.Expr:
    return pl.col("family").is_in([family.value for family in MATRIX])


def _shapes(rows: pl.DataFrame, rank: int) -> list[str]:
    mine = rows.filter(pl.col("rank") == rank).sort("dur_ns", descending=True).head(_MAX_NAMES)
    return [
        f"{operator or name[:100]} {dims or ''}: {time(ns)} in the trace" + (f"; {odd}." if odd else ".")
        for operator, name, dims, ns, odd in mine.select("operator", "name", "dims", "dur_ns", "odd_sides").iter_rows()
    ]
