"""A cluster as arrays: which node, slot, adapter and switches each device has, and what a byte costs there."""

import numpy as np
from numpy.typing import NDArray

from .binding import adapters_of
from .cluster import Cluster
from .inside import Inside

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Machine:
    """A cluster as arrays; devices are numbered through all nodes, failed and reserved ones too."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.insides: list[Inside] = []
        self.class_of_node: list[int] = []
        """Nodes with equal topologies are of one class."""
        self.first_device = [0]
        known: dict[int, int] = {}
        for node in cluster.nodes:
            key = id(node.topology)
            if key not in known:
                same = next((i for i, each in enumerate(self.insides) if each.topology == node.topology), None)
                if same is None:
                    same = len(self.insides)
                    self.insides.append(Inside(node.topology))
                known[key] = same
            self.class_of_node.append(known[key])
            self.first_device.append(self.first_device[-1] + len(node.topology.gpus))
        sizes = np.array([len(node.topology.gpus) for node in cluster.nodes])
        self.node: Integers = np.repeat(np.arange(len(sizes)), sizes)
        self.slot: Integers = np.arange(self.node.size) - np.repeat(np.array(self.first_device[:-1]), sizes)
        self.kind: Integers = np.array(self.class_of_node)[self.node]
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
