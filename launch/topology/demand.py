"""What a training step communicates: the mesh, and along which axes how much of which pattern."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from .errors import TopologyError


class Pattern(StrEnum):
    """Who talks with whom in a group of n ranks, and how many bytes that puts on a link."""

    ALL_REDUCE = "all_reduce"
    """A ring: 2 (n-1)/n of the payload over each of its links, in 2 (n-1) hops."""
    ALL_GATHER = "all_gather"
    """A ring: (n-1)/n of the payload (the gathered tensor), in n-1 hops."""
    REDUCE_SCATTER = "reduce_scatter"
    """A ring: (n-1)/n of the payload (the tensor before), in n-1 hops."""
    ALL_TO_ALL = "all_to_all"
    """Every pair: 1/n of a rank's payload each way, in n-1 exchanges."""
    NEIGHBOURS = "neighbours"
    """Pipeline stages: the payload from each rank to the next and as much back, in one hop."""
    RING = "ring"
    """Ring attention: the payload from each rank to the next, from the last to the first, in one hop."""

    @property
    def is_ring(self) -> bool:
        """Whether the library chooses the order within a node, so that a group is a set."""
        return self in (Pattern.ALL_REDUCE, Pattern.ALL_GATHER, Pattern.REDUCE_SCATTER)

    @property
    def is_unordered(self) -> bool:
        """Whether it does not matter which of its ranks a device is."""
        return self.is_ring or self is Pattern.ALL_TO_ALL


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the groups along some axes exchange in one step."""

    axes: tuple[str, ...]
    """One axis, or several that work as one: ("dp_shard", "cp")."""
    pattern: Pattern
    payload_bytes: float
    """Of all collectives of a step together."""
    num_collectives: float = 1.0
    weight: float = 1.0
    """The part that nothing hides: 1 for tensor parallelism, less for gradients reduced under the backward pass."""

    @property
    def name(self) -> str:
        """For tables."""
        return f"{'x'.join(self.axes)} {self.pattern}"

    def link_bytes(self, size: int) -> float:
        """Bytes over each link of a ring or chain; for an all-to-all, from each rank to each other."""
        part = {Pattern.ALL_REDUCE: 2 * (size - 1) / size, Pattern.ALL_TO_ALL: 1 / size}
        whole = (size - 1) / size if self.pattern.is_ring else 1.0
        return self.payload_bytes * part.get(self.pattern, whole)

    def num_hops(self, size: int) -> float:
        """Hops one after the other in a step."""
        hops = {Pattern.ALL_REDUCE: 2 * (size - 1), Pattern.NEIGHBOURS: 1, Pattern.RING: 1}
        return self.num_collectives * hops.get(self.pattern, size - 1)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Axes and their sizes, outermost first: ranks count along the last one first."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, degrees: Mapping[str, int]) -> "Mesh":
        """From names to sizes, in order."""
        return cls(names=tuple(str(name) for name in degrees), sizes=tuple(degrees.values()))

    @property
    def num_ranks(self) -> int:
        """The product."""
        return math.prod(self.sizes)

    def size_of(self, axes: Sequence[str]) -> int:
        """Ranks in a group along the axes."""
        return math.prod(self.sizes[self.names.index(axis)] for axis in axes)

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """Of a rank, outermost first."""
        found: list[int] = []
        for size in reversed(self.sizes):
            rank, at = divmod(rank, size)
            found.append(at)
        return tuple(reversed(found))

    def groups(self, axes: Sequence[str]) -> list[tuple[int, ...]]:
        """The groups along the axes, each in the order of its ranks."""
        inside = [axis in axes for axis in self.names]
        strides = [math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))]

        def corners(within: bool) -> list[int]:
            ranges = [range(size) if inside[i] is within else range(1) for i, size in enumerate(self.sizes)]
            return [sum(c * s for c, s in zip(at, strides, strict=True)) for at in product(*ranges)]

        members = corners(True)
        return [tuple(corner + member for member in members) for corner in corners(False)]


def check_demand(mesh: Mesh, traffic: Sequence[Traffic]) -> None:
    """Raises: TopologyError for sizes below 1, axes that the mesh does not have, and figures that are none."""
    if len(set(mesh.names)) != len(mesh.names) or len(mesh.names) != len(mesh.sizes) or not mesh.names:
        raise TopologyError(f"mesh = {mesh.names}: every axis has one name and one size; name each once")
    for name, size in zip(mesh.names, mesh.sizes, strict=True):
        if size < 1:
            raise TopologyError(f"mesh.{name} = {size}: an axis has at least one rank; give 1 or leave it out")
    for each in traffic:
        unknown = [axis for axis in each.axes if axis not in mesh.names]
        if unknown or len(set(each.axes)) != len(each.axes) or not each.axes:
            raise TopologyError(f"traffic {each.name}: the axes are not axes of the mesh {mesh.names}; name those")
        figures = (each.payload_bytes, each.num_collectives, each.weight)
        if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
            raise TopologyError(f"traffic {each.name} = {figures}: bytes, numbers and weights are not negative")
