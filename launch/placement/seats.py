"""Who sits where, decided from what all workers report: by the model, by a plan from a file, or as launched."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...profiling.trace.spelling import printable
from ..plan import Plan
from ..topology import Cluster, Network, Placement, TopologyError
from ..topology.cpu_list import format_numbers, parse_numbers
from ..topology.placement import Seat
from ..topology.solve import as_launched, solve
from .hosts import natural
from .reports import Report
from .traffic import mesh_of, traffic_of
from .workers import Host, hosts_of, named

_BETWEEN_CPUS = Network(adapter_bytes_s=1.25e9, latency_s=50e-6)
"""Sockets, and a card of 10 Gbit/s where the system does not say."""
_TRIES = 300
"""Of the local search: a run should not wait for the last percent."""


_Seats = dict[str, dict[int, Seat]]
"""Of each host, by the position of the device."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker is told."""

    rank: int
    local_rank: int
    seat: Seat | None = None
    """None if the ranks stay as they are launched and nothing is known of seats."""
    adapters: str | None = None
    """NCCL_IB_HCA of this machine, where some of its adapters are not for training."""
    spread: bool = False
    """Whether the machine has several NUMA nodes, so that it matters where a rank computes."""
    said: str = ""
    """For rank 0 to print."""

    def to_value(self) -> dict[str, Any]:
        """Plain values."""
        value = asdict(self)
        if self.seat is not None:
            value["seat"]["cpus"] = format_numbers(self.seat.cpus)
        return value

    @staticmethod
    def of_value(value: Mapping[str, Any]) -> "Answer":
        """What `to_value` has made."""
        whole: dict[str, Any] = dict(value)
        seat: dict[str, Any] | None = whole["seat"]
        if seat is not None:
            seat["cpus"] = parse_numbers(seat["cpus"]) or ()
            whole["seat"] = Seat(**seat)
        return Answer(**whole)


def stay(reports: Sequence[Report], why: str) -> list[Answer]:
    """Everybody remains who the launcher says."""
    said = printable(f"placement   none: {why}; ranks stay as launched")
    return [Answer(rank=rank, local_rank=each.local_rank, said=said) for rank, each in enumerate(reports)]


def decide(plan: Plan, reports: Sequence[Report], mode: str, given: Placement | None) -> list[Answer]:
    """An answer for each rank of the launcher's, in their order.

    `mode` is auto or rank-order, or with a `given` placement the name of its file.
    """
    try:
        hosts = hosts_of(reports)
        if given is not None:
            return _answers(hosts, _given_seats(plan, given, hosts, mode), reports, f"placement   as planned in {mode}")
        network = Network() if plan.device_type == "cuda" else _BETWEEN_CPUS
        cluster = Cluster(nodes=tuple(host.node() for host in hosts), network=network)
        cpus = {host.name: host.cpus for host in hosts}
        mesh, traffic = mesh_of(plan), traffic_of(plan)
        places = {rank: (h.name, at) for h in hosts for rank, at in zip(h.ranks, h.positions, strict=True)}
        launched = as_launched(mesh, traffic, cluster, [places[i] for i in range(len(reports))], cpus=cpus)
        if mode == "rank-order":
            return _answers(hosts, _seats(launched), reports, f"placement   ranks as launched, on {named(hosts)}")
        best = replace(solve(mesh, traffic, cluster, cpus=cpus, most_tries=_TRIES), rank_order_s=launched.seconds)
    except TopologyError as error:
        return stay(reports, str(error))
    if not best.is_worth_it:
        said = f"placement   ranks as launched, on {named(hosts)}: no other order is faster by the model"
        return _answers(hosts, _seats(launched), reports, said)
    said = (
        f"placement   {best.gain:.2f}x less communication than as launched, by the model, on {named(hosts)}; "
        f"--placement none leaves ranks alone"
    )
    return _answers(hosts, _seats(best), reports, said)


def _seats(found: Placement) -> _Seats:
    """Of a placement that was made for these machines."""
    there: _Seats = {}
    for seat in found.seats:
        there.setdefault(seat.host, {})[seat.gpu] = seat
    return there


def _given_seats(plan: Plan, given: Placement, hosts: Sequence[Host], source: str) -> _Seats:
    """Of a plan from a file. Raises: TopologyError if it is not for this run on these machines."""
    again = "make it again with stepladder place"
    mesh = mesh_of(plan)
    if given.mesh != mesh:
        said, here = (" x ".join(f"{n} {s}" for n, s in zip(m.names, m.sizes, strict=True)) for m in (given.mesh, mesh))
        raise TopologyError(f"{source}: is for the mesh {said}, but this run has {here}; {again}")
    there: dict[str, list[Seat]] = {}
    for seat in given.seats:
        there.setdefault(seat.host, []).append(seat)
    if set(there) != {host.name for host in hosts}:
        names = ", ".join(sorted(there, key=natural)[:8])
        raise TopologyError(f"{source}: is for the hosts {names}, but this run is on {named(hosts)}; {again}")
    found: _Seats = {}
    for host in hosts:
        seats = there[host.name]
        if len(seats) != len(host.ranks):
            raise TopologyError(
                f"{source}: has {len(seats)} ranks on {host.name}, but {len(host.ranks)} were started there; {again}"
            )
        found[host.name] = {_position(host, seat, source): seat for seat in seats}
        if len(found[host.name]) < len(seats):
            raise TopologyError(f"{source}: two ranks sit on one GPU of {host.name}; {again}")
    return found


def _position(host: Host, seat: Seat, source: str) -> int:
    """Of a plan's device on a host: by its UUID where both know it. Raises: TopologyError if it is not to be had."""
    uuids = [gpu.uuid for gpu in host.topology.gpus]
    if seat.uuid is not None and seat.uuid in uuids:
        at = uuids.index(seat.uuid)
    elif host.in_parts and (seat.uuid is None or None in uuids):
        raise TopologyError(
            f"{source}: no worker of {host.name} sees all of its GPUs, and only a UUID could tell which is "
            f"GPU{seat.gpu}; make the plan from what `stepladder topo --json` says on that machine"
        )
    else:
        at = -1 if host.in_parts else seat.gpu
    if at not in {at for visible in host.visible for at in visible}:
        raise TopologyError(
            f"{source}: wants GPU{seat.gpu} of {host.name}, which this run does not see; look at CUDA_VISIBLE_DEVICES"
        )
    if seat.uuid and uuids[at] and seat.uuid != uuids[at]:
        raise TopologyError(
            f"{source}: is for another machine: GPU{seat.gpu} of {host.name} is {uuids[at]}, not {seat.uuid}; "
            f"make it again with stepladder place"
        )
    return at


def _answers(hosts: Sequence[Host], found: _Seats, reports: Sequence[Report], said: str) -> list[Answer]:
    """The seats for the workers: each keeps its device if there is a seat on it.

    Raises: TopologyError if a seat's device is seen by others than who could take it.
    """
    answers: dict[int, Answer] = {}
    for host in hosts:
        seats = found[host.name]
        near = {seat.nic for seat in seats.values()}
        workers = zip(host.ranks, host.positions, _taken(host, seats), host.visible, host.adapters, strict=True)
        for rank, before, at, visible, adapters in workers:
            chosen = [each for each in adapters if each in near]
            answers[rank] = Answer(
                rank=seats[at].rank,
                local_rank=reports[rank].local_rank if at == before else visible.index(at),
                seat=seats[at],
                adapters=f"={','.join(chosen)}" if chosen and len(chosen) < len(adapters) else None,
                spread=host.num_numa > 1,
                said=printable(said),
            )
    return [answers[rank] for rank in range(len(reports))]


def _taken(host: Host, seats: Mapping[int, Seat]) -> list[int]:
    """For each worker of a host the position of its seat: its own device, or one that it sees and nobody needs more."""
    taker = {at: i for i, at in enumerate(host.positions) if at in seats}

    def take(worker: int, tried: set[int]) -> bool:
        wanted = [at for at in sorted(seats) if at in host.visible[worker] and at not in tried]
        free = next((at for at in wanted if at not in taker), None)
        for at in wanted if free is None else (free,):
            if at in tried:
                continue
            tried.add(at)
            if at not in taker or take(taker[at], tried):  # who had it has found another
                taker[at] = worker
                return True
        return False

    for worker, own in enumerate(host.positions):
        if own not in seats and not take(worker, set()):
            left = next(seats[at].gpu for at in sorted(seats) if at not in taker)
            raise TopologyError(
                f"host {host.name}: GPU{left} is to have a rank, but the worker left for it does not see it; look at "
                f"CUDA_VISIBLE_DEVICES"
            )
    at_of = {worker: at for at, worker in taker.items()}
    return [at_of[worker] for worker in range(len(host.ranks))]
