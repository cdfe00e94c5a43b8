"""How a quantity is spread: over events, or over time.

A quantity that changes at points of time and stays in between is a step function. HTA describes its points, each
counted once however long the value lasts; the exact reading weighs each value by how long it lasts.
"""

from collections.abc import Sequence

import polars as pl

QUANTILES = {"p25": 0.25, "p50": 0.5, "p75": 0.75}


def describe(table: pl.DataFrame, by: Sequence[str], value: str, unit: str) -> pl.DataFrame:
    """Count, mean, standard deviation (n - 1), minimum, quartiles (interpolated) and maximum of the valid values."""
    return table.group_by(by).agg(*spread(value, unit)).sort(by)


def spread(value: str, unit: str) -> list[pl.Expr]:
    """The columns of `describe`."""
    column = pl.col(value).cast(pl.Float64)
    return [
        column.count().cast(pl.Int64).alias("count"),
        column.mean().alias(f"mean{unit}"),
        column.std().alias(f"std{unit}"),
        column.min().alias(f"min{unit}"),
        *(column.quantile(q, "linear").alias(f"{name}{unit}") for name, q in QUANTILES.items()),
        column.max().alias(f"max{unit}"),
    ]


def describe_over_time(points: pl.DataFrame, by: Sequence[str], value: str, unit: str) -> pl.DataFrame:
    """The same of a step function, by time: a quantile is the least value below or at which it is that long.

    `points` has a column `lasts_ns`; points of no length do not count, save for the count.
    """
    levels = points.group_by(*by, value).agg(pl.len().cast(pl.Int64).alias("count"), pl.col("lasts_ns").sum())
    return describe_levels(levels, by, value, unit)


def describe_levels(levels: pl.DataFrame, by: Sequence[str], value: str, unit: str) -> pl.DataFrame:
    """The same, given how often each value occurs (`count`) and how long it lasts in all (`lasts_ns`)."""
    weight, column = pl.col("lasts_ns"), pl.col(value).cast(pl.Float64)
    total = weight.sum()
    mean = (column * weight).sum() / total
    counts = levels.group_by(by).agg(pl.col("count").sum())
    lasting = levels.filter(weight > 0).sort(value)
    return counts.join(
        lasting.group_by(by).agg(
            mean.alias(f"mean{unit}"),
            (((column - mean) ** 2 * weight).sum() / total).sqrt().alias(f"std{unit}"),
            column.min().alias(f"min{unit}"),
            *(
                column.filter(weight.cum_sum() >= q * total).first().alias(f"{name}{unit}")
                for name, q in QUANTILES.items()
            ),
            column.max().alias(f"max{unit}"),
        ),
        on=by,
        how="left",
    ).sort(by)
