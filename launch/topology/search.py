"""Better assignments from good ones: exchanges of ranks, of slots and of whole machines, kept if they are no worse."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice

import numpy as np

from .machine import Integers, Machine
from .price import Pricer

_STEPS = 2_000_000
"""Ranks priced in all: what a search may cost, whatever the size."""
_AT_ONCE = 2_048
"""Ranks of the candidates that are priced together: many small assignments cost as much as one."""
_MOST_PAIRS = 20_000
_PATIENCE = 1_600
"""Candidates that are no better, after which a kick follows."""
_FRUITLESS_KICKS = 3


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Devices of all ranks, and their price."""

    devices: Integers
    seconds: float
    spread: float

    @property
    def key(self) -> tuple[float, float]:
        """For comparing: seconds, and among equals how many groups are slow."""
        return round(self.seconds, 15), self.spread


Seater = Callable[[int, tuple[int, ...], Integers], Sequence[int]]
"""Slots for ranks on a node, of those that are given."""


class Search:
    """A local search with a budget; the same input gives the same answer."""

    def __init__(self, machine: Machine, pricer: Pricer, num_ranks: int, bound_s: float, most: int) -> None:
        self.machine, self.pricer, self.bound_s = machine, pricer, bound_s
        self.left = min(most, max(30, _STEPS // num_ranks))
        self.random = random.Random(0)
        self.at_once = max(1, min(64, _AT_ONCE // num_ranks))
        nodes = machine.cluster.nodes
        self.usable: Integers = np.array(
            [machine.first_device[number] + gpu for number, node in enumerate(nodes) for gpu in node.usable]
        )

    def is_done(self, best: Assignment) -> bool:
        """Whether nothing better exists, or the budget is used up."""
        return self.left <= 0 or self.reaches_bound(best)

    def reaches_bound(self, one: Assignment) -> bool:
        """Whether nothing can be better."""
        return one.seconds <= self.bound_s * (1 + 1e-9)

    def price(self, devices: Integers) -> Assignment:
        """An assignment with its price."""
        return self.best_of([devices])

    def best_of(self, several: Sequence[Integers]) -> Assignment:
        """The best of several assignments, of equals the first."""
        seconds, spread = self.pricer.prices(np.stack(several))
        found = [
            Assignment(devices=devices, seconds=float(s), spread=float(m))
            for devices, s, m in zip(several, seconds, spread, strict=True)
        ]
        return min(found, key=lambda one: one.key)

    def improve(self, start: Assignment, seater: Seater) -> Assignment:
        """The best that was found from there."""
        best = start
        for moves in (self._slots, partial(self._nodes, seater=seater)):
            better = self._climb(best, moves, self.left // 2)
            while better is not best and not self.is_done(better):
                best, better = better, self._climb(better, moves, self.left // 2)
            best = better
        return self._wander(best)

    def _climb(self, best: Assignment, moves: Callable[[Integers], Iterator[Integers]], most: int) -> Assignment:
        """The best by one move from there, for as long as a move is better; the same object if none is."""
        found = moves(best.devices)
        for _ in range(most):
            some = list(islice(found, self.at_once))
            if not some or self.is_done(best):
                break
            one = self._try(some)
            if one.key < best.key:
                best, found = one, moves(one.devices) if len(some) == self.at_once else iter(())
        return best

    def _wander(self, best: Assignment) -> Assignment:
        """The best found by exchanges of ranks, with kicks out of where none is better."""
        now, since, kicks = best, 0, 0
        num_free = self.usable.size - best.devices.size
        num_moves = best.devices.size * (best.devices.size // 2 + num_free)
        patience = max(8, min(_PATIENCE, 2 * num_moves) // self.at_once)
        while not self.is_done(best):
            free = np.setdiff1d(self.usable, now.devices, assume_unique=True) if num_free else self.usable[:0]
            found = self._try([self._exchange(now.devices, free) for _ in range(self.at_once)])
            since += 1
            if found.key <= now.key:
                since = since if found.key == now.key else 0
                now = found
            if now.key < best.key:
                best, kicks = now, 0
            if since > patience:
                kicked = best.devices
                for _ in range(3):
                    free = np.setdiff1d(self.usable, kicked, assume_unique=True) if num_free else free
                    kicked = self._exchange(kicked, free)
                now, since, kicks = self._try([kicked]), 0, kicks + 1
                if kicks > _FRUITLESS_KICKS:
                    break
        return best

    def _try(self, several: Sequence[Integers]) -> Assignment:
        self.left -= 1
        return self.best_of(several)

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
                    if len(np.unique(found)) == found.size and np.isin(found, self.usable).all():
                        yield found

    def _nodes(self, devices: Integers, seater: Seater) -> Iterator[Integers]:
        """Machines exchanged, of whatever class, whether both are used or one; or the ranks of two on one."""
        machine, nodes = self.machine, self.machine.cluster.nodes
        used = np.unique(machine.node[devices]).tolist()

        def kind(i: int) -> object:
            below = tuple(int(switch[i]) for switch, _ in machine.switches)
            return machine.class_of_node[i], nodes[i].usable, nodes[i].adapter_bytes_s, below

        kinds = {i: kind(i) for i in range(len(nodes)) if nodes[i].usable}
        of_used = set(used)
        spare = list({kinds[i]: i for i in reversed(kinds) if i not in of_used}.values())  # one of each kind
        if not spare and len({kinds[i] for i in used}) == 1 and self.usable.size == devices.size:
            return
        others = [*used, *spare]
        if len(used) * len(others) <= _MOST_PAIRS:
            pairs = [*combinations(used, 2), *((a, b) for a in used for b in spare)]
            self.random.shuffle(pairs)
        else:
            pairs = [(self.random.choice(used), self.random.choice(others)) for _ in range(_MOST_PAIRS)]
        held = np.bincount(machine.node[devices], minlength=len(nodes)).tolist()
        for a, b in pairs:
            room_a, room_b = len(nodes[a].usable), len(nodes[b].usable)
            moves: list[list[tuple[int, int]]] = []
            if kinds[a] != kinds[b] and held[a] <= room_b and held[b] <= room_a:
                moves.append([(a, b), (b, a)])
            if a != b and held[b] and held[a] + held[b] <= max(room_a, room_b):
                moves += [[(a, b)]] if room_b >= room_a else [[(b, a)]]
            for each in moves:
                found = self._moved(devices, each, seater)
                if found is not None:
                    yield found

    def _moved(self, devices: Integers, moves: Sequence[tuple[int, int]], seater: Seater) -> Integers | None:
        """The ranks of nodes moved to nodes, to the same slots where they can be; None if they do not fit."""
        machine = self.machine
        found, at = devices.copy(), machine.node[devices]
        leaving = {source for source, _ in moves}
        for source, target in moves:
            ranks = np.flatnonzero(at == source)
            taken: set[int] = set() if target in leaving else set(machine.slot[devices[at == target]].tolist())
            usable = tuple(gpu for gpu in machine.cluster.nodes[target].usable if gpu not in taken)
            if ranks.size > len(usable):
                return None
            slots: Sequence[int] = machine.slot[devices[ranks]].tolist()
            if machine.class_of_node[source] != machine.class_of_node[target] or not set(slots) <= set(usable):
                slots = seater(target, usable, ranks) if ranks.size else ()
            found[ranks] = machine.first_device[target] + np.array(slots, dtype=np.int64)
        return found

    def _exchange(self, devices: Integers, free: Integers) -> Integers:
        """Two ranks exchanged, or one moved to a free device."""
        found = devices.copy()
        i = self.random.randrange(found.size)
        if free.size and self.random.random() < 0.3:
            found[i] = free[self.random.randrange(free.size)]
            return found
        j = self.random.randrange(found.size)
        found[i], found[j] = found[j], found[i]
        return found
