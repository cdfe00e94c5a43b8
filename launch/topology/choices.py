"""Which machines to use, and in which order to fill them, when some are slow, far apart or not needed.

Candidates only: each is priced by the model, for it depends on the traffic whether a fast machine below another switch
is worth more than a slow one nearby.
"""

from collections.abc import Iterator, Sequence

_MAX_LEVELS = 5
_MAX_CHOICES = 16


def choices(
    switches: Sequence[tuple[str, ...]], rooms: Sequence[int], costs: Sequence[float], needed: int
) -> list[tuple[int, ...]]:
    """Sequences of nodes with room for what is needed, no two alike; the first is by the names of switches.

    For each node: the switches above it, how many boxes it has room for, and what a box costs there.
    """
    found: dict[tuple[int, ...], None] = {}
    everything = [i for i, room in enumerate(rooms) if room]
    for nodes in _candidates(switches, rooms, costs, needed, everything):
        left, chosen = needed, list[int]()
        for node in nodes:
            if left <= 0:
                break
            chosen.append(node)
            left -= rooms[node]
        if left <= 0:
            found[tuple(chosen)] = None
        if len(found) == _MAX_CHOICES:
            break
    return list(found)


def _candidates(
    switches: Sequence[tuple[str, ...]],
    rooms: Sequence[int],
    costs: Sequence[float],
    needed: int,
    everything: Sequence[int],
) -> Iterator[list[int]]:
    yield sorted(everything, key=lambda i: (switches[i], i))
    for level in _levels(rooms, costs, needed, everything):
        allowed = [i for i in everything if costs[i] <= level]
        yield _packed(switches, rooms, costs, needed, allowed, 0)
        yield sorted(allowed, key=lambda i: (switches[i], i))
    yield sorted(everything, key=lambda i: (costs[i], switches[i], i))
    yield sorted(everything, key=lambda i: (-rooms[i], costs[i], switches[i], i))
    yield sorted(everything)


def _levels(rooms: Sequence[int], costs: Sequence[float], needed: int, everything: Sequence[int]) -> list[float]:
    """Costs up to which there is room enough, the least first: what is above is dropped."""
    enough: list[float] = []
    room = 0
    by_cost = sorted(everything, key=lambda i: costs[i])
    for at, node in enumerate(by_cost):
        room += rooms[node]
        last_of_level = at + 1 == len(by_cost) or costs[by_cost[at + 1]] > costs[node]
        if room >= needed and last_of_level:
            enough.append(costs[node])
    if len(enough) > _MAX_LEVELS:
        enough = [enough[i * (len(enough) - 1) // (_MAX_LEVELS - 1)] for i in range(_MAX_LEVELS)]
    return enough


def _packed(
    switches: Sequence[tuple[str, ...]],
    rooms: Sequence[int],
    costs: Sequence[float],
    needed: int,
    nodes: Sequence[int],
    depth: int,
) -> list[int]:
    """As few switches as possible: of those with room for the rest the smallest, else the largest and again."""
    if not nodes or depth == len(switches[nodes[0]]):
        return sorted(nodes, key=lambda i: (costs[i], i))
    below: dict[str, list[int]] = {}
    for node in nodes:
        below.setdefault(switches[node][depth], []).append(node)
    room = {name: sum(rooms[i] for i in own) for name, own in below.items()}
    mean = {name: sum(costs[i] for i in own) / len(own) for name, own in below.items()}
    order: list[int] = []
    while needed > 0 and room:
        whole = [name for name in room if room[name] >= needed]
        if whole:
            name = min(whole, key=lambda each: (room[each], mean[each], each))
        else:
            name = min(room, key=lambda each: (-room[each], mean[each], each))
        order += _packed(switches, rooms, costs, needed, below[name], depth + 1)
        needed -= room.pop(name)
    return order
