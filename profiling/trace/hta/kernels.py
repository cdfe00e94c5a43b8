"""Which kernels, and which annotations, take the time."""

import polars as pl

from ..tables import Trace
from .compat import OTHER, rows_of
from .rows import Rows

OTHERS = "others"
"""What names that are folded are called."""
_HTA_RATIO = 0.8


def kernel_names(trace: Trace | Rows, *, compat: bool = False, num_names: int | None = None) -> pl.DataFrame:
    """Time of kernels, copies and fills by kind and name, longest first.

    kind, name, count, total_ns, max_ns, min_ns, mean_ns, std_ns, share (of the sum over all). With `num_names` so many
    names of a kind are kept, and the rest is one row `others`. In HTA's reading names are also folded once those before
    them make up much of the time, and all but `count` becomes a statistic of sums, even in rows of one name, as there
    (`breakdown_analysis.py:582-638`).
    """
    rows = rows_of(trace, compat=compat)
    work = rows.device.filter(pl.col("kind") != OTHER)
    table = _by_name(rows, work, ["kind"], num_names)
    return table.with_columns((pl.col("total_ns") / pl.col("total_ns").sum()).alias("share"))


def annotation_names(
    trace: Trace | Rows, *, on_device: bool = True, compat: bool = False, num_names: int | None = None
) -> pl.DataFrame:
    """Time of ranges that a program marked, on the devices' timeline or the host's, by name.

    name, count, total_ns, max_ns, min_ns, mean_ns, std_ns; longest first.
    """
    rows = rows_of(trace, compat=compat)
    return _by_name(rows, rows.annotations.filter(pl.col("on_device") == on_device), [], num_names)


def _by_name(rows: Rows, events: pl.DataFrame, within: list[str], num_names: int | None) -> pl.DataFrame:
    events = events.select(*within, "name", dur_ns=rows.ns(pl.col("dur")))
    table = _totals(events, within)
    if num_names is None:
        return table
    if rows.compat:
        return _folded_as_hta(table, within, num_names)
    rank = pl.col("total_ns").rank("ordinal", descending=True)
    rank = rank.over(within) if within else rank
    kept = table.filter(rank <= num_names).select(*within, "name", kept=True)
    named = events.with_columns(pl.col(*within, "name").cast(pl.String)).join(kept, on=[*within, "name"], how="left")
    return _totals(named.with_columns(name=pl.when("kept").then("name").otherwise(pl.lit(OTHERS))), within)


def _totals(events: pl.DataFrame, within: list[str]) -> pl.DataFrame:
    dur = pl.col("dur_ns")
    return (
        events.group_by(*within, "name")
        .agg(
            count=pl.len().cast(pl.Int64),
            total_ns=dur.sum(),
            max_ns=dur.max(),
            min_ns=dur.min(),
            mean_ns=dur.mean(),
            std_ns=dur.std().fill_null(0.0),
        )
        .with_columns(pl.col(*within, "name").cast(pl.String))
        .sort("total_ns", "name", descending=[True, False])
    )


def _folded_as_hta(table: pl.DataFrame, within: list[str], num_names: int) -> pl.DataFrame:
    """HTA's table of so many names and `others`."""
    parts = table.partition_by(within, maintain_order=True) if within else [table]
    folded = [_folded_part(part, within, num_names) for part in parts if part.height > num_names]
    kept = [part for part in parts if part.height <= num_names]
    return pl.concat([table.clear(), *kept, *folded]).sort("total_ns", "name", descending=[True, False])


def _folded_part(part: pl.DataFrame, within: list[str], num_names: int) -> pl.DataFrame:
    so_far = pl.col("total_ns").cum_sum()
    rest = (so_far > so_far.quantile(_HTA_RATIO, "linear")) | (pl.int_range(pl.len()) >= num_names)
    part = part.with_columns(name=pl.when(rest).then(pl.lit(OTHERS)).otherwise("name"))
    total = pl.col("total_ns")
    return part.group_by(*within, "name").agg(
        pl.col("count").sum(),
        total.sum().alias("total_ns"),
        total.max().alias("max_ns"),
        total.min().alias("min_ns"),
        total.mean().alias("mean_ns"),
        total.std().fill_null(0.0).alias("std_ns"),
    )
