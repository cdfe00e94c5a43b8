"""An analysis -> what its report shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from .analysis import Analysis
from .peaks import Peak, peak_of_header
from .report import Content

_TERA, _GIGA = 1e12, 1e9


def content_of(analysis: Analysis, *, title: str, advice: Sequence[Mapping[str, Any]] | None = None) -> Content:
    """The report's tables, in the form and with the names that it wants."""
    tables = analysis.tables
    ranks = len(analysis.ranks)
    steps = tables["steps"]["step"].n_unique()
    peak = peak_of_header(analysis.header)
    return Content(
        title=title,
        subtitle=f"{ranks} rank{'s' if ranks != 1 else ''}, {steps} step{'s' if steps != 1 else ''}"
        + (f", {peak.name}" if peak else ""),
        notes=analysis.notes,
        steps=tables["steps"],
        phases=tables["phases"],
        host_phases=tables["host_phases"],
        timeline=tables.get("timeline"),
        critical=tables.get("critical"),
        kernels=_kernels(tables["kernels"]),
        collectives=tables["collective_summary"].drop("ranks", strict=False),
        roofline=_roofline(tables["roofline"]) if "roofline" in tables else None,
        peak_tflops=_ceilings(peak),
        peak_gb_per_s={"memory": peak.byte_s / _GIGA} if peak else {},
        advice=advice,
    )


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
