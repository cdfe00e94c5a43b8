"""When everything would have happened, had some of it taken less time.

The recorded order and the recorded dependencies stay; only least times change. The one loop goes over the edges between
chains, which are about two for each kernel; all that happens along a chain is a running sum.
"""

import numpy as np

from ..compiled import library
from .graph import Graph


class Simulator:
    """The part of the work that does not depend on the times; then a simulation is a pass over the edges."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        points, edges = graph.points, graph.edges
        joint = points.first.copy()
        joint[edges.target] = True
        self._root = np.maximum.accumulate(np.where(joint, np.arange(len(joint), dtype=np.int32), np.int32(0)))
        joints = np.flatnonzero(joint)
        self._number = np.cumsum(joint, dtype=np.int32) - 1
        along = joints[~points.first[joints]]
        self._along = along
        source = np.concatenate([edges.source, along - 1])
        target = np.concatenate([edges.target, along])
        self._order = np.argsort(graph.place[target], kind="stable")
        self._from = source[self._order]
        self._source = self._number[self._root[self._from]]
        self._target = self._number[target[self._order]]
        self._num_joints = len(joints)

    def run(self, least: np.ndarray, lag: np.ndarray) -> np.ndarray:
        """[P] int64: the points' times after the beginning. [P] least times of segments, [E] of edges."""
        total = np.cumsum(np.where(self.graph.points.first, 0, least))
        offset = total - total[self._root]
        passes = np.concatenate([lag, least[self._along]])[self._order] + offset[self._from]
        times = np.zeros(self._num_joints, dtype=np.int64)
        relax(self._source, self._target, passes, times)
        offset += times[self._number[self._root]]
        return offset

    def length_ns(self, least: np.ndarray, lag: np.ndarray) -> int:
        """How long the window would be."""
        ends = self.graph.points.ends
        return int(self.run(least, lag)[ends].max()) if ends.any() else 0


def relax(source: np.ndarray, target: np.ndarray, passes: np.ndarray, times: np.ndarray) -> None:
    """Each edge in order: its target is not before its source and what passes between them.

    [E] int32 joints, [E] int32 joints, [E] int64, [J] int64, which is changed.
    """
    if built := library():
        built.relax(*(each.ctypes.data for each in (source, target, passes)), len(passes), times.ctypes.data)
        return
    known = times.tolist()
    for before, after, passed in zip(source.tolist(), target.tolist(), passes.tolist(), strict=True):
        known[after] = max(known[after], known[before] + passed)
    times[:] = known


def simulate(graph: Graph, least: np.ndarray | None = None, lag: np.ndarray | None = None) -> np.ndarray:
    """[P] int64: the points' times after the beginning of the window; the recorded ones if nothing is given."""
    simulator = Simulator(graph)
    return simulator.run(
        graph.points.least if least is None else least,
        graph.edges.lag if lag is None else lag,
    )
