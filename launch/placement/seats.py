"""Who sits where, decided from what all workers report: by the model, by a plan from a file, or as launched."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..plan import Plan
from ..topology import Cluster, Network, Node, Placement, Topology, TopologyError
from ..topology.cpu_list import format_numbers, parse_numbers
from ..topology.placement import Seat
from ..topology.solve import HostCpus, as_launched, solve
from .hosts import natural
from .reports import Report
from .traffic import mesh_of, traffic_of

_BETWEEN_CPUS = Network(adapter_bytes_s=1.25e9, latency_s=50e-6)
"""Sockets, and a card of 10 Gbit/s where the system does not say."""
_TRIES = 300
"""Of the local search: a run should not wait for the last percent."""


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


@dataclass(frozen=True, kw_only=True)
class _Host:
    """A machine with its workers, by the launcher's ranks."""

    name: str
    ranks: tuple[int, ...]
    positions: tuple[int, ...]
    """Of their devices."""
    visible: tuple[tuple[int, ...], ...]
    """The devices that each sees, in its order."""
    topology: Topology
    cpus: HostCpus
    num_numa: int
    network_bytes_s: float | None

    def node(self) -> Node:
        """With the devices of nobody's out of use."""
        others = frozenset(range(len(self.topology.gpus))) - frozenset(self.positions)
        return Node(name=self.name, topology=self.topology, reserved=others, adapter_bytes_s=self.network_bytes_s)


def stay(reports: Sequence[Report], why: str) -> list[Answer]:
    """Everybody remains who the launcher says."""
    said = f"placement   none: {why}; ranks stay as launched"
    return [Answer(rank=rank, local_rank=each.local_rank, said=said) for rank, each in enumerate(reports)]


def decide(plan: Plan, reports: Sequence[Report], mode: str, given: Placement | None) -> list[Answer]:
    """An answer for each rank of the launcher's, in their order.

    `mode` is auto or rank-order, or with a `given` placement the name of its file.
    """
    try:
        hosts = _hosts(reports)
        if given is not None:
            _check_given(plan, given, hosts, mode)
            return _answers(hosts, given, reports, f"placement   as planned in {mode}")
        network = Network() if plan.device_type == "cuda" else _BETWEEN_CPUS
        cluster = Cluster(nodes=tuple(host.node() for host in hosts), network=network)
        cpus = {host.name: host.cpus for host in hosts}
        mesh, traffic = mesh_of(plan), traffic_of(plan)
        places = {rank: (h.name, at) for h in hosts for rank, at in zip(h.ranks, h.positions, strict=True)}
        launched = as_launched(mesh, traffic, cluster, [places[i] for i in range(len(reports))], cpus=cpus)
        if mode == "rank-order":
            return _answers(hosts, launched, reports, f"placement   ranks as launched, on {_named(hosts)}")
        best = replace(solve(mesh, traffic, cluster, cpus=cpus, most_tries=_TRIES), rank_order_s=launched.seconds)
    except TopologyError as error:
        return stay(reports, str(error))
    if not best.is_worth_it:
        said = f"placement   ranks as launched, on {_named(hosts)}: no other order is faster by the model"
        return _answers(hosts, launched, reports, said)
    said = (
        f"placement   {best.gain:.2f}x less communication than as launched, by the model, on {_named(hosts)}; "
        f"--placement none leaves ranks alone"
    )
    return _answers(hosts, best, reports, said)


def _named(hosts: Sequence[_Host]) -> str:
    names = ", ".join(f"{host.name} ({len(host.ranks)})" for host in hosts[:4])
    return names + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")


def _hosts(reports: Sequence[Report]) -> list[_Host]:
    """The machines in the order of their names. Raises: TopologyError if one cannot be placed."""
    kernels: dict[str, list[str]] = {}
    for each in reports:
        kernels.setdefault(each.host, [])
        if each.boot_id not in kernels[each.host]:
            kernels[each.host].append(each.boot_id)
    members: dict[str, list[int]] = {}
    for rank, each in enumerate(reports):
        twins = len(kernels[each.host]) > 1
        members.setdefault(f"{each.host}-{each.boot_id[:8]}" if twins else each.host, []).append(rank)
    return [_host(name, members[name], reports) for name in sorted(members, key=natural)]


def _host(name: str, ranks: Sequence[int], reports: Sequence[Report]) -> _Host:
    ranks = sorted(ranks, key=lambda rank: (reports[rank].group, reports[rank].local_rank))
    first = next((reports[rank] for rank in ranks if reports[rank].local_rank == 0), reports[ranks[0]])
    if first.problem:
        raise TopologyError(f"host {name}: {first.problem}")
    topology = first.topology(len(ranks))
    if first.machine is None:
        positions = tuple(range(len(ranks)))
        visible = tuple(positions for _ in ranks)
    else:
        visible = tuple(_visible(name, topology, reports[rank].visible) for rank in ranks)
        positions = tuple(_position(name, reports[rank], each) for rank, each in zip(ranks, visible, strict=True))
    if len(set(positions)) < len(positions):
        raise TopologyError(f"host {name}: two ranks have one GPU; give every rank its own")
    return _Host(
        name=name,
        ranks=tuple(ranks),
        positions=positions,
        visible=visible,
        topology=topology,
        # What its workers may use together: somebody may have bound each to its own already.
        cpus=replace(first.cpus(), allowed=tuple(sorted({cpu for rank in ranks for cpu in reports[rank].allowed}))),
        num_numa=len(first.numa),
        network_bytes_s=first.network_bytes_s,
    )


def _visible(name: str, topology: Topology, variable: str | None) -> tuple[int, ...]:
    """Positions of the GPUs that a worker sees, in CUDA's order by bus."""
    if variable is None:
        return tuple(range(len(topology.gpus)))
    if "MIG-" in variable:
        raise TopologyError(f"host {name}: ranks work on parts of GPUs (MIG), which reach no others; switch MIG off")
    found: list[int] = []
    for each in (part.strip() for part in variable.split(",")):
        here = [i for i, gpu in enumerate(topology.gpus)
                if each == str(i) or (each.startswith("GPU-") and (gpu.uuid or "").startswith(each))]  # fmt: skip
        if len(here) != 1:
            break  # CUDA reads the list up to the first entry that is no device
        found += here
    return tuple(found)


def _position(name: str, report: Report, visible: Sequence[int]) -> int:
    if report.local_rank >= len(visible):
        raise TopologyError(
            f"host {name}: local rank {report.local_rank} has no GPU, for {len(visible)} are visible; "
            f"start fewer ranks or unset CUDA_VISIBLE_DEVICES"
        )
    return visible[report.local_rank]


def _check_given(plan: Plan, given: Placement, hosts: Sequence[_Host], source: str) -> None:
    """Raises: TopologyError if a plan is not for this run on these machines."""
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
        raise TopologyError(f"{source}: is for the hosts {names}, but this run is on {_named(hosts)}; {again}")
    for host in hosts:
        seats = there[host.name]
        if len(seats) != len(host.ranks):
            raise TopologyError(
                f"{source}: has {len(seats)} ranks on {host.name}, but {len(host.ranks)} were started there; {again}"
            )
        hidden = next((seat.gpu for seat in seats if seat.gpu not in {at for v in host.visible for at in v}), None)
        if hidden is not None:
            raise TopologyError(
                f"{source}: wants GPU{hidden} of {host.name}, which this run does not see; look at CUDA_VISIBLE_DEVICES"
            )
        for seat in seats:
            found = host.topology.gpus[seat.gpu].uuid
            if seat.uuid and found and seat.uuid != found:
                raise TopologyError(
                    f"{source}: is for another machine: GPU{seat.gpu} of {host.name} is {found}, not {seat.uuid}; "
                    f"{again}"
                )


def _answers(hosts: Sequence[_Host], found: Placement, reports: Sequence[Report], said: str) -> list[Answer]:
    """The seats of a placement for the workers: each keeps its device if there is a seat on it."""
    answers: dict[int, Answer] = {}
    for host in hosts:
        seats = {seat.gpu: seat for seat in found.seats if seat.host == host.name}
        left = [at for at in sorted(seats) if at not in host.positions]
        nics = [nic.device for nic in host.topology.nics]
        chosen = [nic for nic in nics if nic in {seat.nic for seat in seats.values()}]
        adapters = f"={','.join(chosen)}" if chosen and len(chosen) < len(nics) else None
        for rank, at, visible in zip(host.ranks, host.positions, host.visible, strict=True):
            seat = seats[at if at in seats else left.pop(0)]
            on_gpu = reports[rank].local_rank if seat.gpu == at else visible.index(seat.gpu)
            answers[rank] = Answer(
                rank=seat.rank, local_rank=on_gpu, seat=seat, adapters=adapters, spread=host.num_numa > 1, said=said
            )
    return [answers[rank] for rank in range(len(reports))]
