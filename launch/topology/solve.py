"""The assignment of ranks to devices that communicates least.

    placement = solve(Mesh.of({"dp_shard": 4, "tp": 2}), traffic, cluster)

On one machine with at most eight ranks all seatings are searched, but for those that symmetry or a bound rules out: the
answer is exact. Beyond, the mesh is cut into boxes of a machine's size; shapes and orders of boxes are tried, seats
within a machine searched, and a local search follows. Devices that failed or are reserved are left out, machines may
differ. Rank order is always among the candidates, so that the answer is never worse by the model; `bound_s` says how
good one can be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .binding import cores_of
from .block import best_seats
from .bound import lower_bound
from .cluster import Cluster, check_cluster
from .demand import Mesh, Traffic, check_demand
from .layouts import Layouts, rank_order
from .machine import Integers, Machine
from .placement import Placement, Seat, TrafficCost
from .price import Pricer
from .search import Assignment, Search

_EXACT_RANKS = 8
_EXACT_STEPS = 3_000_000


@dataclass(frozen=True, kw_only=True)
class HostCpus:
    """What a host said of its CPUs."""

    allowed: tuple[int, ...] | None = None
    siblings: tuple[tuple[int, ...], ...] = ()


def solve(
    mesh: Mesh,
    traffic: Sequence[Traffic],
    cluster: Cluster,
    *,
    cpus: Mapping[str, HostCpus] | None = None,
    most_tries: int = 3_000,
) -> Placement:
    """The best placement found. Raises: TopologyError if the mesh does not fit.

    `cpus` are by the name of the node. `most_tries` bounds the local search, which is not needed for one small machine.
    """
    check_demand(mesh, traffic)
    check_cluster(cluster, mesh.num_ranks)
    machine = Machine(cluster)
    pricer = Pricer(machine, mesh, traffic)
    order = rank_order(machine, mesh.num_ranks)
    first = Assignment(devices=order, price=pricer.price(order))
    bound_s = lower_bound(machine, mesh, traffic)
    search = Search(machine, pricer, mesh.num_ranks, bound_s, most_tries)
    if len(cluster.nodes) == 1:
        best, exact = _on_one(machine, mesh, traffic, pricer, first, search)
    else:
        best, exact = _on_many(machine, mesh, traffic, pricer, first, search), False
    exact = exact or best.price.seconds <= bound_s * (1 + 1e-9)
    return _placement(machine, pricer, best, first, cpus or {}, exact=exact, bound_s=bound_s)


def as_launched(
    mesh: Mesh,
    traffic: Sequence[Traffic],
    cluster: Cluster,
    places: Sequence[tuple[str, int]],
    *,
    cpus: Mapping[str, HostCpus] | None = None,
) -> Placement:
    """The placement that a launcher has made: for each rank its host and the position of its device.

    Raises: TopologyError if the mesh does not fit.
    """
    check_demand(mesh, traffic)
    check_cluster(cluster, mesh.num_ranks)
    machine = Machine(cluster)
    pricer = Pricer(machine, mesh, traffic)
    number = {node.name: i for i, node in enumerate(cluster.nodes)}
    devices = np.array([machine.first_device[number[host]] + gpu for host, gpu in places], dtype=np.int64)
    order = rank_order(machine, mesh.num_ranks)
    now, first = (Assignment(devices=each, price=pricer.price(each)) for each in (devices, order))
    return _placement(machine, pricer, now, first, cpus or {}, exact=False, bound_s=lower_bound(machine, mesh, traffic))


def _placement(
    machine: Machine,
    pricer: Pricer,
    best: Assignment,
    first: Assignment,
    cpus: Mapping[str, HostCpus],
    *,
    exact: bool,
    bound_s: float,
) -> Placement:
    costs = tuple(
        TrafficCost(name=each.name, weight=each.weight, seconds=now, rank_order_s=before)
        for each, now, before in zip(pricer.traffic, best.price.by_traffic, first.price.by_traffic, strict=True)
    )
    return Placement(
        mesh=pricer.mesh,
        seats=tuple(_seats(machine, best.devices, cpus)),
        costs=costs,
        seconds=best.price.seconds,
        rank_order_s=first.price.seconds,
        bound_s=best.price.seconds if exact else bound_s,
        exact=exact,
    )


def _on_one(
    machine: Machine, mesh: Mesh, traffic: Sequence[Traffic], pricer: Pricer, first: Assignment, search: Search
) -> tuple[Assignment, bool]:
    """On one machine: searched whole if it is small."""
    if search.reaches_bound(first):
        return first, True
    usable, small = machine.cluster.nodes[0].usable, mesh.num_ranks <= _EXACT_RANKS
    budget = _EXACT_STEPS if small else _EXACT_STEPS // 30
    seats = best_seats(machine.insides[0], usable, mesh, mesh.sizes, traffic, budget=budget)
    devices = np.array(seats.gpus, dtype=np.int64)
    found = Assignment(devices=devices, price=pricer.price(devices))
    best = found if found.price.seconds < first.price.seconds else first
    if seats.exact:
        return best, True
    return search.improve(best), False


def _on_many(
    machine: Machine, mesh: Mesh, traffic: Sequence[Traffic], pricer: Pricer, first: Assignment, search: Search
) -> Assignment:
    """On several machines: the best of the layouts, improved."""
    layouts = Layouts(machine, mesh, traffic)
    best = first
    found: list[tuple[Assignment, tuple[int, ...]]] = []

    def tried(shape: tuple[int, ...], order: Sequence[int]) -> Assignment:
        devices = layouts.devices(shape, order)
        return Assignment(devices=devices, price=pricer.price(devices))

    for shape in layouts.boxes():
        if search.is_done(best):
            return best
        each = tried(shape, layouts.orders(shape)[0])
        found.append((each, shape))
        best = min(best, each, key=lambda one: one.key)
    found.sort(key=lambda pair: pair[0].key)
    for _, shape in found[:2]:
        for order in layouts.orders(shape)[1:]:
            if search.is_done(best):
                return best
            best = min(best, tried(shape, order), key=lambda one: one.key)
    best = search.improve(best)
    return best if best.price.seconds < first.price.seconds * (1 - 1e-12) else first


def _seats(machine: Machine, devices: Integers, cpus: Mapping[str, HostCpus]) -> list[Seat]:
    """With cores and adapters: a node's are shared out among the devices that are used."""
    used: dict[int, list[int]] = {}
    for node, slot in zip(machine.node[devices].tolist(), machine.slot[devices].tolist(), strict=True):
        used.setdefault(node, []).append(slot)
    cores: dict[tuple[int, int], tuple[int, ...]] = {}
    known: dict[object, dict[int, tuple[int, ...]]] = {}
    for number, gpus in used.items():
        node = machine.cluster.nodes[number]
        host = cpus.get(node.name, HostCpus())
        inside, mine = node.topology, sorted(gpus)
        # All that cores depend on; machines of a class may differ in it, as where cpusets do.
        near = tuple((gpu.numa_nodes, gpu.cpus) for gpu in inside.gpus)
        key = (near, inside.numa_nodes, tuple(mine), host)
        if key not in known:
            known[key] = cores_of(inside, mine, allowed=host.allowed, siblings=host.siblings)
        cores.update({(number, gpu): own for gpu, own in known[key].items()})
    found: list[Seat] = []
    for rank, (number, gpu) in enumerate(
        zip(machine.node[devices].tolist(), machine.slot[devices].tolist(), strict=True)
    ):
        node = machine.cluster.nodes[number]
        value = node.topology.gpus[gpu]
        found.append(
            Seat(
                rank=rank,
                host=node.name,
                gpu=gpu,
                uuid=value.uuid,
                numa_node=value.numa_node,
                cpus=cores[number, gpu],
                nic=machine.adapter_name(number, gpu),
            )
        )
    return found
