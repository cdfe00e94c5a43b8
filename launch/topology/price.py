"""What an assignment of ranks to devices costs: seconds of communication in a step.

A traffic takes as long as its slowest group, and no less than its most loaded shared resource:

    T = hops * latency + max(bytes / bandwidth of the slowest link,  bytes on a resource / its capacity)

and the step costs the weighted sum. `inside` says what holds within a machine. Between machines a group's ring enters
each machine once and leaves it once, in the order of their first ranks (NCCL's `connect.cc` joins node n to node n+1),
spread over the adapters of its ranks there. The costs of rings are those of Thakur, Rabenseifner and Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .demand import Mesh, Pattern, Traffic
from .machine import Floats, Integers, Machine


@dataclass(frozen=True, kw_only=True)
class Price:
    """Seconds of a step."""

    seconds: float
    spread: float
    """The same with means in place of the slowest group: tells equally slow assignments apart."""
    by_traffic: tuple[float, ...]
    """Of each traffic, not weighted."""


class Pricer:
    """Prices assignments of one mesh and traffic to one cluster."""

    def __init__(self, machine: Machine, mesh: Mesh, traffic: Sequence[Traffic]) -> None:
        self.machine, self.mesh, self.traffic = machine, mesh, tuple(traffic)
        self.groups = [np.array(mesh.groups(each.axes), dtype=np.int64) for each in self.traffic]
        self.num_priced = 0

    def price(self, devices: Integers) -> Price:
        """Of the devices of all ranks, in the order of ranks."""
        self.num_priced += 1
        total = spread = 0.0
        each_s: list[float] = []
        for traffic, groups in zip(self.traffic, self.groups, strict=True):
            slowest, mean = _Exchange(self.machine, traffic, devices[groups]).seconds()
            each_s.append(slowest)
            total += traffic.weight * slowest
            spread += traffic.weight * mean
        return Price(seconds=total, spread=spread, by_traffic=tuple(each_s))


class _Exchange:
    """One traffic of one assignment."""

    def __init__(self, machine: Machine, traffic: Traffic, devices: Integers) -> None:
        self.machine, self.traffic, self.devices = machine, traffic, devices
        self.num_groups, self.size = devices.shape
        self.bytes = traffic.link_bytes(self.size)
        self.latency: Floats = np.zeros(self.num_groups)
        self.link_s: Floats = np.zeros(self.num_groups)
        """Of each group's slowest link."""
        self.shared_s = 0.0
        """Of the most loaded shared resource."""

    def seconds(self) -> tuple[float, float]:
        """Of the slowest group, and the mean of all."""
        if self.size == 1 or self.traffic.payload_bytes == 0 == self.traffic.num_collectives:
            return 0.0, 0.0
        if self.traffic.pattern.is_unordered:
            self._sets()
        else:
            self._pairs()
        hops = self.traffic.num_hops(self.size)
        slowest = hops * float(self.latency.max()) + max(float(self.link_s.max()), self.shared_s)
        return slowest, float((hops * self.latency + self.link_s).mean())

    def _sets(self) -> None:
        machine, devices = self.machine, self.devices
        node = machine.node[devices]
        # One segment for each group and node: the group's ranks there.
        key = (np.arange(self.num_groups)[:, None] * len(machine.first_device) + node).ravel()
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
        masks = np.bitwise_or.reduceat(np.int64(1) << machine.slot[devices].ravel()[order], starts)
        counts = np.diff(np.append(starts, key.size))
        group, at = np.divmod(ordered[starts], len(machine.first_device))
        self._inside(group, at, masks, counts)
        across = np.bincount(group, minlength=self.num_groups) > 1
        if not across.any():
            return
        count_of_rank = np.empty(key.size, dtype=np.int64)
        count_of_rank[order] = np.repeat(counts, counts)
        count_of_rank = count_of_rank.reshape(devices.shape)
        ring = self.traffic.pattern.is_ring
        out = self.bytes / count_of_rank if ring else self.bytes * (self.size - count_of_rank)
        out = np.where(across[:, None], out, 0.0)
        self.latency[across] = np.maximum(self.latency[across], machine.cluster.network.latency_s)
        self._send(out)
        if not ring:
            self._scatter()
            return
        rails = np.bitwise_or.reduceat(np.int64(1) << machine.rail[devices].ravel()[order], starts)
        self._hop(group, at, rails, order[starts])  # the last: where in its group a segment begins

    def _inside(self, group: Integers, at: Integers, masks: Integers, counts: Integers) -> None:
        machine, ring = self.machine, self.traffic.pattern.is_ring
        several = np.flatnonzero(counts > 1)
        if not several.size:
            return
        kinds = np.array(machine.class_of_node)[at[several]]
        loads = np.zeros(len(machine.cluster.nodes) * machine.num_resources)
        for kind in set(kinds.tolist()):
            those = several[kinds == kind]
            unique, which = np.unique(masks[those], return_inverse=True)
            inside = machine.insides[kind]
            locals_ = [inside.ring(mask) if ring else inside.all_to_all(mask) for mask in unique.tolist()]
            for number, local in enumerate(locals_):
                for resource, uses in local.shared:
                    nodes = at[those[which == number]]
                    np.add.at(loads, nodes * machine.num_resources + resource, uses * self.bytes)
            per_byte = np.array([local.seconds_per_byte for local in locals_])[which]
            np.maximum.at(self.link_s, group[those], per_byte * self.bytes)
            np.maximum.at(self.latency, group[those], np.array([local.latency_s for local in locals_])[which])
        self._load_resources(loads)

    def _load_resources(self, loads: Floats) -> None:
        per_byte = self.machine.resource_s_per_byte[np.array(self.machine.class_of_node)]
        self.shared_s = max(self.shared_s, float((loads.reshape(per_byte.shape) * per_byte).max()))

    def _hop(self, group: Integers, at: Integers, rails: Integers, first: Integers) -> None:
        """Switches and rails between the segments of a ring, each to the next."""
        cross = self.machine.cluster.network.cross_rail_bytes_s
        if not self.machine.switches and cross is None:
            return
        order = np.lexsort((first, group))
        group, at, rails = group[order], at[order], rails[order]
        starts = np.flatnonzero(np.r_[True, np.diff(group) != 0])
        following = np.arange(1, group.size + 1)
        following[np.r_[starts[1:], group.size] - 1] = starts
        there = at[following]
        self._climb(at, there, np.full(at.size, self.bytes))
        if cross is not None:
            number = np.maximum(1, _num_bits(rails))
            apart = 1 - _num_bits(rails & rails[following]) / number
            seconds = np.where(at != there, apart * self.bytes / number, 0.0) / cross
            np.maximum.at(self.link_s, group, seconds)

    def _climb(self, here: Integers, there: Integers, bytes_: Floats) -> None:
        """Bytes from nodes to nodes on the ways up of the switches that they do not share, and down again."""
        for switch, per_byte in self.machine.switches:
            a, b = switch[here], switch[there]
            apart = a != b
            for side in (a, b):
                loads = np.bincount(side[apart], bytes_[apart], minlength=int(switch.max()) + 1)
                self.shared_s = max(self.shared_s, float(loads.max()) * per_byte)

    def _scatter(self) -> None:
        """An all-to-all on the ways up of switches."""
        for switch, per_byte in self.machine.switches:
            below = switch[self.machine.node[self.devices]]
            size = int(switch.max()) + 1
            key = (np.arange(self.num_groups)[:, None] * size + below).ravel()
            unique, counts = np.unique(key, return_counts=True)
            loads = np.bincount(unique % size, self.bytes * counts * (self.size - counts), minlength=size)
            self.shared_s = max(self.shared_s, float(loads.max()) * per_byte)

    def _pairs(self) -> None:
        machine = self.machine
        closed = self.traffic.pattern is Pattern.RING
        here = self.devices if closed else self.devices[:, :-1]
        there = np.roll(self.devices, -1, axis=1) if closed else self.devices[:, 1:]
        same = machine.node[here] == machine.node[there]
        index = machine.kind[here], machine.slot[here], np.where(same, machine.slot[there], machine.slot[here])
        local_s = np.where(same, machine.pair_s_per_byte[index] * self.bytes, 0.0)
        self.link_s = local_s.max(axis=1)
        latency = np.where(same, machine.pair_latency_s[index], machine.cluster.network.latency_s)
        self.latency = latency.max(axis=1)
        self._pair_resources(here[same], there[same])
        if same.all():
            return
        out = np.zeros(self.devices.shape)
        out[:, : here.shape[1]] += np.where(same, 0.0, self.bytes)
        if not closed:  # as much comes back
            out[:, 1:] += np.where(same, 0.0, self.bytes)
        self._send(out)
        away = ~same
        a, b = machine.node[here[away]], machine.node[there[away]]
        self._climb(*((a, b) if closed else (np.r_[a, b], np.r_[b, a])), np.full(a.size * (2 - closed), self.bytes))
        cross = machine.cluster.network.cross_rail_bytes_s
        if cross is not None:
            apart = away & (machine.rail[here] != machine.rail[there])
            np.maximum.at(self.link_s, np.nonzero(apart)[0], self.bytes / cross)

    def _send(self, out: Floats) -> None:
        """Bytes that ranks send to other machines, through their adapters."""
        machine, devices = self.machine, self.devices
        np.maximum(self.link_s, (out * machine.to_adapter_s_per_byte[devices]).max(axis=1), out=self.link_s)
        loads = np.bincount(machine.adapter[devices].ravel(), out.ravel(), machine.adapter_s_per_byte.size)
        self.shared_s = max(self.shared_s, float((loads * machine.adapter_s_per_byte).max()))

    def _pair_resources(self, here: Integers, there: Integers) -> None:
        machine = self.machine
        if not any(inside.capacity for inside in machine.insides) or not here.size:
            return
        loads: Any = np.zeros(len(machine.cluster.nodes) * machine.num_resources)
        both = np.stack([machine.node[here], machine.slot[here], machine.slot[there]], axis=1)
        unique, counts = np.unique(both, axis=0, return_counts=True)
        for (node, i, j), count in zip(unique.tolist(), counts.tolist(), strict=True):
            inside = machine.insides[machine.class_of_node[node]]
            for resource in inside.between(i, j):
                if self.traffic.pattern is Pattern.NEIGHBOURS or resource in inside.resources[i]:
                    loads[node * machine.num_resources + resource] += count * self.bytes
        self._load_resources(loads)


def _num_bits(masks: Integers) -> Integers:
    """Set bits of each."""
    return np.unpackbits(np.ascontiguousarray(masks).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1).astype(np.int64)
