"""Several ranks as one graph: what one of them does late, all wait for in the next collective.

A graph is small (some ten bytes for each event of a step) and `condensed` makes it smaller, so ranks are read one at a
time, and only their graphs are kept.

[Note: collectives of several ranks]
A collective cannot transfer before its last rank has come. So each of its kernels is cut at that moment: before it
lies waiting, behind it the transfer. In the joint graph the moment is a point of its own that comes after the start of
every rank's kernel, and the waiting takes no time by itself: the path leaves a waiting rank for the one it waits for.
A rank alone cannot tell the two apart: in its own graph all of the kernel is communication.
A kernel that ended before the last rank had come contradicts this (clocks, or a wrong match) and is left as it is.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .build import beginning
from .graph import (
    CATEGORIES,
    MEETING_TIER,
    TRANSFER_TIER,
    Category,
    Edges,
    Graph,
    Points,
    Relation,
    edges,
    join,
    join_edges,
    settle,
)

FIELDS = tuple(Points.__annotations__)
Offsets = Mapping[int, int]
"""Nanoseconds by which each rank's clock is ahead; a rank that is not named has the right time."""


def across(graphs: Sequence[Graph], offsets: Offsets | None = None) -> Graph:
    """One graph of all ranks, joined at their collectives; times are those of a clock without offset.

    Raises: ValueError if there is no graph.
    """
    if not graphs:
        raise ValueError("graphs = []: nothing to join; give one graph for each rank")
    offsets = offsets or {}
    arrivals = _arrivals(graphs, offsets)
    names: dict[str, int] = {}
    every: list[Points] = []
    found: list[Edges] = []
    starts: dict[tuple[str, ...], list[int]] = {}
    num_points = 1
    for graph, mine in zip(graphs, arrivals, strict=True):
        points, own, cuts = _cut(graph, mine)
        label = np.array([names.setdefault(name, len(names)) for name in graph.names], dtype=np.int32)[points.label]
        # Waiting takes no time by itself: what passes in it is the way to the meeting.
        waiting = points.category == CATEGORIES.index(Category.WAITING)
        every.append(
            dataclasses.replace(
                points,
                label=label,
                time=points.time - offsets.get(_rank(graph), 0),
                least=np.where(waiting, 0, points.least),
            )
        )
        found.append(dataclasses.replace(own, source=own.source + num_points, target=own.target + num_points))
        for identity, start in cuts.items():
            starts.setdefault(identity, []).append(num_points + start)
        num_points += len(points.time)
    begin = min(int(points.time[0]) for points in every)
    points = join(beginning(begin, None), *every)
    meetings, met = _meetings(points, list(starts.values()))
    return settle(
        join(points, meetings),
        join_edges(*found, met),
        names=tuple(names),
        collectives={},
        host_ns=max(graph.host_ns for graph in graphs),
        num_steps=max(graph.num_steps for graph in graphs),
    )


def _rank(graph: Graph) -> int:
    return int(graph.points.rank[0])


def _arrivals(graphs: Sequence[Graph], offsets: Offsets) -> list[dict[tuple[str, ...], int]]:
    """For each rank, by its own clock, when the last rank came to each collective that at least two have."""
    last: dict[tuple[str, ...], int] = {}
    count: dict[tuple[str, ...], int] = {}
    for graph in graphs:
        shift = offsets.get(_rank(graph), 0)
        for start, identity in graph.collectives.items():
            at = int(graph.points.time[start]) - shift
            last[identity] = max(at, last.get(identity, at))
            count[identity] = count.get(identity, 0) + 1
    return [
        {
            identity: last[identity] + offsets.get(_rank(graph), 0)
            for identity in graph.collectives.values()
            if count[identity] > 1
        }
        for graph in graphs
    ]


def _cut(graph: Graph, arrivals: Mapping[tuple[str, ...], int]) -> tuple[Points, Edges, dict[tuple[str, ...], int]]:
    """Points and edges with a point in each collective at which its last rank has come; and their starting points."""
    points = graph.points
    every = [
        (start, arrivals[identity], identity) for start, identity in graph.collectives.items() if identity in arrivals
    ]
    cuts = [(s, at, identity) for s, at, identity in every if points.time[s] <= at <= points.time[s + 1]]
    cuts.sort()
    start = np.array([s for s, _, _ in cuts], dtype=np.int64)
    at = np.array([when for _, when, _ in cuts], dtype=np.int64)
    old = np.arange(len(points.time))
    moved = old + np.searchsorted(start, old, side="left")
    made = Points(**{key: np.insert(getattr(points, key), start + 1, getattr(points, key)[start]) for key in FIELDS})
    middle = moved[start] + 1
    made.time[middle] = at
    made.first[middle] = False
    made.tier[middle] = TRANSFER_TIER
    made.tier[middle + 1] = np.where(made.time[middle + 1] == at, TRANSFER_TIER, made.tier[middle + 1])
    made.least[middle] = at - points.time[start]
    made.least[middle + 1] = points.time[start + 1] - at
    made.category[middle] = CATEGORIES.index(Category.WAITING)
    found = dataclasses.replace(graph.edges, source=moved[graph.edges.source], target=moved[graph.edges.target])
    return made, found, {identity: int(moved[s]) for s, _, identity in cuts}


def _meetings(points: Points, starts: list[list[int]]) -> tuple[Points, Edges]:
    """A point for each collective: all of its ranks have come. It is after their starts, before their transfers."""
    which = np.repeat(np.arange(len(starts)), [len(each) for each in starts])
    start = np.array([point for each in starts for point in each], dtype=np.int64)
    one = np.array([each[0] + 1 for each in starts], dtype=np.int64)
    made = Points(**{key: getattr(points, key)[one] for key in FIELDS})
    made.first[:] = True
    made.least[:] = 0
    made.tier[:] = MEETING_TIER
    hub = len(points.time) + which
    return made, join_edges(
        edges(start, hub, Relation.COLLECTIVE),
        edges(hub, start + 1, Relation.COLLECTIVE),
    )
