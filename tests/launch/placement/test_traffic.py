"""What a step is said to communicate is what ranks really ask their process groups for."""

import math
from collections import Counter
from typing import Any

import pytest
from counting_group import CALLS, register
from fake_world import on_ranks, plan_of

from stepladder.launch.placement.traffic import mesh_of, traffic_of
from stepladder.launch.topology import Mesh, Pattern, Traffic

LENGTH, MICROBATCH = 64, 2
MODEL: dict[str, Any] = {
    "dim": 64, "num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 128, "vocab_size": 128,
}  # fmt: skip
MOE = {"num_experts": 8, "top_k": 2, "ffn_dim": 64}


def recipe(degrees: dict[str, int], strategies: dict[str, Any]) -> dict[str, Any]:
    needed: dict[str, Any] = {"fsdp2": {}, "adamw": {}}
    needed |= {axis: {} for axis in ("pp", "tp", "cp", "ep") if degrees.get(axis, 1) > 1}
    if degrees.get("pp", 1) > 1:
        needed["accumulation"] = {"num_microbatches": 4}
    return {
        "run": {"device": "cpu"},
        "model": {"decoder": MODEL | ({"moe": MOE} if degrees.get("ep", 1) > 1 else {})},
        "data": {"synthetic": {}},
        "batch": {"microbatch_size": MICROBATCH, "sequence_length": LENGTH},
        "mesh": degrees,
        "strategies": needed | strategies,
    }


def issued(tree: dict[str, Any], num_ranks: int) -> list[tuple[str, tuple[int, ...], int, int | None]]:
    """What this rank asks for in forward and backward of one step."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from stepladder.launch.build import build_program
    from stepladder.launch.ranks import Ranks
    from stepladder.profiling.record import no_span
    from stepladder.strategies.base import Batch

    rank = dist.get_rank()
    dist.destroy_process_group()
    register()
    dist.init_process_group("counting", store=FakeStore(), rank=rank, world_size=num_ranks)
    plan = plan_of(tree, num_ranks)
    program = build_program(plan, Ranks(rank=rank, local_rank=0, num_ranks=num_ranks), torch.device("cpu"))
    tokens = (torch.arange(LENGTH + 1)[None] % MODEL["vocab_size"]).repeat(MICROBATCH, 1)
    batches = [Batch(tokens[:, :-1], tokens[:, 1:])] * program.num_microbatches
    CALLS.clear()
    program.forward_backward(program, batches, 1.0, no_span)
    for finish in program.after_backward:
        finish()
    return [(call.kind, call.ranks, call.num_bytes, call.peer) for call in CALLS]


CASES: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"dp_shard": 2, "tp": 2}, {}),
    ({"dp_shard": 2, "tp": 2}, {"tp": {"sequence_parallel": False}, "accumulation": {"num_microbatches": 2}}),
    ({"dp_shard": 2, "tp": 2}, {"amp": {}, "ac": {}}),
    ({"dp_shard": 2, "tp": 2}, {"fsdp2": {"param_dtype": "bf16"}, "ac": {"mode": "selective", "every": 2}}),
    ({"dp_shard": 2, "tp": 2}, {"tp": {"loss_parallel": False}}),
    ({"dp_shard": 2, "tp": 2}, {"chunked_loss": {}}),
    ({"dp_shard": 2, "cp": 4}, {"ac": {}}),
    ({"dp_shard": 2, "cp": 2, "tp": 2}, {"cp": {"method": "all_gather"}, "amp": {}}),
    ({"dp_shard": 2, "cp": 4}, {"cp": {"balance": "none"}}),
    ({"dp_shard": 2, "ep": 4}, {"ac": {"mode": "selective"}}),
    ({"dp_shard": 2, "ep": 2, "tp": 2}, {"amp": {}}),
    ({"dp_replicate": 2, "dp_shard": 2}, {"accumulation": {"num_microbatches": 3}}),
    ({"dp_replicate": 2, "dp_shard": 2}, {
        "accumulation": {"num_microbatches": 3},
        "fsdp2": {"defer_all_reduce": False, "reshard_after_forward": False, "reduce_dtype": "bf16"},
    }),
    ({"dp_shard": 2}, {"accumulation": {"num_microbatches": 3}, "fsdp2": {"reduce_every_microbatch": False}}),
    ({"dp_replicate": 2}, {"fsdp2": False, "ddp": {}, "accumulation": {"num_microbatches": 2}}),
    ({"dp_replicate": 2, "cp": 2}, {"fsdp2": False, "ddp": {"compression": "bf16"}}),
    ({"pp": 2, "dp_replicate": 2, "dp_shard": 2}, {}),
    ({"pp": 2, "dp_shard": 2, "tp": 2}, {"pp": {"schedule": "interleaved_1f1b"}}),
    ({"pp": 2, "dp_shard": 2, "tp": 2}, {"pp": {"schedule": "zbv"}}),
]  # fmt: skip


def said(case: tuple[dict[str, int], dict[str, Any]]) -> str:
    degrees, strategies = case
    return " ".join(f"{axis}{size}" for axis, size in degrees.items()) + f" {strategies or ''}"


Sums = Counter[tuple[str, tuple[str, ...]]]


def counted(tree: dict[str, Any], mesh: Mesh) -> tuple[Sums, Sums]:
    """Bytes and numbers by kind and axes, of the mean rank along pp and cp, whose ranks differ."""
    along = next((axis for axis in ("cp", "pp") if axis in mesh.names), None)
    ranks = mesh.groups((along,))[0] if along else (0,)
    found: Sums = Counter()
    numbers: Sums = Counter()
    for calls in on_ranks(ranks, mesh.num_ranks, issued, tree, mesh.num_ranks).values():
        for kind, group, num_bytes, _ in calls:
            places = zip(*map(mesh.coordinates, group), strict=True)
            axes = tuple(name for name, at in zip(mesh.names, places, strict=True) if len(set(at)) > 1)
            if num_bytes > 16:  # a pipeline's groups say hello
                found[kind, axes] += num_bytes / len(ranks)
                numbers[kind, axes] += 1 / len(ranks)
    return found, numbers


def modelled(traffic: Traffic, mesh: Mesh, strategies: Any) -> tuple[str, float]:
    """The call in which a traffic is seen, and how many of it there are for each that the model counts."""
    size, kind = mesh.size_of(traffic.axes), str(traffic.pattern)
    if traffic.axes == ("pp",):  # both ways, across every cut but, in a V, the one at its bottom
        stages = 2 if strategies.pp.schedule == "interleaved_1f1b" else 1
        return "send", 2 * (size * stages - 1) / (size * stages)
    if traffic.axes == ("cp",) and traffic.pattern is not Pattern.ALL_GATHER:
        others = (size - 1) / size if traffic.pattern is Pattern.ALL_TO_ALL else 1.0
        return ("send" if strategies.cp.method == "ring" else kind), others
    return kind, 1.0


FAST = (10, 17)
"""Between them every axis but cp; the rest in the slow suite."""


@pytest.mark.parametrize(
    "case",
    [each if i in FAST else pytest.param(each, marks=pytest.mark.slow) for i, each in enumerate(CASES)],
    ids=said,
)
def test_bytes_and_numbers_are_those_that_ranks_ask_for(case: tuple[dict[str, int], dict[str, Any]]) -> None:
    tree, num_ranks = recipe(*case), math.prod(case[0].values())
    plan = plan_of(tree, num_ranks)
    mesh, strategies = mesh_of(plan), plan.recipe.strategies
    found, numbers = counted(tree, mesh)
    expected: Sums = Counter()
    expected_numbers: Sums = Counter()
    for each in traffic_of(plan):
        kind, share = modelled(each, mesh, strategies)
        expected[kind, each.axes] += each.payload_bytes * share
        if kind == "all_to_all":
            share = 1.0
        if kind == "send" and each.pattern is Pattern.ALL_TO_ALL:
            share *= mesh.size_of(each.axes)  # one message to each other rank
            share *= 0.5 if strategies.cp.balance == "none" else 1.0  # late ranks have nothing for early ones
        expected_numbers[kind, each.axes] += each.num_collectives * share
    assert dict(found) == pytest.approx(dict(expected))
    assert dict(numbers) == pytest.approx(dict(expected_numbers))


def test_a_rank_alone_communicates_nothing() -> None:
    plan = plan_of(recipe({}, {"fsdp2": False}), 1)
    assert traffic_of(plan) == ()
    assert mesh_of(plan).num_ranks == 1
