"""What an exchange costs inside one machine.

The model: a ring runs at the speed of its slowest link, in the order that is best for it, as NCCL chooses one. NVLinks
are a pair's own (or a GPU's port to the switch). What leaves a PCIe switch shares that switch's way up, and what goes
between sockets shares their interconnect: several groups that do so at once have a part of it each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from .islands import components
from .value import BEHIND_ONE_SWITCH, FAST, LinkKind, Topology

_EXACT_RING = 9
"""GPUs up to which the best ring is searched; above, the slowest link of the best spanning tree stands for it."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """Figures of a set of GPUs for one pattern."""

    seconds_per_byte: float
    """For a byte on each link of a ring; for a byte from each to each, in an all-to-all."""
    latency_s: float
    shared: tuple[tuple[int, float], ...]
    """Shared resources: which, and bytes on it for such a byte."""


class Inside:
    """The costs of one topology; answers are kept."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.size = len(topology.gpus)
        self.bandwidth = [
            [topology.gpu_link(i, j).bandwidth_bytes_s for j in range(self.size)] for i in range(self.size)
        ]
        self.latency = [[topology.gpu_link(i, j).latency_s for j in range(self.size)] for i in range(self.size)]
        self.is_fast = [[topology.gpu_link(i, j).kind in FAST for j in range(self.size)] for i in range(self.size)]
        self.capacity: list[float] = []
        """Bytes per second of each shared resource."""
        self.resources: list[list[int]] = [[] for _ in range(self.size)]
        """Those of each GPU: its PCIe switch's way up, its socket's to the other."""
        self._find_resources()
        self._rings: dict[int, Local] = {}
        self._all_to_alls: dict[int, Local] = {}

    def _find_resources(self) -> None:
        topology = self.topology
        switches = components(topology, lambda link: link.kind in BEHIND_ONE_SWITCH)
        for group in switches:
            if len(group) > 1:
                self._share(group, self.bandwidth[group[0]][group[1]])
        numa = [gpu.numa_node for gpu in topology.gpus]
        if all(node is not None for node in numa):
            sockets = [tuple(i for i in range(self.size) if numa[i] == node) for node in dict.fromkeys(numa)]
        else:
            sockets = components(topology, lambda link: link.kind is not LinkKind.SYS)
        for group in sockets if len(sockets) > 1 else ():
            inside = set(group)
            across = [
                self.bandwidth[i][j]
                for i in group
                for j in range(self.size)
                if j not in inside and topology.gpu_link(i, j).kind in (LinkKind.SYS, LinkKind.NODE)
            ]
            if across:
                self._share(group, min(across))

    def _share(self, group: Sequence[int], capacity: float) -> None:
        for gpu in group:
            self.resources[gpu].append(len(self.capacity))
        self.capacity.append(capacity)

    @cached_property
    def uniform(self) -> bool:
        """Whether all pairs are equal and share nothing."""
        pairs = [(self.bandwidth[i][j], self.latency[i][j]) for i, j in combinations(range(self.size), 2)]
        return len(set(pairs)) <= 1 and not self.capacity

    def ring(self, mask: int) -> Local:
        """Of a ring through the GPUs of a mask, two at least."""
        found = self._rings.get(mask)
        if found is None:
            found = self._rings[mask] = self._best_ring(members(mask))
        return found

    def _best_ring(self, gpus: tuple[int, ...]) -> Local:
        speeds = sorted({self.bandwidth[i][j] for i, j in combinations(gpus, 2)}, reverse=True)
        speed = speeds[-1]
        if len(speeds) > 1:
            closes = self._closes if len(gpus) <= _EXACT_RING else self._spans
            speed = next(each for each in speeds if closes(gpus, each))
        pairs = [pair for pair in combinations(gpus, 2) if self.bandwidth[pair[0]][pair[1]] >= speed]
        latency = max(self.latency[i][j] for i, j in pairs)
        only_fast = all(self.is_fast[i][j] for i, j in pairs)
        shared = () if only_fast else tuple((each, 1.0) for each in self._left(gpus))
        return Local(seconds_per_byte=1 / speed, latency_s=latency, shared=shared)

    def _left(self, gpus: Sequence[int]) -> list[int]:
        """Resources that an exchange of the GPUs uses: it is on both sides of them."""
        touched = sorted({each for gpu in gpus for each in self.resources[gpu]})
        return [each for each in touched if any(each not in self.resources[gpu] for gpu in gpus)]

    def _closes(self, gpus: Sequence[int], speed: float) -> bool:
        """Whether there is a ring of links not slower than that."""
        first, rest = gpus[0], frozenset(gpus[1:])

        def on_from(at: int, left: frozenset[int]) -> bool:
            if not left:
                return self.bandwidth[at][first] >= speed
            return any(self.bandwidth[at][i] >= speed and on_from(i, left - {i}) for i in left)

        return on_from(first, rest)

    def _spans(self, gpus: Sequence[int], speed: float) -> bool:
        reached, waiting = {gpus[0]}, [gpus[0]]
        while waiting:
            at = waiting.pop()
            found = [i for i in gpus if i not in reached and self.bandwidth[at][i] >= speed]
            reached.update(found)
            waiting.extend(found)
        return len(reached) == len(gpus)

    def all_to_all(self, mask: int) -> Local:
        """Of an exchange of every pair: one after the other through a port, at once over NVLinks of their own."""
        found = self._all_to_alls.get(mask)
        if found is None:
            gpus = members(mask)
            slowest = 0.0
            for i in gpus:
                own = [1 / self.bandwidth[i][j] for j in gpus if j != i and self._is_own(i, j)]
                port = [1 / self.bandwidth[i][j] for j in gpus if j != i and not self._is_own(i, j)]
                slowest = max(slowest, sum(port), max(own, default=0.0))
            latency = max(self.latency[i][j] for i, j in combinations(gpus, 2))
            uses: dict[int, float] = {}
            for i, j in combinations(gpus, 2):
                for each in self.between(i, j):
                    uses[each] = uses.get(each, 0.0) + 1.0
            found = Local(seconds_per_byte=slowest, latency_s=latency, shared=tuple(sorted(uses.items())))
            self._all_to_alls[mask] = found
        return found

    def _is_own(self, i: int, j: int) -> bool:
        return self.is_fast[i][j] and not self.topology.switched

    def between(self, i: int, j: int) -> list[int]:
        """Resources between two GPUs."""
        return [] if self.is_fast[i][j] else self._left((i, j))


def members(mask: int) -> tuple[int, ...]:
    """Positions of the set bits."""
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
