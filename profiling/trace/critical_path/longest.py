"""The critical path: from the last point of the window back from cause to cause to its beginning.

Its segments follow one another without a gap, so its length is the window's. It is a longest path of the graph: along
every other path the least times add up to no more (see [Note: graph of dependencies]). Where two causes arrive at the
same nanosecond, another path is as long; the one by way of the own chain is shown.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from .graph import CATEGORIES, Graph

SCHEMA = {
    "start_ns": pl.Int64,
    "dur_ns": pl.Int64,
    "category": pl.Enum([each.value for each in CATEGORIES]),
    "name": pl.String,
    "row": pl.Int32,
    "track": pl.Int32,
    "rank": pl.Int32,
}
_DELAYS = ("held", "launch delay", "gap on a stream", "return from waiting", "other stream", "hand-over", "other rank")


def critical_path(graph: Graph) -> pl.DataFrame:
    """Segments of the path by time: start_ns, dur_ns, category, name, row and track of the event (-1: none), rank.

    A delay between two chains bears the name of its sort in brackets, and the place of what was waiting.
    """
    found = _segments(graph)
    points = graph.points
    # A kernel's starting point bears the number of its event, and so does a thread's: what waited is known.
    return pl.DataFrame(
        {
            "start_ns": points.time[found.before],
            "dur_ns": found.length,
            "category": pl.Series(found.category).cat.to(SCHEMA["category"]),
            "name": _words(graph).gather(found.label),
            "row": points.row[found.point],
            "track": points.track[found.point],
            "rank": points.rank[found.point],
        },
        schema=SCHEMA,
    )


@dataclass(frozen=True, kw_only=True)
class _Segments:
    """[S] parts of the path that took time: the points around them, lengths, numbers of categories and of words."""

    point: np.ndarray
    before: np.ndarray
    length: np.ndarray
    category: np.ndarray
    label: np.ndarray


def _segments(graph: Graph) -> _Segments:
    point, edge = _steps(graph)
    points, edges = graph.points, graph.edges
    before = point - 1
    before[edge >= 0] = edges.source[edge[edge >= 0]]
    length = points.time[point] - points.time[before]
    took = np.flatnonzero(length > 0)
    point, edge, before, length = point[took], edge[took], before[took], length[took]
    category, label = points.category[point], points.label[point].astype(np.int64)
    jumps = np.flatnonzero(edge >= 0)
    category[jumps] = graph.edge_category(edge[jumps])
    label[jumps] = len(graph.names) + edges.relation[edge[jumps]].astype(np.int64)
    return _Segments(point=point, before=before, length=length, category=category, label=label)


def _words(graph: Graph) -> pl.Series:
    """What `label` stands for."""
    return pl.Series([*graph.names, *(f"({each})" for each in _DELAYS)], dtype=pl.String)


def _steps(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """The path by time: points, and by which edge each was reached (-1: along its chain)."""
    points = graph.points
    if not points.ends.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero(points.ends)
    last = int(ends[np.argmax(points.time[ends])])
    jumps = graph.cause >= 0
    root = np.maximum.accumulate(np.where(points.first | jumps, np.arange(len(jumps), dtype=np.int32), np.int32(0)))
    cause, source = graph.cause, graph.edges.source
    runs: list[tuple[int, int]] = []
    while True:
        begin = int(root[last])
        runs.append((begin, last))
        edge = int(cause[begin])
        if edge < 0:
            break
        last = int(source[edge])
    begins, lasts = np.array(runs[::-1]).T
    lengths = lasts - begins + 1
    base = np.repeat(begins - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    point = base + np.arange(lengths.sum())
    reached = np.full(len(point), -1, dtype=np.int64)
    at_root = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    reached[at_root] = cause[begins]
    return point[1:], reached[1:]


def by_category(graph: Graph) -> pl.DataFrame:
    """How the length of the path is made up: category, time_ns, share; every category has a row."""
    found = critical_path(graph).group_by("category").agg(pl.col("dur_ns").sum().alias("time_ns"))
    every = pl.DataFrame({"category": [each.value for each in CATEGORIES]}, schema={"category": SCHEMA["category"]})
    return every.join(found, on="category", how="left", maintain_order="left").select(
        "category",
        pl.col("time_ns").fill_null(0),
        (pl.col("time_ns").fill_null(0) / max(graph.length_ns, 1)).alias("share"),
    )


def by_name(graph: Graph) -> pl.DataFrame:
    """What the path was spent on, the longest first: category, name, count (segments), time_ns, share."""
    found, words = _segments(graph), _words(graph)
    pairs, which = np.unique(found.category.astype(np.int64) * len(words) + found.label, return_inverse=True)
    time_ns = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(time_ns, which, found.length)
    table = pl.DataFrame(
        {
            "category": pl.Series((pairs // len(words)).astype(np.uint8)).cat.to(SCHEMA["category"]),
            "name": words.gather(pairs % len(words)),
            "count": np.bincount(which, minlength=len(pairs)),
            "time_ns": time_ns,
        }
    )
    table = table.group_by("category", "name").agg(pl.all().sum())  # two words may be the same name
    table = table.with_columns(share=pl.col("time_ns") / max(graph.length_ns, 1))
    return table.sort("time_ns", "name", descending=[True, False])
