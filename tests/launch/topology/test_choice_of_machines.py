"""Which machines a job uses is chosen: never worse than by hand, and the best of all seatings where those are few."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from topology_cases import Case, case, hgx, pairs, pcie_box, render

from stepladder.launch.topology import Cluster, Mesh, Network, Node, Pattern, Topology, Traffic, read_topology
from stepladder.launch.topology.choices import choices
from stepladder.launch.topology.machine import Machine
from stepladder.launch.topology.price import Pricer
from stepladder.launch.topology.solve import as_launched, solve

TP = Traffic(axes=("tp",), pattern=Pattern.ALL_REDUCE, payload_bytes=8e9, num_collectives=128)
DP = Traffic(axes=("dp",), pattern=Pattern.ALL_REDUCE, payload_bytes=1e9, num_collectives=32, weight=0.3)
DP_TP = Mesh.of({"dp": 2, "tp": 8})


def topology(machine: Case) -> Topology:
    return read_topology(render(machine), "topo.txt")


FAST, SLOW = topology(hgx()), topology(case(8, lambda i, j: "SYS", nics=1))


def chance_topology(chance: random.Random, size: int) -> Topology:
    labels = chance.choice((("NV1", "NV2", "SYS"), ("PIX", "PXB", "NODE", "SYS"), ("NODE", "SYS"), ("NV4", "PHB")))
    drawn = {(i, j): chance.choice(labels) for j in range(size) for i in range(j)}
    half = chance.choice((1, 2, size))
    return topology(case(size, lambda i, j: drawn[i, j], numa=lambda i: i // half))


def chance_cluster(chance: random.Random, sizes: Sequence[int]) -> Cluster:
    """Machines of such sizes, alike or not, with or without switches, rails and slow adapters."""
    depth = chance.choice((0, 1))
    one = chance_topology(chance, max(sizes))
    members = tuple(
        Node(
            name=f"h{i}",
            topology=one if size == max(sizes) and chance.random() < 0.5 else chance_topology(chance, size),
            switches=(f"leaf{chance.randrange(2)}",) * depth,
            adapter_bytes_s=chance.choice((None, 1e9, 30e9)),
        )
        for i, size in enumerate(sizes)
    )
    network = Network(
        adapter_bytes_s=chance.choice((1e9, 50e9, 500e9)),
        uplink_bytes_s=(20e9,) * depth,
        cross_rail_bytes_s=chance.choice((None, 5e9)),
    )
    return Cluster(nodes=members, network=network)


def chance_traffic(chance: random.Random, mesh: Mesh) -> list[Traffic]:
    return [
        Traffic(
            axes=(chance.choice(mesh.names),),
            pattern=chance.choice(list(Pattern)),
            payload_bytes=chance.choice((1e6, 1e9, 5e9)),
            num_collectives=chance.choice((0, 1, 50, 1000)),
            weight=chance.choice((1.0, 0.3)),
        )
        for _ in range(chance.choice((1, 2, 3)))
    ]


def best_by_force(mesh: Mesh, traffic: Sequence[Traffic], cluster: Cluster) -> float:
    pricer, machine = Pricer(Machine(cluster), mesh, traffic), Machine(cluster)
    usable = [machine.first_device[i] + gpu for i, node in enumerate(cluster.nodes) for gpu in node.usable]
    return float(pricer.prices(np.array(list(permutations(usable, mesh.num_ranks))))[0].min())


@pytest.mark.parametrize("seed", range(30))
def test_up_to_eight_devices_on_several_machines_nothing_is_better(seed: int) -> None:
    chance = random.Random(seed)
    sizes = chance.choice(((2, 3), (3, 3), (4, 2), (2, 2, 2), (4, 3), (4, 4)))
    cluster = chance_cluster(chance, sizes)
    if chance.random() < 0.3:
        first = replace(cluster.nodes[0], failed=frozenset({0}))
        cluster = replace(cluster, nodes=(first, *cluster.nodes[1:]))
    shapes = ((3,), (4,), (2, 2), (5,), (2, 3), (3, 2))
    fit = [sizes for sizes in shapes if np.prod(sizes) <= min(6, cluster.num_usable)]
    shape = chance.choice(fit)
    mesh = Mesh(names=("a", "b")[: len(shape)], sizes=shape)
    traffic = chance_traffic(chance, mesh)
    found = solve(mesh, traffic, cluster)
    assert found.exact
    assert found.seconds == pytest.approx(best_by_force(mesh, traffic, cluster), rel=1e-9)


@pytest.mark.parametrize("degrees", [{"dp": 4, "tp": 2}, {"dp": 2, "tp": 4}])
def test_eight_ranks_on_two_unlike_machines_are_seated_exactly(degrees: dict[str, int]) -> None:
    cluster = Cluster(
        nodes=(
            Node(name="a", topology=topology(pairs([(0, 2), (1, 3)]))),
            Node(name="b", topology=topology(case(4, lambda i, j: "NV4"))),
        )
    )
    found = solve(Mesh.of(degrees), [TP, DP], cluster)
    assert found.exact
    assert found.seconds == pytest.approx(best_by_force(Mesh.of(degrees), [TP, DP], cluster), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_six_ranks_on_nine_devices_are_near_the_best_of_sixty_thousand_seatings(seed: int) -> None:
    chance = random.Random(seed)
    cluster, mesh = chance_cluster(chance, (4, 3, 2)), Mesh(names=("a", "b"), sizes=(2, 3))
    traffic = chance_traffic(chance, mesh)
    assert solve(mesh, traffic, cluster).seconds <= 1.02 * best_by_force(mesh, traffic, cluster)


def test_many_assignments_cost_what_each_costs_alone() -> None:
    for seed in range(12):
        chance = random.Random(seed)
        cluster, mesh = chance_cluster(chance, (4, 3, 2)), Mesh(names=("a", "b"), sizes=(2, 3))
        pricer = Pricer(Machine(cluster), mesh, chance_traffic(chance, mesh))
        some = np.array([chance.sample(range(9), 6) for _ in range(20)])
        alone = [pricer.price(each) for each in some]
        seconds, spread = pricer.prices(some)
        assert seconds.tolist() == pytest.approx([each.seconds for each in alone], rel=1e-12)
        assert spread.tolist() == pytest.approx([each.spread for each in alone], rel=1e-12)


def on(*hosts: str) -> list[tuple[str, int]]:
    return [(host, gpu) for host in hosts for gpu in range(8)]


BY_HAND: dict[str, tuple[Cluster, Mesh, list[tuple[str, int]]]] = {
    "a slow box before two fast": (
        Cluster(nodes=tuple(Node(name=n, topology=SLOW if n == "s" else FAST) for n in ("s", "f1", "f2"))),
        DP_TP,
        on("f1", "f2"),
    ),
    "a slow box before one fast": (
        Cluster(nodes=(Node(name="s", topology=SLOW), Node(name="f1", topology=FAST))),
        Mesh.of({"tp": 8}),
        on("f1"),
    ),
    "a slow adapter first": (
        Cluster(
            nodes=tuple(
                Node(name=n, topology=FAST, adapter_bytes_s=1e9 if n == "s" else None) for n in ("s", "f1", "f2")
            )
        ),
        DP_TP,
        on("f1", "f2"),
    ),
    "half a machine first": (
        Cluster(
            nodes=tuple(
                Node(name=n, topology=FAST, failed=frozenset(range(4)) if n == "s" else frozenset())
                for n in ("s", "f1", "f2")
            )
        ),
        DP_TP,
        on("f1", "f2"),
    ),
    "slow boxes between fast": (
        Cluster(nodes=tuple(Node(name=f"n{i}", topology=SLOW if i % 2 else FAST) for i in range(8))),
        Mesh.of({"dp": 4, "tp": 8}),
        on("n0", "n2", "n4", "n6"),
    ),
    "the fast ones below two leaves": (
        Cluster(
            nodes=tuple(
                Node(name=f"n{i}", topology=SLOW if i in (1, 4) else FAST, switches=(f"leaf{i % 3}",)) for i in range(6)
            ),
            network=Network(uplink_bytes_s=(5e9,)),
        ),
        DP_TP,
        on("n0", "n3"),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_no_machine_is_used_that_a_person_would_leave_out(name: str) -> None:
    cluster, mesh, places = BY_HAND[name]
    traffic = [each for each in (TP, DP) if each.axes[0] in mesh.names]
    by_hand = as_launched(mesh, traffic, cluster, places)
    found = solve(mesh, traffic, cluster, most_tries=100)
    assert found.seconds <= by_hand.seconds * (1 + 1e-9)
    assert found.gain > 2


@pytest.mark.parametrize("first_leaf", ["leafA", "leafC"])
def test_a_job_stays_below_one_switch_however_that_is_spelled(first_leaf: str) -> None:
    leaves = (first_leaf, "leafB", "leafB")
    cluster = Cluster(
        nodes=tuple(Node(name=f"n{i}", topology=FAST, switches=(leaf,)) for i, leaf in enumerate(leaves)),
        network=Network(uplink_bytes_s=(5e9,)),
    )
    found = solve(DP_TP, [TP, DP], cluster, most_tries=60)
    assert {seat.host for seat in found.seats} == {"n1", "n2"}


def test_machines_are_dropped_by_cost_packed_by_switch_and_taken_by_name() -> None:
    switches = [("b",), ("a",), ("b",), ("a",), ("a",)]
    found = choices(switches, [1, 1, 1, 1, 0], [1.0, 9.0, 1.0, 1.0, 0.0], 2)
    assert found[0] == (1, 3)  # by name
    assert (0, 2) in found  # the cheap ones below one switch
    assert all(4 not in nodes for nodes in found)
    assert choices(switches, [1, 1, 1, 1, 0], [1.0] * 5, 5) == []


def named(one: Topology, number: int) -> Topology:
    """The same machine with UUIDs, bus ids and a source of its own."""
    gpus = tuple(
        replace(gpu, uuid=f"GPU-{number}-{gpu.index}", bus_id=f"0000:{number % 200:02x}:0{gpu.index}.0")
        for gpu in one.gpus
    )
    return replace(one, source=f"host{number}", gpus=gpus)


def test_machines_that_differ_in_names_only_are_of_one_class_and_placed_alike() -> None:
    one = topology(pcie_box())
    alike = tuple(Node(name=f"n{i}", topology=one) for i in range(4))
    own = tuple(replace(node, topology=named(one, i)) for i, node in enumerate(alike))
    mesh = Mesh.of({"tp": 8, "dp": 4})
    assert len(Machine(Cluster(nodes=own)).insides) == 1
    both = [solve(mesh, [TP, DP], Cluster(nodes=nodes), most_tries=60) for nodes in (alike, own)]
    places = [[(seat.host, seat.gpu, seat.cpus, seat.nic) for seat in found.seats] for found in both]
    assert places[0] == places[1]
    assert {seat.uuid for seat in both[1].seats} == {f"GPU-{n}-{g}" for n in range(4) for g in range(8)}
    assert json.dumps(both[1].to_json())


def test_cores_are_those_of_the_host_even_where_its_machine_is_like_another() -> None:
    one = topology(hgx())
    cut = replace(one, gpus=tuple(replace(gpu, cpus=(gpu.index,)) for gpu in one.gpus))
    cluster = Cluster(nodes=(Node(name="n0", topology=one), Node(name="n1", topology=cut)))
    assert len(Machine(cluster).insides) == 1
    found = solve(DP_TP, [TP, DP], cluster, most_tries=20)
    assert all(seat.cpus == (seat.gpu,) for seat in found.seats if seat.host == "n1")
    assert all(len(seat.cpus) == 14 for seat in found.seats if seat.host == "n0")
