"""The tables of a job, and means of them for a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

import polars as pl

from ...spans import Span
from ..tables import job_of

if TYPE_CHECKING:
    from ..analysis import Analysis
    from .finding import Finding


Findings = Iterator["Finding"]


class Bound(TypedDict):
    """What a finding can win, as a `Finding` has it."""

    wins_at_most_ns: int
    share: float


def scalar(value: object) -> float:
    """What an aggregation gave; 0 for nothing."""
    return float(value) if isinstance(value, int | float) else 0.0


def total(column: pl.Series) -> float:
    """The sum of a column."""
    return scalar(column.sum())


@dataclass(frozen=True)
class Mean:
    """Something of a step, on the rank where it is most."""

    rank: int
    ns: float


@dataclass(frozen=True)
class Facts:
    """What the rules ask."""

    analysis: "Analysis"

    def table(self, name: str) -> pl.DataFrame:
        """A table by name; empty, without columns, if it was not made."""
        found = self.analysis.tables.get(name)
        return pl.DataFrame() if found is None or found.is_empty() else found

    @cached_property
    def windows(self) -> pl.DataFrame:
        """By rank: num_windows (of all devices), num_steps, window_ns (mean)."""
        steps = self.table("steps")
        if steps.is_empty():
            schema = {"rank": pl.Int64, "num_windows": pl.Int64, "num_steps": pl.Int64, "window_ns": pl.Float64}
            return pl.DataFrame(schema=schema)
        steps = steps.drop_nulls("step")
        return steps.group_by("rank").agg(
            num_windows=pl.len().cast(pl.Int64),
            num_steps=pl.col("step").n_unique().cast(pl.Int64),
            window_ns=pl.col("window_ns").mean(),
        )

    @cached_property
    def step_ns(self) -> float:
        """Mean length of a step."""
        return scalar(self.windows["window_ns"].mean())

    @cached_property
    def num_steps(self) -> int:
        """Of the rank with most of them."""
        return int(scalar(self.windows["num_steps"].max()))

    @cached_property
    def on_host(self) -> bool:
        """Whether the traces have no device, so that what is said is of the host."""
        steps = self.table("steps")
        return steps.is_empty() or bool((steps["device"] < 0).all())

    @cached_property
    def all_read(self) -> bool:
        """Whether all ranks of the job were read, as far as its size is told."""
        size = job_of(self.analysis.header).get("world_size")
        return not isinstance(size, int) or len(self.analysis.ranks) >= size

    @cached_property
    def in_pipeline(self) -> bool:
        """Whether the ranks are stages of a pipeline."""
        phases = self.table("phases")
        span = Span.PIPELINE.value
        return not phases.is_empty() and bool(((phases["phase"] == span) | (phases["within"] == span)).any())

    def by_rank(self, frame: pl.DataFrame, column: str | pl.Expr) -> pl.DataFrame:
        """(rank, ns) of a step: sums over steps, and over devices if the frame has them, by how many there were."""
        per = "num_windows" if "device" in frame.columns else "num_steps"
        expression = pl.col(column) if isinstance(column, str) else column
        sums = frame.group_by("rank").agg(ns=expression.sum()).join(self.windows, on="rank")
        return sums.select("rank", ns=pl.col("ns") / pl.col(per)).sort("ns", "rank", descending=[True, False])

    def most(self, frame: pl.DataFrame, column: str | pl.Expr) -> Mean:
        """The rank where it is most, of a step."""
        if frame.is_empty():
            return Mean(-1, 0.0)
        rank, ns = next(iter(self.by_rank(frame, column).iter_rows()), (-1, 0.0))
        return Mean(rank, float(ns or 0.0))

    def what_if(self, change: str) -> Mean:
        """What a change can win of a mean step, on the rank where it wins most, by its share of the step asked."""
        table = self.table("what_if")
        if table.is_empty():
            return Mean(-1, 0.0)
        rows = table.filter(pl.col("change") == change).sort("gain_share", "rank", descending=[True, False])
        if rows.is_empty():
            return Mean(-1, 0.0)
        return Mean(rows["rank"][0], max(0.0, float(rows["gain_share"][0])) * self.step_ns)

    def share(self, ns: float) -> float:
        """Of a step of mean length; never more than all of it."""
        return min(1.0, ns / self.step_ns) if self.step_ns > 0 else 0.0

    def bound(self, ns: float) -> "Bound":
        """Both forms of what a finding can win."""
        return {"wins_at_most_ns": int(min(max(ns, 0.0), self.step_ns)), "share": self.share(max(ns, 0.0))}
