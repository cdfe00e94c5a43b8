"""The critical path: from the last point of the window back from cause to cause to its beginning.

Its segments follow one another without a gap, so its length is the window's. It is a longest path of the graph: along
every other path the least times add up to no more (see [Note: graph of dependencies]). Where two causes arrive at the
same nanosecond, another path is as long; the one by way of the own chain is shown.
"""

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
    point, edge = _steps(graph)
    points, by_edge = graph.points, edge >= 0
    before = np.where(by_edge, graph.edges.source[np.maximum(edge, 0)], point - 1) if len(point) else point
    start = points.time[before]
    length = points.time[point] - start
    category = (
        np.where(by_edge, graph.edge_category(np.maximum(edge, 0)), points.category[point]) if len(point) else point
    )
    words = np.array([*graph.names, *(f"({each})" for each in _DELAYS)], dtype=object)
    relation = graph.edges.relation[np.maximum(edge, 0)] if len(point) else point
    label = np.where(by_edge, len(graph.names) + relation.astype(np.int64), points.label[point])
    # A kernel's starting point bears the number of its event, and so does a thread's: what waited is known.
    frame = pl.DataFrame(
        {
            "start_ns": start,
            "dur_ns": length,
            "category": pl.Series(category.astype(np.uint8)).cat.to(SCHEMA["category"]),
            "name": pl.Series(words[label].tolist(), dtype=pl.String),
            "row": points.row[point],
            "track": points.track[point],
            "rank": points.rank[point],
        },
        schema=SCHEMA,
    )
    return frame.filter(pl.col("dur_ns") > 0)


def _steps(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """The path by time: points, and by which edge each was reached (-1: along its chain)."""
    points = graph.points
    if not points.ends.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero(points.ends)
    last = int(ends[np.argmax(points.time[ends])])
    jumps = graph.cause >= 0
    root = np.maximum.accumulate(np.where(points.first | jumps, np.arange(len(jumps)), 0))
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
    return (
        critical_path(graph)
        .group_by("category", "name")
        .agg(pl.len().cast(pl.Int64).alias("count"), pl.col("dur_ns").sum().alias("time_ns"))
        .with_columns((pl.col("time_ns") / max(graph.length_ns, 1)).alias("share"))
        .sort(["time_ns", "name"], descending=[True, False])
    )
