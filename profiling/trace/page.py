"""An analysis -> what its report shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from .analysis import Analysis, offsets_of
from .kernel_names import short_form
from .peaks import Peak, peak_of_header
from .report import Content

_TERA, _GIGA = 1e12, 1e9


def content_of(analysis: Analysis, *, title: str, advice: Sequence[Mapping[str, Any]] | None = None) -> Content:
    """The report's tables, in the form and with the names that it wants."""
    tables = analysis.tables
    ranks = len(analysis.ranks)
    steps = tables["steps"]["step"].n_unique()
    peak = peak_of_header(analysis.header)
    offsets = offsets_of(tables.get("clocks"))
    memory, memory_steps = _memory(tables, offsets)
    return Content(
        title=title,
        subtitle=f"{ranks} rank{'s' if ranks != 1 else ''}, {steps} step{'s' if steps != 1 else ''}"
        + (f", {peak.name}" if peak else ""),
        notes=analysis.notes,
        steps=tables["steps"],
        phases=tables["phases"],
        host_phases=tables["host_phases"],
        timeline=_aligned(tables.get("timeline"), offsets),
        critical=_aligned(tables.get("critical"), offsets),
        across=tables.get("critical_across"),
        path=_path(tables),
        gains=_gains(tables),
        stragglers=tables.get("stragglers"),
        memory=memory,
        memory_steps=memory_steps,
        held=_held(tables["memory_held"]) if "memory_held" in tables else None,
        kernels=_kernels(tables["kernels"]),
        sequences=_sequences(tables["sequences"]) if "sequences" in tables else None,
        operators=_operators(tables["operators"]) if "operators" in tables else None,
        collectives=tables["collective_summary"].drop("ranks", strict=False),
        roofline=_roofline(tables["roofline"]) if "roofline" in tables else None,
        counters=tables["counters"].drop("operators", "ts") if "counters" in tables else None,
        peak_tflops=_ceilings(peak),
        peak_gb_per_s={"memory": peak.byte_s / _GIGA} if peak else {},
        advice=advice,
    )


def _aligned(table: pl.DataFrame | None, offsets: Mapping[int, int], column: str = "start_ns") -> pl.DataFrame | None:
    """With the times of one clock: those of rank r less by how much its clock is ahead."""
    if table is None or not any(offsets.values()):
        return table
    ahead = pl.col("rank").replace_strict(dict(offsets), default=0, return_dtype=pl.Int64)
    return table.with_columns(pl.col(column) - ahead)


def _path(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | None:
    """Of the job, or where ranks do not meet of each of them."""
    joint = tables.get("path_across")
    return joint if joint is not None and joint.height else tables.get("path")


def _gains(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | None:
    """What the job would gain, or where ranks do not meet each of them alone."""
    joint = tables.get("what_if_across")
    found = joint if joint is not None and joint.height else tables.get("what_if")
    if found is None:
        return None
    return found.drop("length_ns").filter(pl.col("gain_ns") > 0).sort("gain_ns", descending=True, maintain_order=True)


def _memory(
    tables: Mapping[str, pl.DataFrame], offsets: Mapping[int, int]
) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
    """The memory of each device over time, and the begins of steps, both from the first allocation on."""
    curve = _aligned(tables.get("memory"), offsets, "ts")
    if curve is None or not curve.height:
        return None, None
    steps = tables["steps"].filter(pl.col("step") >= 0).group_by("rank", "step").agg(pl.col("start_ns").min())
    steps = _aligned(steps, offsets)
    assert steps is not None
    zero = curve["ts"].min()
    curve = curve.select(
        "rank",
        "device_type",
        "device",
        at_ns=pl.col("ts") - zero,
        allocated_bytes="allocated",
        reserved_bytes="reserved",
    )
    return curve, steps.select("rank", "step", at_ns=pl.col("start_ns") - zero).sort("rank", "at_ns")


def _held(found: pl.DataFrame) -> pl.DataFrame:
    """The most first, with the device in words."""
    device = pl.lit("device ") + pl.col("device").cast(pl.String)
    where = pl.when(pl.col("device_type") == 0).then(pl.lit("host")).otherwise(device).alias("where")
    rows = found.select("rank", where, pl.exclude("rank", "device_type", "device"))
    return rows.sort("bytes", descending=True, maintain_order=True)


def _sequences(found: pl.DataFrame) -> pl.DataFrame:
    """All ranks together, the most frequent first; the kernels as one text."""
    said = [" → ".join(short_form(name) for name in names) for names in found["kernels"].to_list()]
    by = found.with_columns(pl.Series("kernels", said, dtype=pl.String)).group_by("operator", "kernels")
    summed = by.agg(pl.col("num_kernels").first(), pl.col("count", "kernel_ns", "operator_ns").sum())
    return summed.sort("count", "kernel_ns", "operator", descending=[True, True, False])


def _operators(found: pl.DataFrame) -> pl.DataFrame:
    """All ranks together, the longest first."""
    summed = found.group_by("name").agg(pl.col("count", "own_ns", "total_ns", "num_kernels", "kernel_ns").sum())
    return summed.sort("own_ns", "name", descending=[True, False])


def _kernels(kernels: pl.DataFrame) -> pl.DataFrame:
    """All ranks together, the longest first."""
    by = kernels.group_by("name", "kind").agg(
        pl.col("count", "total_ns").sum(), min_ns=pl.col("min_ns").min(), max_ns=pl.col("max_ns").max()
    )
    share = pl.col("total_ns") / pl.col("total_ns").sum()
    return by.with_columns(share=share, mean_ns=pl.col("total_ns") / pl.col("count")).sort("total_ns", descending=True)


def _roofline(found: pl.DataFrame) -> pl.DataFrame:
    """Rows of the first rank, by their time."""
    first = found.filter(pl.col("rank") == pl.col("rank").min())
    shown = first.select(
        "name",
        "operator",
        "family",
        "dtype",
        "dims",
        "count",
        "flops",
        "bytes",
        "share",
        "bound",
        "aligned",
        total_ns=pl.col("dur_ns"),
        achieved_tflops=pl.col("flop_s") / _TERA,
        achieved_gb_per_s=pl.col("byte_s") / _GIGA,
    )
    return shown.sort("total_ns", descending=True)


def _ceilings(peak: Peak | None) -> dict[str, float]:
    return {dtype: rate / _TERA for dtype, rate in peak.flop_s.items()} if peak else {}
