"""A graph of what waited for what, as flat arrays.

[Note: graph of dependencies]
A *point* is a moment: the beginning or the end of something. Points lie on *chains*: a host thread is one chain of the
borders of its events, so that the segments between them tile its time; a kernel or copy is a chain of its own, start
and end. Between chains run *edges*: a launch, the order of a stream, a return from a synchronisation, ... Each segment
and each edge carries the least time that must pass along it, never less than 0, and

    time of a point = the largest of (time of a predecessor + least time from there)

holds exactly for the recorded times: of the predecessors of a point the one that arrives last is its *cause*, and its
least time is what really passed; the others keep the smallest delay that the trace shows for their relation. So the
longest path through the graph is as long as the window, it is found by walking from the last point from cause to
cause, and a simulation in which nothing is changed gives the recorded times to the nanosecond.

What is not a dependency here: contention for caches, memory and links; clocks of a device; the limits of its queue.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import cast

import numpy as np
import polars as pl


class Category(StrEnum):
    """What a part of the path was spent on."""

    PYTHON = "python"
    """The host between operators: Python and whatever else was not recorded."""
    OPERATOR = "operator"
    """Operators on the host, without their launches; handing work to the thread of the backward pass and back."""
    LAUNCH = "launch"
    """Calls of the runtime, the delay from a call to its kernel, gaps between kernels, returning from a wait."""
    COMPUTE = "compute"
    """Kernels that compute."""
    COMMUNICATION = "communication"
    """Kernels that exchange data; of one rank alone the wait for the others is inside."""
    WAITING = "waiting"
    """A collective until the last rank has come."""
    COPY = "copy"
    """Copies and fills."""
    IDLE = "idle"
    """Nothing that was recorded explains it."""


CATEGORIES = tuple(Category)


class Relation(IntEnum):
    """Why one point cannot be before another."""

    HELD = 0
    """Nothing known but the recorded time."""
    LAUNCH = 1
    """A kernel, after the call that launches it has begun."""
    STREAM = 2
    """A kernel, after the one before it on its stream."""
    SYNC = 3
    """The end of a call on the host, after the kernel that it waited for."""
    WAIT = 4
    """A kernel, after a kernel on another stream."""
    HANDOFF = 5
    """A thread, after another has given it work, or has finished it."""
    COLLECTIVE = 6
    """The transfer of a collective, after every rank has come."""


LONGEST_DELAY_NS = 100_000
"""A longer delay along an edge is not overhead any more: it is idle time that nothing recorded explains."""

_OF_RELATION = {
    Relation.HELD: Category.IDLE,
    Relation.HANDOFF: Category.OPERATOR,
    Relation.COLLECTIVE: Category.WAITING,
}


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Dependencies between chains."""

    source: np.ndarray
    """[E] points."""
    target: np.ndarray
    """[E] points."""
    lag: np.ndarray
    """[E] int64, the least time between them."""
    relation: np.ndarray
    """[E] uint8."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Chains, one after the other. What is said of a segment stands at the point where it ends."""

    time: np.ndarray
    """[P] int64, as recorded."""
    first: np.ndarray
    """[P] bool: a chain begins."""
    least: np.ndarray
    """[P] int64: the least time from the point before it on the chain; 0 at the first."""
    tier: np.ndarray
    """[P] uint8: order of points at the same time, before their order in this table."""
    label: np.ndarray
    """[P] int32, numbers of names."""
    category: np.ndarray
    """[P] uint8, numbers of categories."""
    row: np.ndarray
    """[P] int32: the event in the trace; -1 for none."""
    track: np.ndarray
    """[P] int32: its thread or stream."""
    rank: np.ndarray
    """[P] int32."""
    ends: np.ndarray
    """[P] bool: the step is not over before this point."""


END_TIER, HOST_TIER, START_TIER, MEETING_TIER, TRANSFER_TIER = range(5)


def join(*parts: Points) -> Points:
    """Several tables as one."""
    return Points(**{key: np.concatenate([getattr(part, key) for part in parts]) for key in Points.__annotations__})


def join_edges(*parts: Edges) -> Edges:
    """Several lists as one."""
    return Edges(**{key: np.concatenate([getattr(part, key) for part in parts]) for key in Edges.__annotations__})


def edges(source: np.ndarray, target: np.ndarray, relation: Relation, lag: np.ndarray | int = 0) -> Edges:
    """Edges of one relation."""
    return Edges(
        source=source.astype(np.int64),
        target=target.astype(np.int64),
        lag=np.broadcast_to(np.asarray(lag, dtype=np.int64), source.shape).copy(),
        relation=np.full(len(source), relation, dtype=np.uint8),
    )


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A window of a trace, as points, the edges between them, and the cause of each point. Point 0 is its beginning."""

    points: Points
    edges: Edges
    cause: np.ndarray
    """[P] int64: the edge that a point waited for; -1 where it was the segment before it."""
    names: tuple[str, ...]
    collectives: dict[int, tuple[str, ...]]
    """What each communication kernel (its starting point) is: to be matched with those of other ranks."""
    host_ns: int
    """How long the host was in it."""
    num_steps: int
    """Steps of the profiler in the window."""
    num_impossible: int
    """Dependencies that the recorded times contradict, mostly by clocks that differ; they were left out."""

    @property
    def length_ns(self) -> int:
        """From the beginning of the window to the last point that ends it."""
        ends = self.points.ends
        return int(self.points.time[ends].max() - self.points.time[0]) if ends.any() else 0

    @cached_property
    def place(self) -> np.ndarray:
        """[P] int32: the points' places in an order in which every dependency runs forwards."""
        return topological(self.points)

    def edge_category(self, edge: np.ndarray) -> np.ndarray:
        """Numbers of the categories of some edges."""
        table = np.array([CATEGORIES.index(_OF_RELATION.get(each, Category.LAUNCH)) for each in Relation])
        found = table[self.edges.relation[edge]]
        long = (self.edges.lag[edge] > LONGEST_DELAY_NS) & (self.edges.relation[edge] != Relation.HANDOFF)
        return np.where(long, CATEGORIES.index(Category.IDLE), found)


def words(column: pl.Series) -> list[str]:
    """What the numbers of a column of an enumeration stand for."""
    return cast(pl.Enum, column.dtype).categories.to_list()


def topological(points: Points) -> np.ndarray:
    """Places by time, then tier, then number."""
    order = np.lexsort((points.tier, points.time))
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return place


def settle(points: Points, found: Edges, *, names: tuple[str, ...], **rest: object) -> Graph:
    """Choose each point's cause, give it the time that really passed, and leave out what the record contradicts."""
    place = topological(points)
    possible = points.time[found.source] + found.lag <= points.time[found.target]
    possible &= place[found.source] < place[found.target]
    num_impossible = int((~possible).sum())
    found = Edges(**{key: getattr(found, key)[possible] for key in Edges.__annotations__})
    arrival = points.time[found.source] + found.lag
    best = np.full(len(points.time), np.iinfo(np.int64).min)
    np.maximum.at(best, found.target, arrival)
    along = np.concatenate([[0], points.time[:-1]]) + points.least
    by_chain = ~points.first & (along >= best)
    by_edge = np.zeros(len(best), dtype=bool)
    by_edge[found.target] = True
    by_edge &= ~by_chain
    cause = np.full(len(best), -1, dtype=np.int64)
    tight = np.flatnonzero(by_edge[found.target] & (arrival == best[found.target]))
    cause[found.target[tight[::-1]]] = tight[::-1]
    lonely = np.flatnonzero(points.first & ~by_edge)
    lonely = lonely[lonely > 0]
    cause[lonely] = len(arrival) + np.arange(len(lonely))
    held = edges(np.zeros(len(lonely), dtype=np.int64), lonely, Relation.HELD)
    found = join_edges(found, held)
    caused = np.flatnonzero(cause >= 0)
    found.lag[cause[caused]] = points.time[caused] - points.time[found.source[cause[caused]]]
    passed = np.diff(points.time, prepend=points.time[:1])
    least = np.where(by_chain, passed, points.least)
    fields = {key: getattr(points, key) for key in Points.__annotations__} | {"least": least}
    return Graph(
        points=Points(**fields),
        edges=found,
        cause=cause,
        names=names,
        num_impossible=num_impossible,
        **rest,  # pyright: ignore[reportArgumentType]
    )
