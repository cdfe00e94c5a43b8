"""A placement: which rank sits on which device of which host, with its cores and adapter, and what that is worth."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from .cpu_list import format_numbers, parse_numbers
from .demand import Mesh
from .errors import TopologyError, shown

FORMAT = 1
_MOST, _MOST_AXES = 1_000_000_000, 32
"""Of ranks, devices and nodes: numbers of more digits cost time, and nobody has so many."""
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
        found: Any = json.loads(text)
        if not isinstance(found, dict) or cast(dict[str, Any], found).get("format") != FORMAT:
            raise TopologyError(f"{source}: this is no placement of format {FORMAT}; make it again")
        whole = cast(dict[str, Any], found)
        seats = tuple(_seat(each) for each in whole["seats"])
        mesh = Mesh.of({name: _whole(size, f"mesh.{name}", least=1) for name, size in whole["mesh"].items()})
        if len(mesh.names) > _MOST_AXES:
            raise ValueError(f"a mesh of {len(mesh.names)} axes")
        if not isinstance(whole["exact"], bool):
            raise ValueError(f"exact = {whole['exact']}")
        costs = tuple(
            TrafficCost(name=_text(each["name"], "name"), **_figures(each, "weight", "seconds", "rank_order_s"))
            for each in whole["costs"]
        )
        placement = Placement(
            mesh=mesh,
            seats=seats,
            costs=costs,
            exact=whole["exact"],
            **_figures(whole, "seconds", "rank_order_s", "bound_s"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TopologyError(f"{source}: the placement is damaged ({shown(error)}); make it again") from error
    check_seats(mesh, seats, source)
    return placement


def _seat(value: dict[str, Any]) -> Seat:
    cpus = parse_numbers(_text(value["cpus"], "cpus"))
    if cpus is None:
        raise ValueError(f"cpus = {value['cpus']}")
    optional = {key: None if value[key] is None else _text(value[key], key) for key in ("uuid", "nic")}
    node = value["numa_node"]
    return Seat(
        rank=_whole(value["rank"], "rank"),
        host=_text(value["host"], "host"),
        gpu=_whole(value["gpu"], "gpu"),
        numa_node=None if node is None else _whole(node, "numa_node"),
        cpus=cpus,
        **optional,
    )


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} = {value}")
    return value


def _whole(value: Any, key: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST:  # True and 0.9 are numbers to Python
        raise ValueError(f"{key} = {float(value):.3g}" if type(value) is int else f"{key} = {value}")
    return value


def _figures(value: dict[str, Any], *keys: str) -> dict[str, float]:
    for key in keys:
        if type(value[key]) not in (int, float) or not 0 <= float(value[key]) < math.inf:
            raise ValueError(f"{key} = {value[key]}")
    return {key: float(value[key]) for key in keys}


def check_seats(mesh: Mesh, seats: Sequence[Seat], source: str) -> None:
    """Raises: TopologyError unless every rank of the mesh has one seat of its own."""
    # Told first, for a damaged mesh may have more ranks than fit in memory.
    if len(seats) != mesh.num_ranks or [seat.rank for seat in seats] != list(range(mesh.num_ranks)):
        raise TopologyError(
            f"{source}: {len(seats)} seats are not those of ranks 0 to {mesh.num_ranks - 1}; make it again"
        )
    places = {(seat.host, seat.gpu) for seat in seats}
    if len(places) != len(seats):
        raise TopologyError(f"{source}: two ranks sit on one device; make it again")
