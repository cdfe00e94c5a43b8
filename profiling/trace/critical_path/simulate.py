"""When everything would have happened, had some of it taken less time.

The recorded order and the recorded dependencies stay; only least times change. The one loop in Python goes over the
edges between chains, which are about two for each kernel; all that happens along a chain is a running sum.
"""

import numpy as np

from .graph import Graph


class Simulator:
    """The part of the work that does not depend on the times; then a simulation is a pass over the edges."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        points, edges = graph.points, graph.edges
        joint = points.first.copy()
        joint[edges.target] = True
        self._root = np.maximum.accumulate(np.where(joint, np.arange(len(joint)), 0))
        joints = np.flatnonzero(joint)
        self._number = np.cumsum(joint) - 1
        along = joints[~points.first[joints]]
        self._along = along
        source = np.concatenate([edges.source, along - 1])
        target = np.concatenate([edges.target, along])
        self._order = np.argsort(graph.place[target], kind="stable")
        self._from = source[self._order]
        self._source = self._number[self._root[self._from]].tolist()
        self._target = self._number[target[self._order]].tolist()
        self._num_joints = len(joints)

    def run(self, least: np.ndarray, lag: np.ndarray) -> np.ndarray:
        """[P] int64: the points' times after the beginning. [P] least times of segments, [E] of edges."""
        total = np.cumsum(np.where(self.graph.points.first, 0, least))
        offset = total - total[self._root]
        passes = np.concatenate([lag, least[self._along]])[self._order] + offset[self._from]
        times = [0] * self._num_joints
        for source, target, passed in zip(self._source, self._target, passes.tolist(), strict=True):
            arrival = times[source] + passed
            if arrival > times[target]:
                times[target] = arrival
        return np.array(times, dtype=np.int64)[self._number[self._root]] + offset

    def length_ns(self, least: np.ndarray, lag: np.ndarray) -> int:
        """How long the window would be."""
        ends = self.graph.points.ends
        return int(self.run(least, lag)[ends].max()) if ends.any() else 0


def simulate(graph: Graph, least: np.ndarray | None = None, lag: np.ndarray | None = None) -> np.ndarray:
    """[P] int64: the points' times after the beginning of the window; the recorded ones if nothing is given."""
    simulator = Simulator(graph)
    return simulator.run(
        graph.points.least if least is None else least,
        graph.edges.lag if lag is None else lag,
    )
