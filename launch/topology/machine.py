"""A cluster as arrays: which node, slot, adapter and switches each device has, and what a byte costs there."""

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from .binding import adapters_of
from .cluster import Cluster
from .inside import Inside
from .value import Topology

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Machine:
    """A cluster as arrays; devices are numbered through all nodes, failed and reserved ones too."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.insides: list[Inside] = []
        self.class_of_node: list[int] = []
        """Nodes whose links, NUMA nodes and adapters are equal are of one class, whatever they are called."""
        self.first_device = [0]
        known: dict[int, int] = {}
        classes: dict[object, int] = {}
        for node in cluster.nodes:
            key = id(node.topology)
            if key not in known:
                number = known[key] = classes.setdefault(_shape(node.topology), len(classes))
                if number == len(self.insides):
                    self.insides.append(Inside(node.topology))
            self.class_of_node.append(known[key])
            self.first_device.append(self.first_device[-1] + len(node.topology.gpus))
        sizes = np.array([len(node.topology.gpus) for node in cluster.nodes])
        self.node: Integers = np.repeat(np.arange(len(sizes)), sizes)
        self.slot: Integers = np.arange(self.node.size) - np.repeat(np.array(self.first_device[:-1]), sizes)
        self.kind_of_node: Integers = np.array(self.class_of_node)
        self.kind: Integers = self.kind_of_node[self.node]
        self._pair_uses: dict[bool, Floats] = {}
        self._stack_pairs()
        self._number_adapters()
        self._number_switches()

    def _stack_pairs(self) -> None:
        size = max(inside.size for inside in self.insides)
        shape = (len(self.insides), size, size)
        self.pair_s_per_byte: Floats = np.zeros(shape)
        self.pair_latency_s: Floats = np.zeros(shape)
        for number, inside in enumerate(self.insides):
            for i in range(inside.size):
                for j in range(inside.size):
                    if i != j:
                        self.pair_s_per_byte[number, i, j] = 1 / inside.bandwidth[i][j]
                        self.pair_latency_s[number, i, j] = inside.latency[i][j]
        self.num_resources = max(1, *(len(inside.capacity) for inside in self.insides))
        self.resource_s_per_byte: Floats = np.zeros((len(self.insides), self.num_resources))
        for number, inside in enumerate(self.insides):
            for resource, capacity in enumerate(inside.capacity):
                self.resource_s_per_byte[number, resource] = 1 / capacity

    def pair_uses(self, *, both_ways: bool) -> Floats:
        """Shared resources of a byte from one device to another of its machine, by class, slot, slot and resource.

        Bytes that come back use the other side's way up as well.
        """
        if both_ways not in self._pair_uses:
            uses: Floats = np.zeros((*self.pair_s_per_byte.shape, self.num_resources))
            for number, inside in enumerate(self.insides):
                for i, j in permutations(range(inside.size), 2) if inside.capacity else ():
                    own = [each for each in inside.between(i, j) if both_ways or each in inside.resources[i]]
                    uses[number, i, j, own] = 1.0
            self._pair_uses[both_ways] = uses
        return self._pair_uses[both_ways]

    def _number_adapters(self) -> None:
        """An adapter for each device; nodes of one class and with the same devices share the answer."""
        cluster = self.cluster
        adapter: list[int] = []
        rail: list[int] = []
        to_adapter: list[float] = []
        speeds: list[float] = []
        answers: dict[tuple[int, tuple[int, ...]], dict[int, int]] = {}
        self._chosen: list[dict[int, int]] = []
        for node, kind in zip(cluster.nodes, self.class_of_node, strict=True):
            key = (kind, node.usable)
            if key not in answers:
                answers[key] = adapters_of(node.topology, node.usable)
            chosen = answers[key]
            self._chosen.append(chosen)
            speed = node.adapter_bytes_s or cluster.network.adapter_bytes_s
            order = sorted(set(chosen.values()))
            for gpu in range(len(node.topology.gpus)):
                nic = chosen.get(gpu)
                rail.append(0 if nic is None else order.index(nic))
                adapter.append(len(speeds) + rail[-1])
                link = speed if nic is None else min(speed, node.topology.nic_link(gpu, nic).bandwidth_bytes_s)
                to_adapter.append(1 / link)
            speeds.extend([speed] * max(1, len(order)))
        self.adapter: Integers = np.array(adapter)
        self.rail: Integers = np.array(rail)
        self.to_adapter_s_per_byte: Floats = np.array(to_adapter)
        self.adapter_s_per_byte: Floats = 1 / np.array(speeds)

    def _number_switches(self) -> None:
        """For each level of switches, which one a node is below, and what a byte costs on its way up."""
        nodes, uplinks = self.cluster.nodes, self.cluster.network.uplink_bytes_s
        self.switches: list[tuple[Integers, float]] = []
        for depth in range(min(len(nodes[0].switches), len(uplinks))):
            paths = [node.switches[: depth + 1] for node in nodes]
            numbers = {path: i for i, path in enumerate(dict.fromkeys(paths))}
            self.switches.append((np.array([numbers[path] for path in paths]), 1 / uplinks[depth]))

    def adapter_name(self, node: int, gpu: int) -> str | None:
        """The system's name of the adapter of a device; None if its machine has none."""
        nic = self._chosen[node].get(gpu)
        return None if nic is None else self.cluster.nodes[node].topology.nics[nic].device


def _shape(topology: Topology) -> object:
    """All that a placement depends on, to be hashed: links of GPUs, NUMA nodes, adapters; no name, UUID or bus id."""
    return (
        topology.switched,
        tuple(gpu.numa_node for gpu in topology.gpus),
        tuple(nic.numa_node for nic in topology.nics),
        tuple(
            (link.kind, link.bandwidth_bytes_s, link.latency_s)
            for row in topology.links[: len(topology.gpus)]
            for link in row
        ),
    )
