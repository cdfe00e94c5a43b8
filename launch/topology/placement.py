"""A placement: which rank sits on which device of which host, with its cores and adapter, and what that is worth."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cpu_list import format_numbers, parse_numbers
from .demand import Mesh
from .errors import TopologyError, shown

FORMAT = 1
WORTH = 0.02
"""Gain below which rank order is as good: the model is not that exact."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where a rank works."""

    rank: int
    host: str
    gpu: int
    """Position on its host, as nvidia-smi counts."""
    uuid: str | None = None
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    """Its own; empty if nothing is known of them."""
    nic: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrafficCost:
    """Seconds of one traffic in a step, not weighted."""

    name: str
    weight: float
    seconds: float
    rank_order_s: float


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Seats of all ranks, in their order, and the modelled seconds of communication in a step."""

    mesh: Mesh
    seats: tuple[Seat, ...]
    costs: tuple[TrafficCost, ...]
    seconds: float
    rank_order_s: float
    """With ranks in the order of hosts and devices."""
    bound_s: float
    """No placement is faster, by the model."""
    exact: bool
    """Whether none is better, by the model."""

    @property
    def gain(self) -> float:
        """Rank order's time over this one's."""
        return self.rank_order_s / self.seconds if self.seconds else 1.0

    @property
    def is_worth_it(self) -> bool:
        """Whether the gain is more than the model's noise."""
        return self.gain >= 1 + WORTH

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return {
            "format": FORMAT,
            "mesh": dict(zip(self.mesh.names, self.mesh.sizes, strict=True)),
            "seconds": self.seconds,
            "rank_order_s": self.rank_order_s,
            "bound_s": self.bound_s,
            "gain": self.gain,
            "exact": self.exact,
            "costs": [vars(cost) for cost in self.costs],
            "seats": [vars(seat) | {"cpus": format_numbers(seat.cpus)} for seat in self.seats],
        }


def from_json(text: str, source: str) -> Placement:
    """The placement in a text. Raises: TopologyError, one sentence."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise TopologyError(f"{source}: this is no placement of format {FORMAT}; make it again")
        whole: dict[str, Any] = found
        seats = tuple(_seat(each) for each in whole["seats"])
        costs = tuple(TrafficCost(**each) for each in whole["costs"])
        mesh = Mesh.of({str(name): int(size) for name, size in whole["mesh"].items()})
        figures = {key: float(whole[key]) for key in ("seconds", "rank_order_s", "bound_s")}
        exact = bool(whole["exact"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TopologyError(f"{source}: the placement is damaged ({shown(error)}); make it again") from error
    check_seats(mesh, seats, source)
    return Placement(mesh=mesh, seats=seats, costs=costs, exact=exact, **figures)


def _seat(value: dict[str, Any]) -> Seat:
    cpus = parse_numbers(str(value["cpus"]))
    optional = {key: value[key] if value[key] is None else str(value[key]) for key in ("uuid", "nic")}
    node = value["numa_node"]
    return Seat(
        rank=int(value["rank"]),
        host=str(value["host"]),
        gpu=int(value["gpu"]),
        numa_node=None if node is None else int(node),
        cpus=() if cpus is None else cpus,
        **optional,
    )


def check_seats(mesh: Mesh, seats: Sequence[Seat], source: str) -> None:
    """Raises: TopologyError unless every rank of the mesh has one seat of its own."""
    if [seat.rank for seat in seats] != list(range(mesh.num_ranks)):
        raise TopologyError(
            f"{source}: {len(seats)} seats are not those of ranks 0 to {mesh.num_ranks - 1}; make it again"
        )
    places = {(seat.host, seat.gpu) for seat in seats}
    if len(places) != len(seats):
        raise TopologyError(f"{source}: two ranks sit on one device; make it again")
