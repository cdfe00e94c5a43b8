"""Recipes for many nodes are built at their full size: on several ranks of a fake world, without a single weight."""

from typing import Any

import pytest
from fake_world import local, on_meta, on_ranks

from stepladder.launch import recipe as recipes
from stepladder.launch.plan import Plan, make_plan
from stepladder.strategies.materialise import build_on_meta
from stepladder.strategies.mesh import Axis
from stepladder.strategies.names import canonical

pytestmark = pytest.mark.timeout(900)  # several fake ranks, each of which builds a large model
WORLDS = {name: recipes.read(name).mesh.required_ranks([]) or 1 for name in sorted(recipes.shipped())}
LARGE = {name: world for name, world in WORLDS.items() if world > 8}
PUBLISHED = {"llama3_70b": 70_553_706_496, "llama3_405b": 405_853_388_800, "mixtral_8x22b": 140_620_634_112}
"""Parameters of the released checkpoints."""


def plan_of(name: str) -> Plan:
    return make_plan(recipes.read(name), num_gpus=8, num_ranks=WORLDS[name], started=True, capability=(9, 0))


def test_there_are_recipes_of_all_sizes() -> None:
    assert len(LARGE) >= 6
    assert set(LARGE.values()) >= {64, 256, 512, 16384}
    used = {axis for name in LARGE for axis, degree in plan_of(name).degrees.items() if degree > 1}
    assert used == set(Axis)


@pytest.mark.parametrize("name", LARGE)
def test_the_model_has_the_published_size(name: str) -> None:
    (published,) = [size for prefix, size in PUBLISHED.items() if name.startswith(prefix)]
    assert plan_of(name).facts.num_parameters == published


def built(name: str) -> dict[str, Any]:
    """What this rank holds: the parameters' names and shapes, and the elements of its parts."""
    plan = plan_of(name)
    program = on_meta(plan)
    assert program.make_optimizer is not None
    parameters = {canonical(path): parameter for path, parameter in program.model.named_parameters()}
    assert all(parameter.is_meta for parameter in parameters.values())
    return {
        "shapes": {path: tuple(parameter.shape) for path, parameter in parameters.items()},
        "elements": sum(local(parameter).numel() for parameter in parameters.values()),
        "microbatches": program.num_microbatches,
        "optimizer": len(program.make_optimizer(program.model).param_groups),
    }


@pytest.mark.parametrize("name", LARGE)
def test_ranks_all_over_its_world_are_built_and_its_stages_are_the_model(name: str) -> None:
    plan, world = plan_of(name), LARGE[name]
    whole = {path: tuple(p.shape) for path, p in build_on_meta(plan.recipe.model.chosen.build).named_parameters()}
    num_stages = plan.degrees[Axis.PP]
    all_stages = [stage * world // num_stages for stage in range(num_stages)] if num_stages <= 8 else []
    found = on_ranks([0, world // 2 + 1, world - 1, *all_stages], world, built, name)

    if all_stages:
        held = [path for rank in all_stages for path in found[rank]["shapes"]]
        assert sorted(held) == sorted(whole), "every parameter is on exactly one stage"
    share = plan.facts.num_parameters / world * plan.degrees[Axis.DP_REPLICATE]
    for rank, each in found.items():
        assert each["shapes"].items() <= whole.items(), f"rank {rank}"
        assert each["optimizer"] >= 1
        assert each["microbatches"] == plan.recipe.num_microbatches
        # Stages differ by a block or two, and by embedding and head; within a stage, slices and shards are equal.
        assert 0.75 * share < each["elements"] < 1.25 * share, f"rank {rank}"
