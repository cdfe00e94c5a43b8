"""A whole training step on ranks of worlds of 64 to 1,024: shapes and groups fit, nothing raises, nobody waits.

The collectives of a fake world return garbage, so that no value is looked at; whether values are right is the matter of
the small worlds.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fake_world import local, on_ranks, plan_of

from stepladder.launch.build import build_program
from stepladder.launch.ranks import Ranks
from stepladder.profiling.record import no_span
from stepladder.strategies.base import Batch
from stepladder.strategies.mesh import Axis

pytestmark = pytest.mark.timeout(900)  # several fake ranks, each of which builds a large model
LENGTH = 64
DENSE: dict[str, Any] = {
    "dim": 64,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 8,
    "ffn_dim": 128,
    "vocab_size": 64,
}
MOE: dict[str, Any] = DENSE | {"num_layers": 2, "moe": {"num_experts": 16, "top_k": 2, "ffn_dim": 64}}


@dataclass(frozen=True, kw_only=True)
class World:
    degrees: dict[str, int]
    strategies: dict[str, Any] = field(default_factory=dict[str, Any])
    model: dict[str, Any] = field(default_factory=lambda: DENSE)
    num_microbatches: int = 1

    @property
    def size(self) -> int:
        product = 1
        for degree in self.degrees.values():
            product *= degree
        return product

    def recipe(self) -> dict[str, Any]:
        strategies: dict[str, Any] = {"fsdp2": {}, "adamw": {}, "clip": {}}
        strategies |= {axis: {} for axis in ("pp", "tp", "cp", "ep") if self.degrees.get(axis, 1) > 1}
        if self.num_microbatches > 1:
            strategies["accumulation"] = {"num_microbatches": self.num_microbatches}
        return {
            "run": {"device": "cpu"},
            "model": {"decoder": self.model},
            "data": {"synthetic": {}},
            "batch": {"microbatch_size": 1, "sequence_length": LENGTH},
            "mesh": self.degrees,
            "strategies": strategies | self.strategies,
        }


WORLDS = [
    World(degrees={"dp_shard": 64}),
    World(degrees={"dp_replicate": 16, "dp_shard": 64}),
    World(degrees={"dp_shard": 16, "tp": 8}, strategies={"ac": {"mode": "selective"}}),
    World(degrees={"dp_shard": 8, "cp": 16}),
    World(degrees={"dp_replicate": 4, "dp_shard": 4, "cp": 4, "tp": 4}, strategies={"ac": {}}),
    World(degrees={"pp": 8, "dp_shard": 8}, num_microbatches=8),
    World(degrees={"pp": 4, "dp_shard": 16, "tp": 8}, num_microbatches=4),
    World(degrees={"pp": 2, "dp_replicate": 2, "dp_shard": 8, "cp": 4, "tp": 8}, num_microbatches=2),
    World(degrees={"dp_shard": 16, "ep": 8}, model=MOE),
    World(degrees={"dp_replicate": 2, "dp_shard": 8, "ep": 8, "tp": 8}, model=MOE),
    World(degrees={"pp": 2, "dp_shard": 4, "cp": 2, "ep": 8, "tp": 8}, model=MOE, num_microbatches=2),
    World(degrees={"dp_shard": 64}, strategies={"clip": False, "optimizer_in_backward": {}}),
]


def said(world: World) -> str:
    return f"{world.size}: " + " x ".join(f"{axis} {degree}" for axis, degree in world.degrees.items())


def step(world: World) -> dict[str, Any]:
    """One training step of this rank: forward, backward, clip, optimizer; then what it holds."""
    import torch.distributed as dist

    rank = dist.get_rank()
    plan = plan_of(world.recipe(), world.size)
    program = build_program(plan, Ranks(rank=rank, local_rank=0, num_ranks=world.size), torch.device("cpu"))
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tokens = torch.arange(LENGTH + 1)[None] % plan.recipe.model.chosen.vocab_size
    batches = [Batch(tokens[:, :-1], tokens[:, 1:])] * program.num_microbatches
    loss = program.forward_backward(program, batches, 1.0, no_span)
    for finish in program.after_backward:
        finish()
    held = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            assert local(grad).shape == local(parameter).shape
            assert local(grad).dtype == local(parameter).dtype
            held[id(parameter)] = grad
    norm = program.clip_gradients(program, parameters, want_norm=True)
    program.loss_scaling.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    for follow in program.after_step:
        follow()
    assert all(parameter.grad is None for parameter in parameters)
    return {
        "loss": tuple(loss.shape),
        "norm": None if norm is None else tuple(norm.shape),
        "without gradient": len(parameters) - len(held),
        "without state": sum(parameter not in optimizer.state for parameter in parameters),
        "elements": sum(local(parameter).numel() for parameter in parameters),
    }


@pytest.mark.parametrize("world", WORLDS, ids=said)
def test_ranks_of_a_large_world_take_a_step(world: World) -> None:
    found = on_ranks([0, world.size // 2 + 1, world.size - 1], world.size, step, world)
    in_backward = "optimizer_in_backward" in world.strategies
    for rank, each in found.items():
        assert each["loss"] == (), f"rank {rank}"
        assert each["norm"] == (None if in_backward else ()), f"rank {rank}"
        assert each["without state"] == 0, f"rank {rank}"
        assert each["elements"] > 0, f"rank {rank}"
        if not in_backward:
            assert each["without gradient"] == 0, f"rank {rank}"


def test_the_worlds_cover_every_axis_from_64_to_1024_ranks() -> None:
    assert {axis for world in WORLDS for axis in world.degrees} == {str(axis) for axis in Axis}
    assert {min(world.size for world in WORLDS), max(world.size for world in WORLDS)} == {64, 1024}
