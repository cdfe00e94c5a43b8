"""Which GPUs are close: islands of fast links, and which pairs are slow."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .value import BEHIND_ONE_SWITCH, FAST, Link, LinkKind, Topology


@dataclass(frozen=True, kw_only=True)
class Island:
    """GPUs that reach each other without leaving their links."""

    gpus: tuple[int, ...]
    """Positions, ascending."""
    labels: tuple[str, ...]
    """Of the links inside, fastest first; empty for a GPU alone."""
    complete: bool
    """Whether every pair is linked, so that any ring is fast; a cube mesh is not."""
    bandwidth_bytes_s: float
    """Of the slowest link inside; 0 for a GPU alone."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "gpus": list(self.gpus),
            "labels": list(self.labels),
            "complete": self.complete,
            "bandwidth_bytes_s": self.bandwidth_bytes_s,
        }


def islands_of(topology: Topology) -> tuple[Island, ...]:
    """Islands in the order of their first GPUs: of NVLink or XGMI, or without any, of PCIe switches."""
    kinds = FAST if any(link.kind in FAST for row in topology.links for link in row) else BEHIND_ONE_SWITCH
    return tuple(_island(topology, group, kinds) for group in components(topology, lambda link: link.kind in kinds))


def components(topology: Topology, joins: Callable[[Link], bool]) -> list[tuple[int, ...]]:
    """GPUs that a chain of such links connects, in the order of their first."""
    above = list(range(len(topology.gpus)))

    def top(i: int) -> int:
        while above[i] != i:
            i = above[i]
        return i

    for i, j in combinations(range(len(above)), 2):
        if joins(topology.gpu_link(i, j)) and top(i) != top(j):
            above[max(top(i), top(j))] = min(top(i), top(j))
    groups: dict[int, list[int]] = {}
    for i in range(len(above)):
        groups.setdefault(top(i), []).append(i)
    return [tuple(group) for group in groups.values()]


def _island(topology: Topology, gpus: tuple[int, ...], kinds: tuple[LinkKind, ...]) -> Island:
    pairs = [topology.gpu_link(i, j) for i, j in combinations(gpus, 2)]
    inside = sorted((link for link in pairs if link.kind in kinds), key=lambda link: -link.bandwidth_bytes_s)
    return Island(
        gpus=gpus,
        labels=tuple(dict.fromkeys(link.label for link in inside)),
        complete=len(inside) == len(pairs),
        bandwidth_bytes_s=inside[-1].bandwidth_bytes_s if inside else 0.0,
    )


def slowest_pairs(topology: Topology) -> tuple[Link, list[tuple[int, int]]] | None:
    """The slowest link between two GPUs and every pair that has it; None if all are equal."""
    pairs = {(i, j): topology.gpu_link(i, j) for i, j in combinations(range(len(topology.gpus)), 2)}
    if not pairs:
        return None
    slow = min(pairs.values(), key=lambda link: link.bandwidth_bytes_s)
    found = [pair for pair, link in pairs.items() if link.bandwidth_bytes_s == slow.bandwidth_bytes_s]
    return None if len(found) == len(pairs) else (slow, found)
