"""What a step would take if something took no time, or less.

Each answer is a simulation with the recorded dependencies (see [Note: graph of dependencies]). Its gain is at most
the time that the thing has on the critical path, and at most what a change can win as long as the dependencies are
those that the graph has: what a program really waits for beyond them (memory, caches, links, a full queue) only makes
it less.
"""

import re
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from .graph import CATEGORIES, Category, Graph, Relation
from .longest import by_name
from .simulate import Simulator

Times = tuple[np.ndarray, np.ndarray]
"""Least times of segments, and of edges."""
Change = Callable[[Graph], Times]
NOTHING = "nothing"
OVERLAPPED = "communication overlapped"
"""Of one rank alone waiting for others is in it."""

SCHEMA = {
    "change": pl.String,
    "name": pl.String,
    "length_ns": pl.Int64,
    "gain_ns": pl.Int64,
    "gain_share": pl.Float64,
}
MEMORY_BOUND = re.compile(
    r"elementwise|vectorized|pointwise|reduce_kernel|softmax|norm|dropout|gelu|silu|relu|cat(array|batched)|copy|fill"
    r"|triton_(poi|per|red)|multi_tensor|index|gather|scatter|embedding|bias",
    re.IGNORECASE,
)
"""Names of kernels that mostly move memory, so that a chain of them can become one."""


def _is(graph: Graph, *categories: Category) -> np.ndarray:
    return np.isin(graph.points.category, [CATEGORIES.index(each) for each in categories])


def _related(graph: Graph, *relations: Relation) -> np.ndarray:
    return np.isin(graph.edges.relation, relations)


def name_costs(pattern: str, factor: float = 0.0) -> Change:
    """Everything of a name takes so many times its time: an operator's own time on the host, or a kernel."""

    def change(graph: Graph) -> Times:
        mine = np.array([name == pattern for name in graph.names], dtype=bool)[graph.points.label]
        least = graph.points.least
        return np.where(mine, np.rint(least * factor).astype(np.int64), least), graph.edges.lag

    return change


def category_costs(category: Category, factor: float = 0.0) -> Change:
    """Every segment of a category takes so many times its time."""

    def change(graph: Graph) -> Times:
        least = graph.points.least
        scaled = np.where(_is(graph, category), np.rint(least * factor).astype(np.int64), least)
        lag = graph.edges.lag
        mine = graph.edge_category(np.arange(len(lag))) == CATEGORIES.index(category)
        return scaled, np.where(mine, np.rint(lag * factor).astype(np.int64), lag)

    return change


def without_communication(graph: Graph) -> Times:
    """Collectives are perfectly overlapped: they cost nothing, and nobody waits in them for other ranks."""
    gone = _is(graph, Category.COMMUNICATION, Category.WAITING)
    return np.where(gone, 0, graph.points.least), graph.edges.lag


def without_idle(graph: Graph) -> Times:
    """The host is infinitely fast, and so are launches: only what ran on devices remains, in its order."""
    host = _is(graph, Category.PYTHON, Category.OPERATOR, Category.LAUNCH, Category.IDLE)
    return np.where(host, 0, graph.points.least), np.zeros_like(graph.edges.lag)


def without_launches(graph: Graph) -> Times:
    """A CUDA graph: no operator and no launch on the host, no delay between kernels; Python remains."""
    host = _is(graph, Category.OPERATOR, Category.LAUNCH)
    gone = _related(graph, Relation.LAUNCH, Relation.STREAM, Relation.WAIT)
    return np.where(host, 0, graph.points.least), np.where(gone, 0, graph.edges.lag)


def fused(kernels: Callable[[str], bool] = lambda name: bool(MEMORY_BOUND.search(name))) -> Change:
    """Neighbours on a stream that are all of certain kernels become one that costs as much as the largest of them.

    What launched the others, and the gaps between them, cost nothing either.
    """

    def change(graph: Graph) -> Times:
        points, edges = graph.points, graph.edges
        fits = np.array([kernels(name) for name in graph.names], dtype=bool)[points.label]
        fits &= points.first & _is(graph, Category.COMPUTE)
        order = np.flatnonzero(points.first & _is(graph, Category.COMPUTE, Category.COMMUNICATION, Category.COPY))
        key = points.rank[order].astype(np.int64) << 32 | points.track[order].astype(np.int64)
        order = order[np.lexsort((graph.place[order], key))]
        stream = np.sort(key, kind="stable")
        follows = np.concatenate([[False], (stream[1:] == stream[:-1]) & fits[order[1:]] & fits[order[:-1]]])
        follows = follows[: len(order)]
        chain = np.cumsum(~follows) - 1
        ends = order + 1
        least = points.least.copy()
        longest = np.zeros(int(chain[-1]) + 1 if len(chain) else 0, dtype=np.int64)
        np.maximum.at(longest, chain, least[ends])
        heads = order[~follows]
        in_chains = np.bincount(chain, minlength=len(longest)) > 1
        least[ends[follows]] = 0
        least[heads[in_chains] + 1] = longest[in_chains]
        member = np.zeros(len(points.time), dtype=bool)
        member[order[follows]] = True
        lag = np.where(member[edges.target] & _related(graph, Relation.LAUNCH, Relation.STREAM), 0, edges.lag)
        _forget_calls(graph, member, least)
        return least, lag

    return change


def _forget_calls(graph: Graph, member: np.ndarray, least: np.ndarray) -> None:
    """Let the calls that launched some kernels, and nothing else, take no time.

    A call much longer than the median loaded a module or waited; that is not saved, so the median is the most.
    """
    edges = graph.edges
    launch = edges.relation == Relation.LAUNCH
    kept, gone = (np.zeros(len(least), dtype=bool) for _ in range(2))
    kept[edges.source[launch & ~member[edges.target]]] = True
    gone[edges.source[launch & member[edges.target]]] = True
    begins = np.flatnonzero(gone & ~kept)
    begins = begins[begins + 1 < len(least)]
    calls = _is(graph, Category.LAUNCH)[begins + 1] & ~graph.points.first[begins + 1]
    spent = least[begins[calls] + 1]
    least[begins[calls] + 1] = spent - np.minimum(spent, int(np.median(spent)) if len(spent) else 0)


def standard() -> dict[str, Change]:
    """The changes that every step is asked about."""
    return {
        NOTHING: lambda graph: (graph.points.least, graph.edges.lag),
        "host infinitely fast": without_idle,
        "launches free": without_launches,
        OVERLAPPED: without_communication,
        "copies free": category_costs(Category.COPY),
        "kernels fused": fused(),
    }


def ask(graph: Graph, changes: Iterable[tuple[str, str | None, Change]]) -> pl.DataFrame:
    """The length of the window under each change: change, name, length_ns, gain_ns, gain_share (of the length)."""
    simulator = Simulator(graph)
    now = graph.length_ns
    rows: list[dict[str, object]] = []
    for word, name, change in changes:
        length = simulator.length_ns(*change(graph))
        gain = now - length
        rows.append(
            {"change": word, "name": name, "length_ns": length, "gain_ns": gain, "gain_share": gain / max(now, 1)}
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def what_if(graph: Graph, *, num_names: int = 10, factors: Iterable[float] = (0.0, 0.5)) -> pl.DataFrame:
    """The standard changes, and the names with most time on the path free or faster; a row each, as `ask` gives them.

    A name that is not on the path can win nothing. "nothing" is the simulation without a change: its gain is its error.
    """
    changes: list[tuple[str, str | None, Change]] = [(word, None, change) for word, change in standard().items()]
    names = by_name(graph).filter(~pl.col("name").str.starts_with("("))["name"].unique(maintain_order=True)
    for name in names.head(num_names):
        for factor in factors:
            word = "free" if factor == 0 else f"{1 / factor:g} times faster"
            changes.append((word, name, name_costs(name, factor)))
    return ask(graph, changes)
