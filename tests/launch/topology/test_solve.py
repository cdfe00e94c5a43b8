"""Placements are the best on one machine, near the best known beyond, and never worse than rank order."""

import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_cases import Case, case, cube_mesh, hgx, pairs, pcie_box, render

from stepladder.launch.topology import (
    Cluster,
    Mesh,
    Network,
    Node,
    Pattern,
    Topology,
    TopologyError,
    Traffic,
    read_topology,
)
from stepladder.launch.topology.machine import Machine
from stepladder.launch.topology.placement import Placement, from_json
from stepladder.launch.topology.price import Pricer
from stepladder.launch.topology.solve import HostCpus, solve

HEAVY = {
    "tp": Traffic(axes=("tp",), pattern=Pattern.ALL_REDUCE, payload_bytes=8e9, num_collectives=128),
    "cp": Traffic(axes=("cp",), pattern=Pattern.RING, payload_bytes=4e9, num_collectives=64, weight=0.5),
    "ep": Traffic(axes=("ep",), pattern=Pattern.ALL_TO_ALL, payload_bytes=6e9, num_collectives=64),
    "dp": Traffic(axes=("dp",), pattern=Pattern.ALL_REDUCE, payload_bytes=1e9, num_collectives=20, weight=0.5),
    "pp": Traffic(axes=("pp",), pattern=Pattern.NEIGHBOURS, payload_bytes=0.25e9, num_collectives=16),
}


def topology(machine: Case) -> Topology:
    return read_topology(render(machine), "topo.txt")


def alone(machine: Case, **changes: Any) -> Cluster:
    return Cluster(nodes=(Node(name="a", topology=topology(machine), **changes),))


def traffic_of(mesh: Mesh) -> list[Traffic]:
    return [HEAVY[name] for name in mesh.names]


def plain_seconds(mesh: Mesh, traffic: Sequence[Traffic], where: Topology, gpus: Sequence[int]) -> float:
    """The model in its simplest words, for a machine in which nothing is shared."""

    def best_ring(group: Sequence[int]) -> float:
        rings = [(group[0], *rest) for rest in permutations(group[1:])]
        return max(min(where.gpu_link(a, b).bandwidth_bytes_s for a, b in pairwise([*ring, ring[0]])) for ring in rings)

    def port(seconds: list[float], fast: list[bool]) -> float:
        """NVLinks of a pair work at once, all else one after the other."""
        return max(
            sum(s for s, f in zip(seconds, fast, strict=True) if not f),
            max((s for s, f in zip(seconds, fast, strict=True) if f), default=0.0),
        )

    def is_own(a: int, b: int) -> bool:
        return where.gpu_link(a, b).label.startswith("NV") and not where.switched

    total = 0.0
    for each in traffic:
        size, slowest, latency = mesh.size_of(each.axes), 0.0, 0.0
        for ranks in mesh.groups(each.axes) if size > 1 else ():
            group = [gpus[rank] for rank in ranks]
            links = list(combinations(group, 2))
            if each.pattern is Pattern.ALL_REDUCE:
                speed = best_ring(group)
                seconds = 2 * (size - 1) / size * each.payload_bytes / speed
                links = [link for link in links if where.gpu_link(*link).bandwidth_bytes_s >= speed]
            elif each.pattern is Pattern.ALL_TO_ALL:
                one = [[1 / where.gpu_link(a, b).bandwidth_bytes_s for b in group if b != a] for a in group]
                fast = [[is_own(a, b) for b in group if b != a] for a in group]
                seconds = each.payload_bytes / size * max(port(s, f) for s, f in zip(one, fast, strict=True))
            else:
                links = list(pairwise([*group, group[0]] if each.pattern is Pattern.RING else group))
                seconds = each.payload_bytes / min(where.gpu_link(a, b).bandwidth_bytes_s for a, b in links)
            slowest = max(slowest, seconds)
            latency = max(latency, *(where.gpu_link(a, b).latency_s for a, b in links))
        total += each.weight * (slowest + each.num_hops(size) * latency)
    return total


NO_SHARING = ("NV1", "NV2", "NV4", "PHB")
MESHES: tuple[dict[str, int], ...] = ({"tp": 4}, {"dp": 2, "tp": 2}, {"pp": 4}, {"pp": 2, "cp": 3}, {"dp": 2, "tp": 3},
                                      {"ep": 3}, {"cp": 5}, {"pp": 2, "tp": 2}, {"dp": 5})  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(data=st.data(), num_gpus=st.integers(4, 6), degrees=st.sampled_from(MESHES))
def test_on_one_machine_nothing_is_better_by_a_search_of_everything(
    data: st.DataObject, num_gpus: int, degrees: dict[str, int]
) -> None:
    mesh = Mesh.of(degrees)
    labels = {pair: data.draw(st.sampled_from(NO_SHARING)) for pair in combinations(range(num_gpus), 2)}
    cluster = alone(case(num_gpus, lambda i, j: labels[i, j]))
    if mesh.num_ranks > num_gpus:
        return
    where, traffic = cluster.nodes[0].topology, traffic_of(mesh)
    found = solve(mesh, traffic, cluster)
    price = plain_seconds(mesh, traffic, where, [seat.gpu for seat in found.seats])
    best = min(plain_seconds(mesh, traffic, where, each) for each in permutations(range(num_gpus), mesh.num_ranks))
    assert found.exact
    assert found.seconds == pytest.approx(price, rel=1e-9)
    assert price == pytest.approx(best, rel=1e-9)


def price_all(mesh: Mesh, cluster: Cluster, candidates: Sequence[Sequence[int]]) -> list[float]:
    pricer = Pricer(Machine(cluster), mesh, traffic_of(mesh))
    return [pricer.price(np.array(each)).seconds for each in candidates]


def distinct(mesh: Mesh, num_gpus: int) -> list[tuple[int, ...]]:
    """All seatings that differ in who is in a group, and where order matters, in who sends to whom."""
    found: dict[frozenset[tuple[str, frozenset[object]]], tuple[int, ...]] = {}
    groups = {name: mesh.groups((name,)) for name in mesh.names}

    def key(gpus: tuple[int, ...]) -> frozenset[tuple[str, frozenset[object]]]:
        whole: set[tuple[str, frozenset[object]]] = set()
        for name, those in groups.items():
            for ranks in those:
                group = [gpus[rank] for rank in ranks]
                if HEAVY[name].pattern is Pattern.RING:
                    whole.add((name, frozenset(pairwise([*group, group[0]]))))
                elif HEAVY[name].pattern is Pattern.NEIGHBOURS:
                    whole.add((name, frozenset(frozenset(pair) for pair in pairwise(group))))
                else:
                    whole.add((name, frozenset(group)))
        return frozenset(whole)

    for gpus in permutations(range(num_gpus), mesh.num_ranks):
        found.setdefault(key(gpus), gpus)
    return list(found.values())


@pytest.mark.parametrize("degrees", [{"dp": 3, "tp": 2}, {"pp": 6}, {"ep": 2, "cp": 3}])
@pytest.mark.parametrize("machine", ["pcie", "bridges", "uneven"])
def test_with_shared_switches_and_sockets_nothing_is_better_either(machine: str, degrees: dict[str, int]) -> None:
    """Six ranks; all 720 seatings priced by the general pricer, which shares no code with the search but the ring."""
    machines: dict[str, Callable[[], Case]] = {
        "pcie": lambda: case(6, lambda i, j: "PIX" if i // 2 == j // 2 else "NODE" if i // 3 == j // 3 else "SYS",
                             numa=lambda i: i // 3),
        "bridges": lambda: pairs([(0, 3), (1, 4), (2, 5)], num_gpus=6),
        "uneven": lambda: case(6, lambda i, j: "PXB" if max(i, j) < 3 else "PHB" if min(i, j) > 3 else "SYS",
                               numa=lambda i: i // 4),
    }  # fmt: skip
    cluster, mesh = alone(machines[machine]()), Mesh.of(degrees)
    found = solve(mesh, traffic_of(mesh), cluster)
    assert found.exact
    assert found.seconds == pytest.approx(min(price_all(mesh, cluster, list(permutations(range(6))))), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [{"dp": 4, "tp": 2}, {"pp": 2, "dp": 2, "tp": 2}, {"pp": 8}, {"dp": 2, "cp": 4},
                                     {"ep": 4, "tp": 2}])  # fmt: skip
@pytest.mark.parametrize("machine", [cube_mesh(), pcie_box(), pairs([(0, 5), (1, 4), (2, 7), (3, 6)], 8)],
                         ids=["cube mesh", "pcie", "bridges"])  # fmt: skip
def test_on_machines_of_eight_nothing_is_better_than_the_answer(machine: Case, degrees: dict[str, int]) -> None:
    cluster, mesh = alone(machine), Mesh.of(degrees)
    found = solve(mesh, traffic_of(mesh), cluster)
    assert found.exact
    assert found.seconds == pytest.approx(min(price_all(mesh, cluster, distinct(mesh, 8))), rel=1e-9)


def test_on_the_cube_mesh_pairs_of_two_nvlinks_work_together() -> None:
    found = solve(Mesh.of({"dp": 4, "tp": 2}), traffic_of(Mesh.of({"dp": 4, "tp": 2})), alone(cube_mesh()))
    by_rank = [seat.gpu for seat in found.seats]
    where = topology(cube_mesh())
    assert {where.gpu_link(a, b).label for a, b in zip(by_rank[::2], by_rank[1::2], strict=True)} == {"NV2"}
    assert found.gain > 1.5


def test_where_all_links_are_equal_ranks_stay_in_order() -> None:
    mesh = Mesh.of({"dp": 2, "tp": 4})
    found = solve(mesh, traffic_of(mesh), alone(hgx()))
    assert [seat.gpu for seat in found.seats] == list(range(8))
    assert found.gain == 1
    assert not found.is_worth_it


def test_split_pairs_are_brought_together() -> None:
    mesh = Mesh.of({"dp": 2, "tp": 2})
    found = solve(mesh, traffic_of(mesh), alone(pairs([(0, 2), (1, 3)])))
    assert {tuple(sorted(seat.gpu for seat in found.seats[i : i + 2])) for i in (0, 2)} == {(0, 2), (1, 3)}
    assert found.is_worth_it


def test_failed_and_reserved_devices_get_no_rank() -> None:
    mesh = Mesh.of({"dp": 2, "tp": 2})
    cluster = alone(pcie_box(), failed=frozenset({0}), reserved=frozenset({3, 4}))
    found = solve(mesh, traffic_of(mesh), cluster)
    assert not {seat.gpu for seat in found.seats} & {0, 3, 4}
    assert {tuple(sorted(seat.gpu for seat in found.seats[i : i + 2])) for i in (0, 2)} <= {
        (1, 2),
        (6, 7),
        (5, 6),
        (5, 7),
    }
    usable = [1, 2, 5, 6, 7]
    assert found.seconds == pytest.approx(min(price_all(mesh, cluster, list(permutations(usable, 4)))), rel=1e-9)


def nodes(number: int, machine: Case, switch: Callable[[int], tuple[str, ...]] = lambda i: ()) -> tuple[Node, ...]:
    one = topology(machine)
    return tuple(Node(name=f"n{i}", topology=one, switches=switch(i)) for i in range(number))


def test_tensor_parallelism_stays_inside_machines() -> None:
    """Here dp is innermost, so that rank order spreads tp over both machines."""
    mesh = Mesh.of({"tp": 8, "dp": 2})
    found = solve(mesh, traffic_of(mesh), Cluster(nodes=nodes(2, hgx())), most_tries=60)
    for group in mesh.groups(("tp",)):
        assert len({found.seats[rank].host for rank in group}) == 1
    # tp over 18 NVLinks; dp over adapters of 50e9 that are behind PCIe of 48e9
    tp = 2 * 7 / 8 * 8e9 / (18 * 20.6e9) + 128 * 14 * 3.4e-6
    dp = 1e9 / 48e9 + 20 * 2 * 14e-6
    assert found.seconds == pytest.approx(tp + 0.5 * dp, rel=1e-9)
    assert found.gain > 1.5


def test_peers_on_other_machines_have_the_same_rail() -> None:
    mesh = Mesh.of({"dp": 2, "tp": 8})
    network = Network(cross_rail_bytes_s=10e9)
    mixed = (Node(name="a", topology=topology(hgx())), Node(name="b", topology=topology(hgx())))
    found = solve(mesh, traffic_of(mesh), Cluster(nodes=mixed, network=network), most_tries=60)
    for ranks in mesh.groups(("dp",)):
        assert len({found.seats[rank].nic for rank in ranks}) == 1


def scattered(number: int, leaves: int, uplink: float, machine: Case) -> Cluster:
    """Machines whose order goes round the leaves."""
    return Cluster(
        nodes=nodes(number, machine, lambda i: (f"leaf{i % leaves}",)), network=Network(uplink_bytes_s=(uplink,))
    )


def best_known(mesh: Mesh, cluster: Cluster, starts: Sequence[np.ndarray], steps: int, seed: int) -> float:
    """A long annealing from each start and from chance."""
    pricer, chance = Pricer(Machine(cluster), mesh, traffic_of(mesh)), random.Random(seed)
    lowest = math.inf
    for start in starts:
        now = start.copy()
        cost = pricer.price(now).seconds
        lowest = min(lowest, cost)
        for step in range(steps):
            i, j = chance.sample(range(now.size), 2)
            now[i], now[j] = now[j], now[i]
            price = pricer.price(now).seconds
            heat = 0.05 * cost * (1 - step / steps) + 1e-12
            if price <= cost or chance.random() < math.exp((cost - price) / heat):
                cost = price
                lowest = min(lowest, cost)
            else:
                now[i], now[j] = now[j], now[i]
    return lowest


def shuffled(size: int, seed: int) -> np.ndarray:
    order = np.arange(size)
    np.random.default_rng(seed).shuffle(order)
    return order


@pytest.mark.parametrize("degrees", [{"tp": 4, "pp": 2, "dp": 2}])
def test_two_machines_of_eight_are_within_two_percent_of_the_best_known(degrees: dict[str, int]) -> None:
    mesh, cluster = Mesh.of(degrees), Cluster(nodes=nodes(2, cube_mesh()))
    found = solve(mesh, traffic_of(mesh), cluster, most_tries=400)
    known = best_known(mesh, cluster, [shuffled(16, 1)], 200, 0)
    assert found.seconds <= 1.02 * known
    assert found.bound_s <= min(known, found.seconds) * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [{"dp": 2, "tp": 8}, {"tp": 4, "pp": 2, "dp": 2}, {"pp": 2, "ep": 4, "tp": 2},
                                     {"cp": 2, "dp": 4, "tp": 2}])  # fmt: skip
@pytest.mark.parametrize("machine", [cube_mesh(), pcie_box(4), hgx()], ids=["cube mesh", "pcie", "hgx"])
def test_two_machines_against_a_long_search(machine: Case, degrees: dict[str, int]) -> None:
    mesh, cluster = Mesh.of(degrees), Cluster(nodes=nodes(2, machine))
    found = solve(mesh, traffic_of(mesh), cluster)
    devices = np.array([8 * int(seat.host[1:]) + seat.gpu for seat in found.seats])
    known = best_known(mesh, cluster, [devices, np.arange(16), shuffled(16, 0)], 2500, 1)
    assert found.seconds <= 1.02 * known
    assert found.bound_s <= known * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "degrees", [{"pp": 4, "dp": 2, "tp": 8}, {"dp": 8, "cp": 4, "tp": 2}, {"tp": 2, "dp": 8, "pp": 4}]
)
def test_eight_machines_against_a_long_search(degrees: dict[str, int]) -> None:
    mesh, cluster = Mesh.of(degrees), scattered(8, 4, 50e9, hgx())
    found = solve(mesh, traffic_of(mesh), cluster)
    devices = np.array([8 * int(seat.host[1:]) + seat.gpu for seat in found.seats])
    known = best_known(mesh, cluster, [devices, shuffled(64, 0)], 4000, 1)
    assert found.seconds <= 1.02 * known


def test_machines_of_a_leaf_stay_together() -> None:
    """Two pipelines of four machines, four leaves of two, uplinks so slow that they decide: the optimum is known.

    Every stage boundary between leaves costs; a pipeline of four machines must cross once at least.
    """
    mesh = Mesh.of({"pp": 4, "dp": 2, "tp": 8})
    found = solve(mesh, traffic_of(mesh), scattered(8, 4, 20e9, hgx()), most_tries=100)
    leaf = [int(seat.host[1:]) % 4 for seat in found.seats]
    for group in mesh.groups(("dp",)):
        assert len({leaf[rank] for rank in group}) == 1, "1 GB each, the heaviest between machines"
    assert found.gain > 1.3


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_placement_seats_each_rank_once_and_is_not_worse_than_none(data: st.DataObject) -> None:
    machines = [cube_mesh(), hgx(), pcie_box(), pairs([(0, 2), (1, 3)])]
    chosen = [data.draw(st.sampled_from(machines)) for _ in range(data.draw(st.integers(1, 4)))]
    members = []
    for i, each in enumerate(chosen):
        off = data.draw(st.sets(st.integers(0, each.num_gpus - 1), max_size=3))
        members.append(Node(name=f"h{i}", topology=topology(each), failed=frozenset(off), switches=(f"l{i % 2}",)))
    cluster = Cluster(nodes=tuple(members), network=Network(uplink_bytes_s=(40e9,)))
    degrees: dict[str, int] = {}
    room = cluster.num_usable
    for name in data.draw(st.permutations(list(HEAVY))):
        degrees[name] = data.draw(st.integers(1, min(4, room)))
        room //= degrees[name]
    mesh = Mesh.of(degrees)
    found = solve(mesh, traffic_of(mesh), cluster, most_tries=40)
    assert [seat.rank for seat in found.seats] == list(range(mesh.num_ranks))
    assert len({(seat.host, seat.gpu) for seat in found.seats}) == mesh.num_ranks
    usable = {node.name: node.usable for node in cluster.nodes}
    assert all(seat.gpu in usable[seat.host] for seat in found.seats)
    assert found.bound_s * (1 - 1e-9) <= found.seconds <= found.rank_order_s * (1 + 1e-9)
    assert found.seconds == pytest.approx(sum(cost.weight * cost.seconds for cost in found.costs))
    assert from_json(json.dumps(found.to_json()), "plan.json") == found


def test_a_bound_holds_for_seatings_of_two_small_machines() -> None:
    for degrees in ({"dp": 3, "tp": 2}, {"ep": 6}, {"pp": 2, "cp": 3}):
        mesh = Mesh.of(degrees)
        one = topology(pairs([(0, 2)], num_gpus=4))
        cluster = Cluster(nodes=(Node(name="a", topology=one, failed=frozenset({3})), Node(name="b", topology=one)))
        found = solve(mesh, traffic_of(mesh), cluster)
        everything = price_all(mesh, cluster, [shuffled_of([0, 1, 2, 4, 5, 6, 7], 6, i) for i in range(300)])
        assert found.bound_s <= min(everything) * (1 + 1e-9)
        assert found.seconds <= min(everything) * 1.02


def shuffled_of(devices: list[int], number: int, seed: int) -> list[int]:
    return random.Random(seed).sample(devices, number)


def test_ranks_get_cores_memory_and_adapters_of_their_machine() -> None:
    mesh = Mesh.of({"dp": 2, "tp": 8})
    cpus = {"n0": HostCpus(allowed=tuple(range(64))), "n1": HostCpus()}
    found = solve(mesh, traffic_of(mesh), Cluster(nodes=nodes(2, hgx())), cpus=cpus, most_tries=60)
    for seat in found.seats:
        assert seat.nic == f"mlx5_{seat.gpu}"
        assert seat.numa_node == seat.gpu // 4
        assert seat.cpus
        assert seat.host == "n1" or set(seat.cpus) <= set(range(64))
    assert len({cpu for seat in found.seats if seat.host == "n1" for cpu in seat.cpus}) == 112


@pytest.mark.parametrize(
    ("degrees", "changes", "said"),
    [
        ({"dp": 3, "tp": 8}, {}, "24 ranks are more than the 16 usable GPUs of 2 nodes"),
        ({"dp": 0}, {}, "mesh.dp = 0"),
        ({"dp": 2}, {"failed": frozenset({9})}, "GPU9 is failed or reserved, but it has 8 GPUs"),
    ],
)
def test_what_cannot_be_placed_is_one_sentence(degrees: dict[str, int], changes: dict[str, Any], said: str) -> None:
    one = topology(hgx())
    cluster = Cluster(nodes=(Node(name="a", topology=one, **changes), Node(name="b", topology=one)))
    with pytest.raises(TopologyError) as caught:
        solve(Mesh.of(degrees), [HEAVY[name] for name in degrees], cluster)
    assert said in str(caught.value)


def test_a_damaged_plan_is_one_sentence() -> None:
    mesh = Mesh.of({"tp": 4})
    whole: Placement = solve(mesh, traffic_of(mesh), alone(pcie_box()))
    text = json.dumps(whole.to_json())
    for damaged in (
        "",
        "[]",
        "{}",
        text[:100],
        text.replace('"rank": 1', '"rank": 2'),
        text.replace('"gpu": 1', '"gpu": 0'),
    ):
        with pytest.raises(TopologyError, match="make it again"):
            from_json(damaged, "plan.json")


@pytest.mark.slow
def test_sixteen_thousand_gpus_are_placed() -> None:
    mesh = Mesh.of({"pp": 8, "dp": 256, "tp": 8})
    cluster = scattered(2048, 64, 1600e9, hgx())
    found = solve(mesh, traffic_of(mesh), cluster)
    by_leaf = sorted(range(2048), key=lambda i: (i % 64, i))
    by_hand = [8 * node + gpu for node in by_leaf for gpu in range(8)]
    assert found.seconds <= price_all(mesh, cluster, [by_hand])[0] * (1 + 1e-9)
    assert found.gain > 1.5
    for group in mesh.groups(("tp",)):
        assert len({found.seats[rank].host for rank in group}) == 1
