"""Better assignments from good ones: exchanges of ranks, of slots and of whole machines, kept if they are no worse."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .machine import Integers, Machine
from .price import Price, Pricer

_STEPS = 2_000_000
"""Ranks priced in all: what a search may cost, whatever the size."""
_FRUITLESS_KICKS = 3


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Devices of all ranks, and their price."""

    devices: Integers
    price: Price

    @property
    def key(self) -> tuple[float, float]:
        """For comparing: seconds, and among equals how many groups are slow."""
        return round(self.price.seconds, 15), self.price.spread


class Search:
    """A local search with a budget; the same input gives the same answer."""

    def __init__(self, machine: Machine, pricer: Pricer, num_ranks: int, bound_s: float, most: int) -> None:
        self.machine, self.pricer, self.bound_s = machine, pricer, bound_s
        self.left = min(most, max(30, _STEPS // num_ranks))
        self.random = random.Random(0)

    def is_done(self, best: Assignment) -> bool:
        """Whether nothing better exists, or the budget is used up."""
        return self.left <= 0 or self.reaches_bound(best)

    def reaches_bound(self, one: Assignment) -> bool:
        """Whether nothing can be better."""
        return one.price.seconds <= self.bound_s * (1 + 1e-9)

    def improve(self, start: Assignment) -> Assignment:
        """The best that was found from there."""
        best = now = start
        since, kicks = 0, 0
        patience = min(400, best.devices.size**2)
        for moves in (self._slots, self._nodes):
            for moved in moves(best.devices):
                if self.is_done(best):
                    return best
                found = self._try(moved)
                if found.key < best.key:
                    best = found
        now = best
        while not self.is_done(best):
            found = self._try(self._exchange(now.devices))
            since += 1
            if found.key <= now.key:
                since = since if found.key == now.key else 0
                now = found
            if now.key < best.key:
                best, kicks = now, 0
            if since > patience:
                now, since, kicks = self._try(self._kick(best.devices)), 0, kicks + 1
                if kicks > _FRUITLESS_KICKS:
                    break
        return best

    def _try(self, devices: Integers) -> Assignment:
        self.left -= 1
        return Assignment(devices=devices, price=self.pricer.price(devices))

    def _slots(self, devices: Integers) -> Iterator[Integers]:
        """Two slots exchanged on all machines of a class: adapters and rails see the difference."""
        machine = self.machine
        if len(machine.cluster.nodes) == 1:
            return
        first = np.array(machine.first_device)[machine.node[devices]]
        for kind in range(len(machine.insides)):
            mine = machine.kind[devices] == kind
            used = np.unique(machine.slot[devices][mine])
            for i, a in enumerate(used):
                for b in used[i + 1 :]:
                    moved = machine.slot[devices].copy()
                    moved[mine & (machine.slot[devices] == a)] = b
                    moved[mine & (machine.slot[devices] == b)] = a
                    found = first + moved
                    if len(np.unique(found)) == found.size and self._usable(found):
                        yield found

    def _usable(self, devices: Integers) -> bool:
        nodes = self.machine.cluster.nodes
        off = [self.machine.first_device[i] + g for i, node in enumerate(nodes) for g in node.failed | node.reserved]
        return not off or not np.isin(devices, off).any()

    def _nodes(self, devices: Integers) -> Iterator[Integers]:
        """Two machines of a class and with the same devices in use exchanged, in a random order."""
        machine = self.machine
        used: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        slots: dict[int, list[int]] = {}
        for node, slot in zip(machine.node[devices].tolist(), machine.slot[devices].tolist(), strict=True):
            slots.setdefault(node, []).append(slot)
        for node, own in slots.items():
            used.setdefault((machine.class_of_node[node], tuple(sorted(own))), []).append(node)
        switched = machine.switches or any(node.adapter_bytes_s for node in machine.cluster.nodes)
        if not switched:
            return
        first = np.array(machine.first_device)
        pairs = [(a, b) for same in used.values() for i, a in enumerate(same[:200]) for b in same[i + 1 : 200]]
        self.random.shuffle(pairs)
        for a, b in pairs[: self.left // 2]:
            node = machine.node[devices]
            shift = np.where(node == a, first[b] - first[a], np.where(node == b, first[a] - first[b], 0))
            yield devices + shift

    def _exchange(self, devices: Integers) -> Integers:
        """Two ranks exchanged, or one moved to a free device."""
        found = devices.copy()
        free = self._free(devices)
        i = self.random.randrange(found.size)
        if free and self.random.random() < 0.3:
            found[i] = self.random.choice(free)
            return found
        j = self.random.randrange(found.size)
        found[i], found[j] = found[j], found[i]
        return found

    def _free(self, devices: Integers) -> list[int]:
        if devices.size == self.machine.cluster.num_usable:
            return []
        used = set(devices.tolist())
        nodes = self.machine.cluster.nodes
        return [
            device
            for number, node in enumerate(nodes)
            for device in (self.machine.first_device[number] + gpu for gpu in node.usable)
            if device not in used
        ]

    def _kick(self, devices: Integers) -> Integers:
        for _ in range(3):
            devices = self._exchange(devices)
        return devices
