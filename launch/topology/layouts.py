"""First assignments of a mesh to a cluster: the mesh cut into equal boxes, each box to a machine, in an order.

A box holds so many ranks along each axis. Which box keeps the heavy exchanges inside, and along which axes neighbouring
machines are neighbours, is tried out; within a machine the seats are searched (`block`).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from .block import best_seats
from .demand import Mesh, Traffic
from .machine import Integers, Machine

_MAX_BOXES = 8
_MAX_BOX_SIZES = 3
_MAX_ORDERS = 24
_SEAT_STEPS = 60_000


def rank_order(machine: Machine, num_ranks: int) -> Integers:
    """Ranks in the order of nodes and devices, as a launcher that knows nothing gives them."""
    usable = [
        machine.first_device[number] + gpu for number, node in enumerate(machine.cluster.nodes) for gpu in node.usable
    ]
    return np.array(usable[:num_ranks], dtype=np.int64)


class Layouts:
    """Assignments of one mesh and traffic."""

    def __init__(self, machine: Machine, mesh: Mesh, traffic: Sequence[Traffic]) -> None:
        self.machine, self.mesh, self.traffic = machine, mesh, tuple(traffic)
        self._seats: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[int, ...]] = {}
        nodes = machine.cluster.nodes
        self.node_order = sorted(range(len(nodes)), key=lambda i: (nodes[i].switches, i))

    def boxes(self) -> list[tuple[int, ...]]:
        """Shapes that are worth a try, best first by a rough estimate."""
        ranks, nodes = self.mesh.num_ranks, self.machine.cluster.nodes
        rooms = [len(node.usable) for node in nodes]
        sizes = [
            g for g in range(max(rooms), 0, -1) if ranks % g == 0 and sum(room // g for room in rooms) * g >= ranks
        ]
        found = [shape for g in sizes[:_MAX_BOX_SIZES] for shape in self._shapes(g)]
        return sorted(found, key=self._estimate)[:_MAX_BOXES]

    def _shapes(self, size: int) -> Iterator[tuple[int, ...]]:
        def cut(axis: int, left: int) -> Iterator[tuple[int, ...]]:
            if axis == len(self.mesh.sizes):
                if left == 1:
                    yield ()
                return
            for here in range(1, min(left, self.mesh.sizes[axis]) + 1):
                if left % here == 0 and self.mesh.sizes[axis] % here == 0:
                    yield from ((here, *rest) for rest in cut(axis + 1, left // here))

        yield from cut(0, size)

    def _estimate(self, shape: tuple[int, ...]) -> float:
        """Seconds if all machines were like the first and every GPU had its own adapter."""
        network = self.machine.cluster.network
        inside = self.machine.insides[0]
        slowest = max((1 / speed for row in inside.bandwidth for speed in row if speed < math.inf), default=0.0)
        fastest = min((1 / speed for row in inside.bandwidth for speed in row if speed < math.inf), default=0.0)
        total = 0.0
        box = Mesh(names=self.mesh.names, sizes=shape)
        for each in self.traffic:
            size, here = self.mesh.size_of(each.axes), box.size_of(each.axes)
            bytes_ = each.link_bytes(size)
            if here < size:
                share = 1 / here if each.pattern.is_ring else 1.0
                seconds = bytes_ * share / network.adapter_bytes_s + each.num_hops(size) * network.latency_s
            else:
                seconds = bytes_ * (fastest if here <= 2 else slowest) if size > 1 else 0.0
            total += each.weight * seconds
        return total

    def orders(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Orders of the axes in which machines follow each other, outermost first: the mesh's own, then others."""
        outer = [i for i, size in enumerate(self.mesh.sizes) if size // shape[i] > 1]
        rest = [i for i in range(len(shape)) if i not in outer]
        return [(*rest, *order) for order, _ in zip(permutations(outer), range(_MAX_ORDERS), strict=False)]

    def devices(self, shape: tuple[int, ...], order: Sequence[int]) -> Integers:
        """The device of every rank: box after box, in an order of axes, to node after node."""
        size, sizes = math.prod(shape), self.mesh.sizes
        boxes = [sizes[i] // shape[i] for i in range(len(sizes))]
        # ranks by (box along each axis, place in the box along each axis)
        split = [each for i in range(len(sizes)) for each in (boxes[i], shape[i])]
        ranks = np.arange(self.mesh.num_ranks).reshape(split)
        outer, inner = [2 * i for i in order], [2 * i + 1 for i in range(len(sizes))]
        by_box = ranks.transpose(outer + inner).reshape(-1, size)
        devices = np.empty(self.mesh.num_ranks, dtype=np.int64)
        box = 0
        for node in self.node_order:
            usable = self.machine.cluster.nodes[node].usable
            while len(usable) >= size and box < len(by_box):
                seats = self._seats_of(node, usable, shape)
                devices[by_box[box]] = self.machine.first_device[node] + np.array(seats)
                usable = tuple(gpu for gpu in usable if gpu not in seats)
                box += 1
        return devices

    def _seats_of(self, node: int, usable: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        key = (self.machine.class_of_node[node], usable, shape)
        if key not in self._seats:
            inside = self.machine.insides[key[0]]
            seats = best_seats(inside, usable, self.mesh, shape, self.traffic, budget=_SEAT_STEPS)
            self._seats[key] = seats.gpus
        return self._seats[key]
