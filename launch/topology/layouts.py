"""First assignments of a mesh to a cluster: the mesh cut into equal boxes, each box to a machine, in an order.

A box holds so many ranks along each axis. Which box keeps the heavy exchanges inside, and along which axes neighbouring
machines are neighbours, is tried out, and so is which machines hold them (`choices`); within a machine the seats are
searched (`block`).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from .block import Seats, best_seats
from .choices import choices
from .demand import Mesh, Traffic
from .machine import Integers, Machine

_MAX_BOXES = 8
_MAX_BOX_SIZES = 3
_MAX_ORDERS = 24
_SEAT_STEPS = 60_000
_MANY_CLASSES = 8


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
        self._seats: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Seats] = {}
        self._costs: dict[tuple[int, tuple[int, ...], float | None, tuple[int, ...]], float] = {}
        speeds = [[s for row in inside.bandwidth for s in row if s < math.inf] for inside in machine.insides]
        self._link_s_per_byte = tuple(
            min((1 / which(those) for those in speeds if those), default=0.0) for which in (min, max)
        )
        # Where every machine is a class of its own, each is searched less.
        self._budget = max(500, _SEAT_STEPS * _MANY_CLASSES // max(_MANY_CLASSES, len(machine.insides)))

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
        """Seconds if all machines were like the best and every GPU had its own adapter."""
        network = self.machine.cluster.network
        slowest, fastest = self._link_s_per_byte
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

    def machines(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Which nodes to fill with boxes of a shape, and in which order: the first by the names of switches."""
        nodes, size = self.machine.cluster.nodes, math.prod(shape)
        rooms = [len(node.usable) // size for node in nodes]
        costs = [self._cost(number, shape) if room else math.inf for number, room in enumerate(rooms)]
        return choices([node.switches for node in nodes], rooms, costs, self.mesh.num_ranks // size)

    def _cost(self, number: int, shape: tuple[int, ...]) -> float:
        """Seconds of a box on a node, roughly: what stays inside, and what its adapters carry."""
        machine, node = self.machine, self.machine.cluster.nodes[number]
        key = (machine.class_of_node[number], node.usable, node.adapter_bytes_s, shape)
        if key not in self._costs:
            seats = self._seats_of(number, node.usable, shape)
            devices = machine.first_device[number] + np.array(seats.gpus)
            adapters, ranks_of = np.unique(machine.adapter[devices], return_counts=True)
            per_byte = max(
                float(machine.to_adapter_s_per_byte[devices].max()),
                float((ranks_of * machine.adapter_s_per_byte[adapters]).max()),
            )
            box, out = Mesh(names=self.mesh.names, sizes=shape), 0.0
            for each in self.traffic:
                size, here = self.mesh.size_of(each.axes), box.size_of(each.axes)
                if here < size:
                    share = 1 / here if each.pattern.is_ring else 1.0
                    out += each.weight * each.link_bytes(size) * share
            self._costs[key] = round(seats.seconds + out * per_byte, 12)
        return self._costs[key]

    def in_order(self, nodes: Sequence[int]) -> Integers:
        """The devices of nodes one after the other, for meshes that no boxes fill well."""
        machine = self.machine
        usable = [
            machine.first_device[number] + gpu for number in nodes for gpu in machine.cluster.nodes[number].usable
        ]
        return np.array(usable[: self.mesh.num_ranks], dtype=np.int64)

    def devices(self, shape: tuple[int, ...], order: Sequence[int], nodes: Sequence[int]) -> Integers:
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
        for node in nodes:
            usable = self.machine.cluster.nodes[node].usable
            while len(usable) >= size and box < len(by_box):
                seats = self._seats_of(node, usable, shape).gpus
                devices[by_box[box]] = self.machine.first_device[node] + np.array(seats)
                usable = tuple(gpu for gpu in usable if gpu not in seats)
                box += 1
        return devices

    def seats_for(self, node: int, usable: tuple[int, ...], ranks: Integers) -> tuple[int, ...]:
        """Slots of a node for some ranks: the best if they are a box of the mesh, else the first ones."""
        at = np.array(np.unravel_index(ranks, self.mesh.sizes))
        shape = tuple(len(np.unique(row)) for row in at)
        if math.prod(shape) != ranks.size:
            return usable[: ranks.size]
        return self._seats_of(node, usable, shape).gpus

    def _seats_of(self, node: int, usable: tuple[int, ...], shape: tuple[int, ...]) -> Seats:
        key = (self.machine.class_of_node[node], usable, shape)
        if key not in self._seats:
            inside = self.machine.insides[key[0]]
            self._seats[key] = best_seats(inside, usable, self.mesh, shape, self.traffic, budget=self._budget)
        return self._seats[key]
