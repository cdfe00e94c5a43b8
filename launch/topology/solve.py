"""The assignment of ranks to devices that communicates least.

    placement = solve(Mesh.of({"dp_shard": 4, "tp": 2}), traffic, cluster)

On one machine with at most eight ranks all seatings are searched, but for those that symmetry or a bound rules out, and
on several machines with at most eight devices every one: the answer is exact. Beyond, the mesh is cut into boxes of a
machine's size; shapes and orders of boxes are tried, on several choices of machines where some are slow, far or spare;
seats within a machine are searched, and a local search follows. Devices that failed or are reserved are left out,
machines may differ. Rank order is always among the candidates, so that the answer is never worse by the model;
`bound_s` says how good one can be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .binding import cores_of
from .block import best_seats
from .bound import lower_bound
from .cluster import Cluster, check_cluster
from .demand import Mesh, Traffic, check_demand
from .everything import are_few, best_of_all
from .layouts import Layouts, rank_order
from .machine import Integers, Machine
from .placement import Placement, Seat, TrafficCost
from .price import Pricer
from .search import Assignment, Search

_EXACT_RANKS = 8
_EXACT_STEPS = 3_000_000
_FIRST_CHOICES = 3
"""Of machines, tried with every shape of a box; the others with the best shapes only."""
_BEST_SHAPES = 2


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
    bound_s = lower_bound(machine, mesh, traffic)
    search = Search(machine, pricer, mesh.num_ranks, bound_s, most_tries)
    layouts = Layouts(machine, mesh, traffic)
    first = search.price(rank_order(machine, mesh.num_ranks))
    if search.reaches_bound(first):
        best, exact = first, True
    elif len(cluster.nodes) == 1:
        best, exact = _on_one(machine, mesh, traffic, layouts, first, search)
    elif are_few(cluster.num_usable, mesh.num_ranks):
        best, exact = search.price(best_of_all(pricer, search.usable.tolist(), mesh.num_ranks)), True
    else:
        best, exact = _on_many(layouts, first, search), False
    if best.seconds >= first.seconds * (1 - 1e-12):
        best = first  # nobody is moved for nothing
    exact = exact or best.seconds <= bound_s * (1 + 1e-9)
    return _placement(machine, pricer, best.devices, first.devices, cpus or {}, exact=exact, bound_s=bound_s)


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
    bound_s = lower_bound(machine, mesh, traffic)
    return _placement(machine, pricer, devices, order, cpus or {}, exact=False, bound_s=bound_s)


def _placement(
    machine: Machine,
    pricer: Pricer,
    devices: Integers,
    in_order: Integers,
    cpus: Mapping[str, HostCpus],
    *,
    exact: bool,
    bound_s: float,
) -> Placement:
    best, first = pricer.price(devices), pricer.price(in_order)
    costs = tuple(
        TrafficCost(name=each.name, weight=each.weight, seconds=now, rank_order_s=before)
        for each, now, before in zip(pricer.traffic, best.by_traffic, first.by_traffic, strict=True)
    )
    return Placement(
        mesh=pricer.mesh,
        seats=tuple(_seats(machine, devices, cpus)),
        costs=costs,
        seconds=best.seconds,
        rank_order_s=first.seconds,
        bound_s=best.seconds if exact else bound_s,
        exact=exact,
    )


def _on_one(
    machine: Machine, mesh: Mesh, traffic: Sequence[Traffic], layouts: Layouts, first: Assignment, search: Search
) -> tuple[Assignment, bool]:
    """On one machine: searched whole if it is small."""
    usable, small = machine.cluster.nodes[0].usable, mesh.num_ranks <= _EXACT_RANKS
    budget = _EXACT_STEPS if small else _EXACT_STEPS // 30
    seats = best_seats(machine.insides[0], usable, mesh, mesh.sizes, traffic, budget=budget)
    found = search.price(np.array(seats.gpus, dtype=np.int64))
    best = found if found.seconds < first.seconds else first
    return (best, True) if seats.exact else (search.improve(best, layouts.seats_for), False)


def _on_many(layouts: Layouts, first: Assignment, search: Search) -> Assignment:
    """On several machines: the best of the layouts, improved."""
    best, found = first, list[tuple[Assignment, tuple[int, ...], tuple[int, ...]]]()

    def tried(shape: tuple[int, ...], order: Sequence[int], nodes: tuple[int, ...]) -> Assignment:
        one = search.price(layouts.devices(shape, order, nodes))
        found.append((one, shape, nodes))
        return min(best, one, key=lambda one: one.key)

    shapes = layouts.boxes()
    for shape in shapes:
        for nodes in layouts.machines(shape)[:_FIRST_CHOICES]:
            if search.is_done(best):
                return best
            best = tried(shape, layouts.orders(shape)[0], nodes)
    found.sort(key=lambda each: each[0].key)
    for shape in list(dict.fromkeys(shape for _, shape, _ in found))[:_BEST_SHAPES]:
        for nodes in layouts.machines(shape)[_FIRST_CHOICES:]:
            best = tried(shape, layouts.orders(shape)[0], nodes)
    for nodes in layouts.machines((1,) * len(layouts.mesh.sizes)):
        best = min(best, search.price(layouts.in_order(nodes)), key=lambda one: one.key)
    found.sort(key=lambda each: each[0].key)
    for _, shape, nodes in found[:_BEST_SHAPES]:
        for order in layouts.orders(shape)[1:]:
            if search.is_done(best):
                return best
            best = tried(shape, order, nodes)
    if search.is_done(best):
        return best
    return search.improve(best, layouts.seats_for)


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
