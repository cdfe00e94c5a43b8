"""Whoever the launcher says a worker is, the heavy axis ends up inside a host; what does not fit is a sentence."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fake_world import plan_of
from topology_cases import cube_mesh, hgx, render

from stepladder.launch.placement.reports import Report
from stepladder.launch.placement.seats import Answer, decide
from stepladder.launch.placement.traffic import mesh_of, traffic_of
from stepladder.launch.plan import Plan
from stepladder.launch.topology import Cluster, Node, Placement, read_topology
from stepladder.launch.topology.solve import solve


def plan(**degrees: int) -> Plan:
    num_ranks = 1
    for size in degrees.values():
        num_ranks *= size
    tree: dict[str, Any] = {
        "run": {"device": "cpu"},
        "model": {"decoder": {"dim": 64, "num_layers": 8, "num_heads": 8, "ffn_dim": 128, "vocab_size": 64}},
        "data": {"synthetic": {}},
        "batch": {"microbatch_size": 2, "sequence_length": 64},
        "mesh": degrees,
        "strategies": {"fsdp2": {}, "adamw": {}} | {axis: {} for axis in ("tp", "cp") if axis in degrees},
    }
    return plan_of(tree, num_ranks)


def report(host: str, local_rank: int, *, group: int = 0, machine: Any = None, **more: Any) -> Report:
    own = machine.to_json() if machine is not None and local_rank == 0 else None
    given: dict[str, Any] = {"token": f"{host}{local_rank}", "boot_id": host, "visible": None, "allowed": (0, 1, 2, 3)}
    return Report(host=host, local_rank=local_rank, group=group, machine=own, **(given | more))


def groups_of(answers: Sequence[Answer], size: int) -> list[set[str]]:
    """Hosts of each group of neighbouring ranks."""
    hosts = {answer.rank: answer.seat.host for answer in answers if answer.seat is not None}
    return [{hosts[rank] for rank in range(first, first + size)} for first in range(0, len(hosts), size)]


@pytest.mark.parametrize("seed", range(2))
def test_tp_stays_on_its_host_in_whatever_order_hosts_were_counted(seed: int) -> None:
    hosts = [f"node{i}" for i in range(1, 5)]
    reports = [report(host, i) for host in hosts for i in range(2)]
    random.Random(seed).shuffle(reports)
    answers = decide(plan(dp_shard=4, tp=2), reports, "auto", None)
    assert sorted(answer.rank for answer in answers) == list(range(8))
    assert all(len(each) == 1 for each in groups_of(answers, 2))
    for told, answer in zip(reports, answers, strict=True):
        assert answer.seat is not None
        assert (answer.seat.host, answer.local_rank) == (told.host, told.local_rank)  # nobody has moved


def test_the_placement_is_that_of_the_hosts_not_of_the_launchers_ranks() -> None:
    reports = [report("b", 0), report("a", 0), report("b", 1), report("a", 1)]
    first = decide(plan(dp_shard=2, tp=2), reports, "auto", None)
    again = decide(plan(dp_shard=2, tp=2), reports[::-1], "auto", None)
    assert first == again[::-1]


def test_ranks_that_no_order_makes_faster_stay_as_launched() -> None:
    reports = [report(host, i) for host in ("b", "a") for i in range(2)]
    answers = decide(plan(dp_shard=2, tp=2), reports, "auto", None)
    assert [answer.rank for answer in answers] == [0, 1, 2, 3]
    assert "ranks as launched" in answers[0].said
    scattered = [reports[0], reports[2], reports[1], reports[3]]
    assert [each.rank for each in decide(plan(dp_shard=2, tp=2), scattered, "rank-order", None)] == [0, 1, 2, 3]


def test_pairs_on_a_cube_mesh_get_double_links() -> None:
    machine = read_topology(render(cube_mesh()), "cube")
    answers = decide(plan(dp_shard=4, tp=2), [report("dgx", i, machine=machine) for i in range(8)], "auto", None)
    at = {answer.rank: answer.local_rank for answer in answers}
    assert all(machine.gpu_link(at[rank], at[rank + 1]).num_nvlinks == 2 for rank in range(0, 8, 2))
    assert all(answer.seat is not None and answer.seat.gpu == answer.local_rank for answer in answers)


def test_hidden_devices_get_no_rank() -> None:
    machine = read_topology(render(cube_mesh()), "cube")
    reports = [report("dgx", i, machine=machine, visible="7,6,5,4") for i in range(4)]
    answers = decide(plan(dp_shard=2, tp=2), reports, "auto", None)
    assert {answer.seat.gpu for answer in answers if answer.seat} == {4, 5, 6, 7}
    assert all(answer.seat is not None and answer.seat.gpu == 7 - answer.local_rank for answer in answers)


def test_two_agents_on_a_host_and_two_machines_of_a_name() -> None:
    two_agents = [report("a", 0, group=0), report("b", 0, group=1), report("a", 0, group=2), report("b", 0, group=3)]
    answers = decide(plan(dp_shard=2, tp=2), two_agents, "auto", None)
    assert all(len(each) == 1 for each in groups_of(answers, 2))
    twins = [report("localhost", i // 2, boot_id=f"{i % 2}" * 8) for i in range(4)]
    answers = decide(plan(dp_shard=2, tp=2), twins, "auto", None)
    assert {answer.seat.host for answer in answers if answer.seat} == {"localhost-00000000", "localhost-11111111"}
    assert all(len(each) == 1 for each in groups_of(answers, 2))


def test_cpus_are_those_that_the_workers_of_a_host_may_use_together() -> None:
    machine = read_topology(render(hgx()), "hgx")  # CPUs 0-55 near GPU0 to GPU3, 56-111 near the others
    bound = [report("a", i, machine=machine, allowed=tuple(range(8 * i, 8 * i + 8))) for i in range(4)]
    seats = [answer.seat for answer in decide(plan(dp_shard=2, tp=2), bound, "rank-order", None)]
    assert [seat.cpus for seat in seats if seat is not None] == [tuple(range(8 * i, 8 * i + 8)) for i in range(4)]


def test_adapters_that_are_not_for_training_are_left_out() -> None:
    machine = read_topology(render(hgx(nics=8)), "hgx")
    far = replace(machine.nics[7], device="storage0")
    machine = replace(machine, nics=(*machine.nics[:7], far))
    answers = decide(plan(dp_shard=4, tp=2), [report("a", i, machine=machine) for i in range(8)], "rank-order", None)
    assert answers[0].adapters is None  # every adapter is some GPU's
    few = decide(plan(dp_shard=2, tp=2), [report("a", i, machine=machine) for i in range(4)], "rank-order", None)
    assert few[0].adapters == "=mlx5_0,mlx5_1,mlx5_2,mlx5_3"
    again = Answer.of_value(few[1].to_value())
    assert again == few[1]
    assert again.seat is not None
    assert again.seat.nic == "mlx5_1"


def given(hosts: Sequence[str], run: Plan) -> Placement:
    machine = read_topology(render(hgx()), "hgx")
    nodes = tuple(Node(name=host, topology=machine, reserved=frozenset(range(2, 8))) for host in hosts)
    return solve(mesh_of(run), traffic_of(run), Cluster(nodes=nodes))


def test_a_plan_from_a_file_is_followed_and_one_for_others_is_not() -> None:
    run, machine = plan(dp_shard=2, tp=2), read_topology(render(hgx()), "hgx")
    scattered = [report(host, i, machine=machine) for i in range(2) for host in ("b", "a")]
    answers = decide(run, scattered, "plan.json", given(["a", "b"], run))
    assert all(len(each) == 1 for each in groups_of(answers, 2))
    assert answers[0].said == "placement   as planned in plan.json"
    for wrong, why in (
        (given(["a", "c"], run), "is for the hosts a, c, but this run is on a (2), b (2)"),
        (given(["a", "b"], plan(dp_shard=2, cp=2)), "is for the mesh dp_shard 2 x cp 2, but this run has"),
        (_elsewhere(given(["a", "b"], run), gpu=7), "wants GPU7 of a, which this run does not see"),
    ):
        narrow = [replace(each, visible="0,1") for each in scattered]
        kept = decide(run, narrow, "plan.json", wrong)
        assert [answer.rank for answer in kept] == [0, 1, 2, 3]
        assert why in kept[0].said
        assert kept[0].said.endswith("ranks stay as launched")


def _elsewhere(found: Placement, *, gpu: int) -> Placement:
    first, *rest = found.seats
    return replace(found, seats=(replace(first, gpu=gpu), *rest))


def test_a_plan_for_a_machine_with_other_gpus_is_refused_by_their_uuids() -> None:
    run, machine = plan(dp_shard=2), read_topology(render(hgx()), "hgx")
    here = replace(machine, gpus=tuple(replace(gpu, uuid=f"GPU-{i}{i}") for i, gpu in enumerate(machine.gpus)))
    made = given(["a"], run)
    theirs = replace(made, seats=tuple(replace(seat, uuid="GPU-99") for seat in made.seats))
    kept = decide(run, [report("a", i, machine=here) for i in range(2)], "plan.json", theirs)
    assert "is for another machine: GPU0 of a is GPU-00, not GPU-99" in kept[0].said
    assert kept[0].seat is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"problem": "this machine: neither nvidia-smi nor rocm-smi answers"}, "host a: this machine: neither"),
        ({"visible": "MIG-1,MIG-2"}, "host a: ranks work on parts of GPUs (MIG)"),
        ({"visible": "0"}, "host a: local rank 1 has no GPU, for 1 are visible"),
    ],
)
def test_what_cannot_be_placed_runs_as_launched_and_says_why(changed: dict[str, Any], sentence: str) -> None:
    machine = read_topology(render(hgx()), "hgx")
    reports = [replace(report("a", i, machine=machine), **changed) for i in range(2)]
    answers = decide(plan(dp_shard=2), reports, "auto", None)
    assert sentence in answers[0].said
    assert [(answer.rank, answer.local_rank, answer.seat) for answer in answers] == [(0, 0, None), (1, 1, None)]
