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
from numpy.typing import NDArray

from .demand import Mesh, Pattern, Traffic
from .machine import Floats, Integers, Machine

_MOST_AT_ONCE = 1 << 17
"""Ranks priced in one go, so that arrays stay small."""


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

    def price(self, devices: Integers) -> Price:
        """Of the devices of all ranks, in the order of ranks."""
        seconds, spread, by_traffic = self._prices(devices[None])
        return Price(
            seconds=float(seconds[0]), spread=float(spread[0]), by_traffic=tuple(float(each[0]) for each in by_traffic)
        )

    def prices(self, devices: Integers) -> tuple[Floats, Floats]:
        """Seconds and spread of many assignments at once, one a row: each as if the cluster were its own."""
        step = max(1, _MOST_AT_ONCE // devices.shape[1])
        parts = [self._prices(devices[at : at + step])[:2] for at in range(0, len(devices), step)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _prices(self, devices: Integers) -> tuple[Floats, Floats, list[Floats]]:
        total, spread = np.zeros(len(devices)), np.zeros(len(devices))
        each_s: list[Floats] = []
        for traffic, groups in zip(self.traffic, self.groups, strict=True):
            slowest, mean = _Exchange(self.machine, traffic, devices[:, groups]).seconds()
            each_s.append(slowest)
            total += traffic.weight * slowest
            spread += traffic.weight * mean
        return total, spread, each_s


class _Exchange:
    """One traffic of several assignments, each on a copy of the cluster: devices by assignment, group and member."""

    def __init__(self, machine: Machine, traffic: Traffic, devices: Integers) -> None:
        self.machine, self.traffic = machine, traffic
        self.num_copies, groups_each, self.size = devices.shape
        self.num_groups = self.num_copies * groups_each
        self.devices = devices.reshape(self.num_groups, self.size)
        self.copy: Integers = np.repeat(np.arange(self.num_copies), groups_each)
        """Of each group."""
        self.bytes = traffic.link_bytes(self.size)
        self.latency: Floats = np.zeros(self.num_groups)
        self.link_s: Floats = np.zeros(self.num_groups)
        """Of each group's slowest link."""
        self.shared_s: Floats = np.zeros(self.num_copies)
        """Of the most loaded shared resource of each copy."""

    def seconds(self) -> tuple[Floats, Floats]:
        """Of the slowest group, and the mean of all, in each copy."""
        if self.size == 1 or self.traffic.payload_bytes == 0 == self.traffic.num_collectives:
            return self.shared_s, self.shared_s
        if self.traffic.pattern.is_unordered:
            self._sets()
        else:
            self._pairs()
        hops = self.traffic.num_hops(self.size)
        latency, link_s = (each.reshape(self.num_copies, -1) for each in (self.latency, self.link_s))
        slowest = hops * latency.max(axis=1) + np.maximum(link_s.max(axis=1), self.shared_s)
        return slowest, (hops * latency + link_s).mean(axis=1)

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
        group, at = group[several], at[several]
        unique, which = np.unique(masks[several], return_inverse=True)
        # Pairs of a class and a mask, of which there are few however many the machines are.
        pairs, which = np.unique(machine.kind_of_node[at] * unique.size + which, return_inverse=True)
        insides = [machine.insides[kind] for kind in (pairs // unique.size).tolist()]
        locals_ = [
            inside.ring(mask) if ring else inside.all_to_all(mask)
            for inside, mask in zip(insides, unique[pairs % unique.size].tolist(), strict=True)
        ]
        per_byte = np.array([local.seconds_per_byte for local in locals_])[which]
        np.maximum.at(self.link_s, group, per_byte * self.bytes)
        np.maximum.at(self.latency, group, np.array([local.latency_s for local in locals_])[which])
        if any(local.shared for local in locals_):
            uses = np.zeros((len(locals_), machine.num_resources))
            for number, local in enumerate(locals_):
                for resource, number_of_uses in local.shared:
                    uses[number, resource] = number_of_uses
            self._load_resources(self.copy[group], at, uses[which] * self.bytes)

    def _load_resources(self, copy: Integers, at: Integers, bytes_: Floats) -> None:
        """Bytes by resource on nodes of copies."""
        per_byte = self.machine.resource_s_per_byte[self.machine.kind_of_node]
        num_nodes, num_resources = per_byte.shape
        first = (copy * num_nodes + at) * num_resources
        loads = np.bincount(
            (first[:, None] + np.arange(num_resources)).ravel(), bytes_.ravel(), self.num_copies * per_byte.size
        )
        self._share((loads.reshape(-1, *per_byte.shape) * per_byte).reshape(self.num_copies, -1))

    def _share(self, seconds: NDArray[np.floating[Any]]) -> None:
        """Seconds of shared resources, by copy and resource."""
        np.maximum(self.shared_s, seconds.max(axis=1), out=self.shared_s)

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
        self._climb(self.copy[group], at, there)
        if cross is not None:
            number = np.maximum(1, _num_bits(rails))
            apart = 1 - _num_bits(rails & rails[following]) / number
            seconds = np.where(at != there, apart * self.bytes / number, 0.0) / cross
            np.maximum.at(self.link_s, group, seconds)

    def _climb(self, copy: Integers, here: Integers, there: Integers) -> None:
        """Bytes from nodes to nodes on the ways up of the switches that they do not share, and down again."""
        for switch, per_byte in self.machine.switches:
            a, b, number = switch[here], switch[there], int(switch.max()) + 1
            apart = a != b
            for side in (a, b):
                uses = np.bincount((copy * number + side)[apart], minlength=self.num_copies * number)
                self._share(uses.reshape(self.num_copies, -1) * (self.bytes * per_byte))

    def _scatter(self) -> None:
        """An all-to-all on the ways up of switches."""
        for switch, per_byte in self.machine.switches:
            below = switch[self.machine.node[self.devices]]
            size = int(switch.max()) + 1
            key = (np.arange(self.num_groups)[:, None] * size + below).ravel()
            unique, counts = np.unique(key, return_counts=True)
            where = self.copy[unique // size] * size + unique % size
            loads = np.bincount(where, self.bytes * counts * (self.size - counts), minlength=self.num_copies * size)
            self._share(loads.reshape(self.num_copies, -1) * per_byte)

    def _pairs(self) -> None:
        machine = self.machine
        closed = self.traffic.pattern is Pattern.RING
        here = self.devices if closed else self.devices[:, :-1]
        there = np.roll(self.devices, -1, axis=1) if closed else self.devices[:, 1:]
        copy = np.broadcast_to(self.copy[:, None], here.shape)
        same = machine.node[here] == machine.node[there]
        index = machine.kind[here], machine.slot[here], np.where(same, machine.slot[there], machine.slot[here])
        local_s = np.where(same, machine.pair_s_per_byte[index] * self.bytes, 0.0)
        self.link_s = local_s.max(axis=1)
        latency = np.where(same, machine.pair_latency_s[index], machine.cluster.network.latency_s)
        self.latency = latency.max(axis=1)
        if same.any() and any(inside.capacity for inside in machine.insides):
            uses = machine.pair_uses(both_ways=not closed)[tuple(each[same] for each in index)]
            self._load_resources(copy[same], machine.node[here[same]], uses * self.bytes)
        if same.all():
            return
        out = np.zeros(self.devices.shape)
        out[:, : here.shape[1]] += np.where(same, 0.0, self.bytes)
        if not closed:  # as much comes back
            out[:, 1:] += np.where(same, 0.0, self.bytes)
        self._send(out)
        away = ~same
        a, b, of = machine.node[here[away]], machine.node[there[away]], copy[away]
        self._climb(*((of, a, b) if closed else (np.r_[of, of], np.r_[a, b], np.r_[b, a])))
        cross = machine.cluster.network.cross_rail_bytes_s
        if cross is not None:
            apart = away & (machine.rail[here] != machine.rail[there])
            np.maximum.at(self.link_s, np.nonzero(apart)[0], self.bytes / cross)

    def _send(self, out: Floats) -> None:
        """Bytes that ranks send to other machines, through their adapters."""
        machine, devices = self.machine, self.devices
        np.maximum(self.link_s, (out * machine.to_adapter_s_per_byte[devices]).max(axis=1), out=self.link_s)
        number = machine.adapter_s_per_byte.size
        where = self.copy[:, None] * number + machine.adapter[devices]
        loads = np.bincount(where.ravel(), out.ravel(), self.num_copies * number)
        self._share(loads.reshape(self.num_copies, -1) * machine.adapter_s_per_byte)


def _num_bits(masks: Integers) -> Integers:
    """Set bits of each."""
    return np.unpackbits(np.ascontiguousarray(masks).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1).astype(np.int64)
