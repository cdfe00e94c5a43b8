"""Pods on a node see some of its GPUs each; together they are one machine, and each gets a device that it sees."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fake_world import plan_of
from topology_cases import hgx, render

from stepladder.launch.placement.reports import Report
from stepladder.launch.placement.seats import Answer, decide
from stepladder.launch.placement.traffic import mesh_of, traffic_of
from stepladder.launch.placement.views import whole_of
from stepladder.launch.plan import Plan
from stepladder.launch.topology import Cluster, Node, Placement, Topology, TopologyError, read_topology
from stepladder.launch.topology.placement import Seat
from stepladder.launch.topology.solve import solve


def plan(**degrees: int) -> Plan:
    tree: dict[str, Any] = {
        "run": {"device": "cpu"},
        "model": {"decoder": {"dim": 64, "num_layers": 4, "num_heads": 8, "ffn_dim": 128, "vocab_size": 64}},
        "data": {"synthetic": {}},
        "batch": {"microbatch_size": 2, "sequence_length": 64},
        "mesh": degrees,
        "strategies": {"fsdp2": {}, "adamw": {}} | ({"tp": {}} if "tp" in degrees else {}),
    }
    return plan_of(tree, math.prod(degrees.values()))


def machine(name: str = "a") -> Topology:
    read = read_topology(render(hgx(nics=8)), "hgx")
    gpus = tuple(replace(gpu, uuid=f"GPU-{name}{7 - i}", bus_id=f"0000:{i}0:00.0") for i, gpu in enumerate(read.gpus))
    return replace(read, gpus=gpus)


def part(whole: Topology, gpus: Sequence[int], nics: Sequence[int] = ()) -> Topology:
    """What a pod sees that has those GPUs, in that order: numbered from 0."""
    own = [*gpus, *(len(whole.gpus) + nic for nic in nics)]
    return replace(
        whole,
        gpus=tuple(replace(whole.gpus[at], index=i) for i, at in enumerate(gpus)),
        nics=tuple(replace(whole.nics[at], name=f"NIC{i}") for i, at in enumerate(nics)),
        links=tuple(tuple(whole.links[i][j] for j in own) for i in own),
    )


def pod(host: str, number: int, sees: Topology, size: int = 1, **more: Any) -> list[Report]:
    """The reports of its ranks."""
    given: dict[str, Any] = {"boot_id": host, "group": number, "visible": None, "allowed": (0, 1, 2, 3)}
    return [Report(token=f"{host} {number} {i}", host=host, local_rank=i, machine=None if i else sees.to_json(),
                   **(given | more)) for i in range(size)]  # fmt: skip


def device(answer: Answer, report: Report, reports: Sequence[Report]) -> str:
    """The UUID of the GPU that a worker has, by what its own pod says."""
    first = next(each for each in reports if (each.group, each.local_rank) == (report.group, 0))
    assert first.machine is not None
    return first.machine["gpus"][answer.local_rank]["uuid"]


def test_parts_that_see_every_pair_together_are_the_machine() -> None:
    whole = machine()
    pairs = list(itertools.combinations(range(8), 2))
    for seed in range(3):
        random.Random(seed).shuffle(pairs)
        seen = [part(whole, random.Random(seed).sample(pair, 2), range(8)) for pair in pairs]
        found = whole_of("a", seen)
        assert found.topology.gpus == whole.gpus
        assert found.topology.links == whole.links
        assert found.topology.nics == whole.nics
        for each, positions in zip(seen, found.positions, strict=True):
            assert [gpu.uuid for gpu in each.gpus] == [whole.gpus[at].uuid for at in positions]


def test_what_nobody_sees_is_slower_than_what_somebody_sees() -> None:
    found = whole_of("a", [part(machine(), (0, 1)), part(machine(), (2, 5))]).topology
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-a7", "GPU-a6", "GPU-a5", "GPU-a2"]
    labels = [[link.label for link in row] for row in found.links]
    assert labels == [["X", "NV18", "NODE", "SYS"], ["NV18", "X", "NODE", "SYS"],
                      ["NODE", "NODE", "X", "NV18"], ["SYS", "SYS", "NV18", "X"]]  # fmt: skip


def test_two_pods_of_a_node_with_a_gpu_each_are_seated() -> None:
    reports = [*pod("a", 0, part(machine(), [3])), *pod("a", 1, part(machine(), [6]))]
    answers = decide(plan(dp_shard=2), reports, "auto", None)
    assert [(each.rank, each.local_rank, each.seat and each.seat.uuid) for each in answers] == [
        (0, 0, "GPU-a4"),
        (1, 0, "GPU-a1"),
    ]
    shared = [*pod("a", 0, part(machine(), [3])), *pod("a", 1, part(machine(), [3]))]
    assert "host a: two ranks have one GPU" in decide(plan(dp_shard=2), shared, "auto", None)[0].said


@pytest.mark.parametrize("seed", range(3))
def test_tp_stays_in_its_pod_in_whatever_order_pods_were_counted(seed: int) -> None:
    """Two nodes with two pods each, of two GPUs: only within a pod there is NVLink."""
    pods = [(host, cut) for host in ("a", "b") for cut in ((0, 5), (2, 3))]
    random.Random(seed).shuffle(pods)
    reports = [each for i, (host, cut) in enumerate(pods) for each in pod(host, i, part(machine(host), cut), 2)]
    random.Random(seed).shuffle(reports)
    answers = decide(plan(dp_shard=4, tp=2), reports, "auto", None)
    by_rank = {answer.rank: report for answer, report in zip(answers, reports, strict=True)}
    assert sorted(by_rank) == list(range(8))
    assert all(by_rank[rank].group == by_rank[rank + 1].group for rank in range(0, 8, 2))
    for answer, report in zip(answers, reports, strict=True):
        assert answer.seat is not None
        assert (answer.seat.host, answer.seat.uuid) == (report.host, device(answer, report, reports))
    again = decide(plan(dp_shard=4, tp=2), reports[::-1], "auto", None)[::-1]
    assert [answer.seat and answer.seat.uuid for answer in again] == [each.seat and each.seat.uuid for each in answers]


def test_a_pod_is_told_of_its_own_adapters_alone() -> None:
    reports = [*pod("a", 0, part(machine(), [0], [0, 1])), *pod("a", 1, part(machine(), [6], [6]))]
    assert [each.adapters for each in decide(plan(dp_shard=2), reports, "auto", None)] == ["=mlx5_0", None]


def planned(whole: Topology, gpus: Sequence[int]) -> Placement:
    run = plan(dp_shard=2)
    node = Node(name="a", topology=whole, reserved=frozenset(range(8)) - set(gpus))
    return solve(mesh_of(run), traffic_of(run), Cluster(nodes=(node,)))


def test_a_plan_for_the_node_finds_its_gpus_in_pods_by_uuid() -> None:
    reports = [*pod("a", 0, part(machine(), [6])), *pod("a", 1, part(machine(), [3]))]
    answers = decide(plan(dp_shard=2), reports, "plan.json", planned(machine(), [3, 6]))
    assert [(each.rank, each.local_rank, each.seat and each.seat.gpu) for each in answers] == [(1, 0, 6), (0, 0, 3)]
    for theirs, why in (
        (planned(machine(), [3, 4]), "wants GPU4 of a, which this run does not see"),
        (planned(read_topology(render(hgx()), "hgx"), [3, 6]), "only a UUID could tell which is GPU3"),
    ):
        kept = decide(plan(dp_shard=2), reports, "plan.json", theirs)
        assert why in kept[0].said
        assert [each.rank for each in kept] == [0, 1]


def test_parts_without_uuids_are_told_apart_by_their_bus_or_not_at_all() -> None:
    whole = machine()
    by_bus = replace(whole, gpus=tuple(replace(gpu, uuid=None) for gpu in whole.gpus))
    nothing = replace(
        whole, gpus=tuple(replace(gpu, uuid=None, bus_id=None, cpus=(i,)) for i, gpu in enumerate(whole.gpus))
    )
    found = decide(plan(dp_shard=2), [*pod("a", 0, part(by_bus, [6])), *pod("a", 1, part(by_bus, [3]))], "auto", None)
    assert [each.seat and each.seat.gpu for each in found] == [1, 0]
    with pytest.raises(TopologyError, match="host a: its workers see different GPUs without UUIDs"):
        whole_of("a", [part(nothing, [0]), part(nothing, [1])])


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_is_followed_if_and_only_if_some_way_to_hand_its_gpus_out_is_seen(seed: int) -> None:
    """Compared with all ways."""
    draw, size, whole = random.Random(seed), 4, machine()
    while True:
        visible = [draw.sample(range(6), draw.randint(i + 1, 5)) for i in range(size)]
        if len({each[i] for i, each in enumerate(visible)}) == size:
            break
    wanted = draw.sample(range(6), size)
    reports = [replace(each, visible=",".join(map(str, visible[i]))) for i, each in enumerate(pod("a", 0, whole, size))]
    made = planned(whole, [0, 1])
    run = plan(dp_shard=size)
    seats = tuple(Seat(rank=rank, host="a", gpu=gpu) for rank, gpu in enumerate(wanted))
    answers = decide(run, reports, "plan.json", replace(made, mesh=mesh_of(run), seats=seats))
    ways = [way for way in itertools.permutations(wanted) if all(way[i] in visible[i] for i in range(size))]
    if not ways:
        assert "does not see" in answers[0].said
        assert [(each.rank, each.local_rank) for each in answers] == [(i, i) for i in range(size)]
        return
    assert sorted(each.rank for each in answers) == list(range(size))
    for i, each in enumerate(answers):
        assert each.seat is not None
        assert visible[i][each.local_rank] == each.seat.gpu == wanted[each.rank]


def test_a_host_of_a_plan_is_no_line_of_its_own() -> None:
    made = planned(machine(), [0, 1])
    evil = replace(made, seats=tuple(replace(seat, host="\x1b[31mEVIL\x1b[0m\nerror: run") for seat in made.seats))
    said = decide(plan(dp_shard=2), pod("a", 0, machine(), 2), "plan.json", evil)[0].said
    assert "is for the hosts ?[31mEVIL?[0m?error: run, but this run is on a (2)" in said
    assert said.isprintable()
