"""The best seats for the ranks of one machine: searched whole, with symmetry and bounds to leave most of it out.

A block is the part of the mesh that one machine holds. Its exchanges are those of the mesh: a group that also has ranks
on other machines puts as many bytes on a link here as the whole group does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .demand import Mesh, Pattern, Traffic
from .inside import Inside


@dataclass(frozen=True, kw_only=True)
class Seats:
    """The GPUs of a machine in the order of the block's ranks."""

    gpus: tuple[int, ...]
    seconds: float
    exact: bool
    """Whether nothing better exists; else the search ended first."""


@dataclass(kw_only=True)
class _Term:
    """One traffic inside the block."""

    traffic: Traffic
    link_bytes: float
    hop_s: float
    """Hops for a latency of one second."""
    groups: list[tuple[int, ...]]
    """Of ranks; where their order matters, each link a group of two, for links can be priced one by one."""
    known: dict[tuple[int, ...], tuple[float, float, tuple[tuple[int, float], ...]]]


class _Search:
    def __init__(self, inside: Inside, usable: Sequence[int], block: Mesh, terms: list[_Term], budget: int) -> None:
        self.inside, self.usable, self.block, self.terms = inside, list(usable), block, terms
        self.left = budget
        self.ends: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(block.num_ranks)]
        """Groups whose last rank this is: the term and the ranks."""
        for number, term in enumerate(terms):
            for group in term.groups:
                self.ends[max(group)].append((number, group))
        self.below = _must_be_above(block, terms)
        self.alike = _alike(inside, self.usable)
        self.best: tuple[int, ...] = ()
        self.best_s = float("inf")

    def run(self) -> Seats:
        order = tuple(self.usable[: self.block.num_ranks])
        self.best, self.best_s = order, self.price(order)
        self._seat([], set(), [(0.0, 0.0)] * len(self.terms), [{} for _ in self.terms])
        return Seats(gpus=self.best, seconds=self.best_s, exact=self.left > 0)

    def price(self, gpus: tuple[int, ...]) -> float:
        """Seconds of a whole seating."""
        state, loads = [(0.0, 0.0)] * len(self.terms), [dict[int, float]() for _ in self.terms]
        for rank in range(len(gpus)):
            state, loads = self._ended(rank, gpus, state, loads)
        return self._seconds(state, loads)

    def _seconds(self, state: list[tuple[float, float]], loads: list[dict[int, float]]) -> float:
        total = 0.0
        for term, (hops_s, link_s), load in zip(self.terms, state, loads, strict=True):
            shared_s = max((bytes_ / self.inside.capacity[each] for each, bytes_ in load.items()), default=0.0)
            total += term.traffic.weight * (hops_s + max(link_s, shared_s))
        return total

    def _ended(
        self, rank: int, gpus: Sequence[int], state: list[tuple[float, float]], loads: list[dict[int, float]]
    ) -> tuple[list[tuple[float, float]], list[dict[int, float]]]:
        """Both with the groups that end at a rank."""
        if not self.ends[rank]:
            return state, loads
        state, loads = list(state), list(loads)
        for number, group in self.ends[rank]:
            hops_s, link_s, shared = self._group(self.terms[number], tuple(gpus[each] for each in group))
            state[number] = (max(state[number][0], hops_s), max(state[number][1], link_s))
            if shared:
                loads[number] = dict(loads[number])
                for each, bytes_ in shared:
                    loads[number][each] = loads[number].get(each, 0.0) + bytes_
        return state, loads

    def _group(self, term: _Term, gpus: tuple[int, ...]) -> tuple[float, float, tuple[tuple[int, float], ...]]:
        key = tuple(sorted(gpus)) if term.traffic.pattern.is_unordered else gpus
        found = term.known.get(key)
        if found is None:
            found = term.known[key] = _group_cost(self.inside, term, key)
        return found

    def _seat(
        self, gpus: list[int], used: set[int], state: list[tuple[float, float]], loads: list[dict[int, float]]
    ) -> None:
        rank = len(gpus)
        if rank == self.block.num_ranks:
            seconds = self._seconds(state, loads)
            if seconds < self.best_s * (1 - 1e-12):
                self.best, self.best_s = tuple(gpus), seconds
            return
        tried: set[int] = set()
        least = max((gpus[each] for each in self.below[rank]), default=-1)
        for gpu in self.usable:
            if gpu in used or self.alike[gpu] in tried:
                continue
            tried.add(self.alike[gpu])  # of GPUs that nothing tells apart, the first free one stands for all
            if gpu < least or self.left <= 0:
                continue
            self.left -= 1
            gpus.append(gpu)
            then, then_loads = self._ended(rank, gpus, state, loads)
            if self._seconds(then, then_loads) < self.best_s * (1 - 1e-12):
                self._seat(gpus, used | {gpu}, then, then_loads)
            gpus.pop()


def best_seats(
    inside: Inside, usable: Sequence[int], mesh: Mesh, shape: Sequence[int], traffic: Sequence[Traffic], *, budget: int
) -> Seats:
    """The best GPUs of a machine for a block of `shape`; exact for up to 8 ranks, if the budget of steps is enough."""
    block = Mesh(names=mesh.names, sizes=tuple(shape))
    terms: list[_Term] = []
    for each in traffic:
        size, here = mesh.size_of(each.axes), block.size_of(each.axes)
        if here > 1 and each.weight > 0:
            groups = block.groups(each.axes)
            term = _Term(
                traffic=each,
                link_bytes=each.link_bytes(size),
                hop_s=each.num_hops(size),
                groups=groups
                if each.pattern.is_unordered
                else _links(groups, each.pattern is Pattern.RING and here == size),
                known={},
            )
            terms.append(term)
    return _Search(inside, usable, block, terms, budget).run()


def _links(groups: Sequence[tuple[int, ...]], closed: bool) -> list[tuple[int, ...]]:
    """From each rank to the next, and of closed groups from the last to the first."""
    found: list[tuple[int, ...]] = []
    for group in groups:
        found.extend(pairwise(group))
        if closed:
            found.append((group[-1], group[0]))
    return found


def _group_cost(
    inside: Inside, term: _Term, gpus: tuple[int, ...]
) -> tuple[float, float, tuple[tuple[int, float], ...]]:
    pattern, bytes_ = term.traffic.pattern, term.link_bytes
    if pattern.is_unordered:
        mask = sum(1 << gpu for gpu in gpus)
        local = inside.ring(mask) if pattern.is_ring else inside.all_to_all(mask)
        shared = tuple((each, uses * bytes_) for each, uses in local.shared)
        return term.hop_s * local.latency_s, bytes_ * local.seconds_per_byte, shared
    i, j = gpus
    uses = [each for each in inside.between(i, j) if pattern is Pattern.NEIGHBOURS or each in inside.resources[i]]
    loads = tuple((each, bytes_) for each in uses)
    return term.hop_s * inside.latency[i][j], bytes_ / inside.bandwidth[i][j], loads


def _must_be_above(block: Mesh, terms: Sequence[_Term]) -> list[list[int]]:
    """For each rank, the ranks whose GPUs must have lower positions, so that of equal seatings one is looked at.

    Along an axis whose exchanges do not care for order, coordinates can be permuted: the first rank has the lowest GPU
    of all that differ from it along such axes only, and GPUs ascend along each such axis through it.
    """
    ordered = {axis for term in terms if not term.traffic.pattern.is_unordered for axis in term.traffic.axes}
    free = [axis not in ordered for axis in block.names]
    ranks = {block.coordinates(rank): rank for rank in range(block.num_ranks)}
    below: list[list[int]] = [[] for _ in ranks]
    for at, rank in ranks.items():
        moved = [i for i, coordinate in enumerate(at) if coordinate]
        if moved and all(free[i] for i in moved):
            below[rank].append(0)
            if len(moved) == 1:
                before = [*at]
                before[moved[0]] -= 1
                below[rank].append(ranks[tuple(before)])
    return below


def _alike(inside: Inside, usable: Sequence[int]) -> dict[int, int]:
    """For each GPU the first that nothing tells from it: equal links to all others, equal resources."""
    found: dict[int, int] = {}
    for gpu in usable:
        found[gpu] = gpu
        for first in sorted(set(found.values())):
            others = [i for i in usable if i not in (gpu, first)]
            if inside.resources[gpu] == inside.resources[first] and all(
                (inside.bandwidth[gpu][i], inside.latency[gpu][i], inside.is_fast[gpu][i])
                == (inside.bandwidth[first][i], inside.latency[first][i], inside.is_fast[first][i])
                for i in others
            ):
                found[gpu] = first
                break
    return found
