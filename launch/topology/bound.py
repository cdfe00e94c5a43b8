"""Seconds that no assignment can undercut, by the same model.

Two bounds, of which the larger counts. Each traffic alone: the best group that the machines have room for. All
together, for traffics that use different axes and cross machines: a set of S ranks that meets a group along axis k with
m_k ranks on average has prod m_k <= |S| (Loomis and Whitney, "An inequality related to the isoperimetric inequality",
1949), so a machine with u GPUs cannot hold long pieces of all axes at once; what it does not hold leaves through its
adapters.
"""

import math
from collections.abc import Sequence

import numpy as np

from .demand import Mesh, Pattern, Traffic
from .inside import Inside
from .machine import Machine

_MAX_SUBSETS = 4096


def lower_bound(machine: Machine, mesh: Mesh, traffic: Sequence[Traffic]) -> float:
    """Seconds, weighted."""
    alone = [_alone(machine, mesh, each) for each in traffic]
    hops = [latency for latency, _ in alone]
    separate = sum(each.weight * (latency + s) for each, (latency, s) in zip(traffic, alone, strict=True))
    chosen = _disjoint(mesh, traffic)
    together = _together(machine, mesh, [traffic[i] for i in chosen])
    together += sum(traffic[i].weight * (hops[i] + (0.0 if i in chosen else alone[i][1])) for i in range(len(traffic)))
    return max(separate, together)


def _alone(machine: Machine, mesh: Mesh, traffic: Traffic) -> tuple[float, float]:
    """Latency and the rest of one traffic, were the machines its own."""
    size = mesh.size_of(traffic.axes)
    if size == 1:
        return 0.0, 0.0
    hops, bytes_ = traffic.num_hops(size), traffic.link_bytes(size)
    nodes = machine.cluster.nodes
    room = max(len(node.usable) for node in nodes)
    if size > room:
        latency, seconds = _crossing(machine, mesh, traffic, size, room)
        return hops * latency, seconds
    best = (math.inf, math.inf)
    for kind, inside in enumerate(machine.insides):
        usable = {i for node, k in zip(nodes, machine.class_of_node, strict=True) if k == kind for i in node.usable}
        if len(usable) >= size:
            found = _best_inside(inside, sorted(usable), size, traffic.pattern)
            best = (min(best[0], found[0]), min(best[1], found[1]))
    # A group may do better across machines than inside one, if the network is faster than their slowest link.
    across = (
        machine.cluster.network.latency_s,
        _fastest_adapter(machine) / max(1, room if traffic.pattern.is_ring else 1),
    )
    if len(nodes) > 1:
        best = (min(best[0], across[0]), min(best[1], across[1]))
    return hops * best[0], bytes_ * best[1]


def _best_inside(inside: Inside, usable: Sequence[int], size: int, pattern: Pattern) -> tuple[float, float]:
    """Latency and seconds per byte of the best group of a size."""
    if not pattern.is_unordered or math.comb(len(usable), size) > _MAX_SUBSETS:
        pairs = [(inside.latency[i][j], 1 / inside.bandwidth[i][j]) for i in usable for j in usable if i != j]
        per_byte = min(s for _, s in pairs)
        return min(latency for latency, _ in pairs), per_byte
    masks = [mask for mask in _subsets(usable, size)]
    locals_ = [inside.ring(mask) if pattern.is_ring else inside.all_to_all(mask) for mask in masks]
    return min(each.latency_s for each in locals_), min(each.seconds_per_byte for each in locals_)


def _subsets(usable: Sequence[int], size: int) -> list[int]:
    from itertools import combinations

    return [sum(1 << i for i in chosen) for chosen in combinations(usable, size)]


def _fastest_adapter(machine: Machine) -> float:
    return float(machine.to_adapter_s_per_byte.min())


def _crossing(machine: Machine, mesh: Mesh, traffic: Traffic, size: int, room: int) -> tuple[float, float]:
    """Latency and seconds of a traffic whose groups no machine can hold."""
    bytes_ = traffic.link_bytes(size)
    pattern = traffic.pattern
    groups = mesh.num_ranks // size
    if pattern.is_ring:
        out = groups * math.ceil(size / room) * bytes_  # each group leaves each machine that it touches
    elif pattern is Pattern.ALL_TO_ALL:
        out = mesh.num_ranks * (size - room) * bytes_
    else:
        pieces = math.ceil(size / room)
        out = groups * (pieces if pattern is Pattern.RING else 2 * (pieces - 1)) * bytes_
    if pattern.is_ring:
        single = bytes_ / room * _fastest_adapter(machine)
    else:
        single = bytes_ * (size - room if pattern is Pattern.ALL_TO_ALL else 1) * _fastest_adapter(machine)
    return machine.cluster.network.latency_s, max(single, out / _all_adapters(machine))


def _all_adapters(machine: Machine) -> float:
    """Bytes per second of the adapters of all usable devices."""
    usable = [
        machine.first_device[number] + gpu for number, node in enumerate(machine.cluster.nodes) for gpu in node.usable
    ]
    return float((1 / machine.adapter_s_per_byte[np.unique(machine.adapter[usable])]).sum())


def _disjoint(mesh: Mesh, traffic: Sequence[Traffic]) -> list[int]:
    """Ring traffics of which no two share an axis, the heaviest first."""
    chosen: list[int] = []
    taken: set[str] = set()
    for i in sorted(range(len(traffic)), key=lambda i: -traffic[i].weight * traffic[i].payload_bytes):
        each = traffic[i]
        if each.pattern.is_ring and mesh.size_of(each.axes) > 1 and not taken & set(each.axes):
            chosen.append(i)
            taken.update(each.axes)
    return chosen


def _together(machine: Machine, mesh: Mesh, traffic: Sequence[Traffic]) -> float:
    """Seconds of adapters, if all machines were filled in the best way for the sum of these traffics.

    Of S ranks on a machine, meeting the groups of n ranks with m each on average, at least |S| (n/m - 1) / (n - 1)
    groups are not whole, and each sends its bytes out. That is convex in log m: the best m have equal slopes, which
    bisection finds.
    """
    room = max(len(node.usable) for node in machine.cluster.nodes)
    sizes = [mesh.size_of(each.axes) for each in traffic]
    if not traffic or math.prod(sizes) <= room:
        return 0.0
    weights = [each.weight * each.link_bytes(size) / (size - 1) for each, size in zip(traffic, sizes, strict=True)]

    def pieces(slope: float) -> list[float]:
        return [min(n, max(1.0, w * n / slope)) for n, w in zip(sizes, weights, strict=True)]

    low, high = 1e-300, max(w * n for n, w in zip(sizes, weights, strict=True)) + 1e-300
    for _ in range(400):
        middle = math.sqrt(low * high)
        if math.prod(pieces(middle)) > room:
            low = middle
        else:
            high = middle
    held = pieces(low)  # not below the room, so that the sum is not above the least
    out = sum(w * (n / m - 1) for n, m, w in zip(sizes, held, weights, strict=True))
    return mesh.num_ranks * max(0.0, out) / _all_adapters(machine)
