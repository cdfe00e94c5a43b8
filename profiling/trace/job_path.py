"""The critical path of one step: of each rank, and of the job, through all ranks that were read.

What a rank sends is the graph of its step, some megabytes; so of a large job the first ranks stand for all.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from .critical_path import Graph, across, by_name, critical_path, dependencies
from .critical_path.graph import Relation
from .critical_path.longest import SCHEMA as SEGMENTS
from .critical_path.whatif import NOTHING, OVERLAPPED, Change, ask, name_costs, standard
from .critical_path.whatif import SCHEMA as WHAT_IF
from .makers import shown_step
from .tables import Trace

MAX_RANKS = 16
"""Graphs that are held at once."""
PATH = {
    "step": pl.Int64,
    "category": pl.String,
    "name": pl.String,
    "count": pl.Int64,
    "time_ns": pl.Int64,
    "share": pl.Float64,
}
"""What a path was spent on; `step` is -1 for a whole trace. With `rank`, where; shares are of the whole path."""
_NUM_NAMES = 5
_NO_TIE = -(1 << 60)
_NO_WAITING = "no waiting for ranks"


@dataclass(frozen=True, kw_only=True)
class StepGraph:
    """The graph of the step that stands for a rank's others."""

    step: int | None
    graph: Graph


def step_graph(trace: Trace, *, several: bool) -> StepGraph:
    """Of the shown step; of the whole trace without steps."""
    step = shown_step(trace, several=several)
    return StepGraph(step=step, graph=dependencies(trace, step=step))


def path_of_rank(found: StepGraph) -> pl.DataFrame:
    """What the path of a rank was spent on, the longest first; the columns of `PATH`."""
    return _with_step(by_name(found.graph), found.step)


def segments_of_rank(found: StepGraph) -> pl.DataFrame:
    """The path of a rank as it is drawn."""
    return critical_path(found.graph).drop("rank")


def path_of_job(
    graphs: Mapping[int, StepGraph], offsets: Mapping[int, int], met: pl.DataFrame | None = None
) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """`path_across`, `what_if_across`, `critical_across` of graphs by rank, and what was left out; clocks put right.

    `met` is what `collective_skew.matched` gave: which kernels of the ranks are one collective.
    Empty tables for fewer than two ranks of the same step, and if they have no collective in common.
    """
    number = Counter(each.step for each in graphs.values()).most_common(1)[0][0] if graphs else None
    same = {rank: each.graph for rank, each in graphs.items() if each.step == number}
    notes = [
        f"the critical path of {_of(number)} leaves out rank {rank}, in the middle of whose trace is {_of(each.step)}"
        for rank, each in graphs.items()
        if rank not in same
    ]
    ranked = [_as_rank(graph, rank, met) for rank, graph in same.items()]
    if not _have_met(ranked):
        if len(ranked) > 1:
            notes.append(
                f"no critical path through all ranks: no collective of {_of(number)} is known to be one of two"
            )
        empty = {"path_across": {"rank": pl.Int64} | PATH, "what_if_across": WHAT_IF, "critical_across": SEGMENTS}
        return {name: pl.DataFrame(schema=schema) for name, schema in empty.items()}, notes
    joint = across(ranked, offsets)
    segments = critical_path(joint)
    by = segments.group_by("rank", "category", "name").agg(
        pl.len().cast(pl.Int64).alias("count"), pl.col("dur_ns").sum().alias("time_ns")
    )
    by = by.with_columns(pl.col("rank").cast(pl.Int64), share=pl.col("time_ns") / max(joint.length_ns, 1))
    path = by.sort("time_ns", "rank", "name", descending=[True, False, False])
    tables = {
        "path_across": _with_step(path, number),
        "what_if_across": ask(joint, _changes(path)),
        "critical_across": segments,
    }
    return tables, notes


def _with_step(path: pl.DataFrame, step: int | None) -> pl.DataFrame:
    path = path.with_columns(pl.lit(-1 if step is None else step, pl.Int64).alias("step"))
    rank = {"rank": pl.Int64} if "rank" in path.columns else {}
    return path.select(pl.col(key).cast(kind) for key, kind in (rank | PATH).items())


def _of(step: int | None) -> str:
    return "the whole trace" if step is None else f"step {step}"


def _as_rank(graph: Graph, rank: int, met: pl.DataFrame | None) -> Graph:
    """Files need not say their rank; the job has given them one, and has matched their collectives."""
    points = dataclasses.replace(graph.points, rank=np.full_like(graph.points.rank, rank))
    if met is None:
        return dataclasses.replace(graph, points=points)
    mine = met.filter(pl.col("rank") == rank).select("row", pl.col("collective").cast(pl.String))
    numbers: dict[int, str] = dict(mine.iter_rows())
    rows = {point: int(points.row[point]) for point in graph.collectives}
    collectives = {point: (numbers[row],) for point, row in rows.items() if row in numbers}
    return dataclasses.replace(graph, points=points, collectives=collectives)


def _have_met(graphs: Sequence[Graph]) -> bool:
    """Whether a collective is in two of the graphs; else there is nothing that joins them."""
    seen = Counter(identity for graph in graphs for identity in set(graph.collectives.values()))
    return any(count > 1 for count in seen.values())


def _changes(path: pl.DataFrame) -> list[tuple[str, str | None, Change]]:
    """The standard changes, and the longest names free on all ranks.

    Where nobody waits for another rank, the collectives tie the ranks together no longer.
    """
    every = standard()
    every |= {OVERLAPPED: _apart(every[OVERLAPPED]), _NO_WAITING: _apart(every[NOTHING])}
    same: list[tuple[str, str | None, Change]] = [(word, None, change) for word, change in every.items()]
    names = path.filter(~pl.col("name").str.starts_with("(")).group_by("name").agg(pl.col("time_ns").sum())
    longest = names.sort("time_ns", "name", descending=[True, False])["name"].head(_NUM_NAMES)
    return [*same, *(("free", name, name_costs(name)) for name in longest)]


def _apart(change: Change) -> Change:
    def apart(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        least, lag = change(graph)
        return least, np.where(graph.edges.relation == Relation.COLLECTIVE, _NO_TIE, lag)

    return apart
