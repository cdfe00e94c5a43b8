"""Every recipe that is shipped can be built, and each rung of the ladder changes one thing."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from stepladder.launch import recipe as recipes
from stepladder.launch.build import build_program
from stepladder.launch.plan import Plan, make_plan
from stepladder.launch.ranks import Ranks
from stepladder.strategies.assemble import apply_all
from stepladder.strategies.base import Program
from stepladder.strategies.clip import measure_norm
from stepladder.strategies.materialise import build_on_meta
from stepladder.strategies.mesh import build_mesh
from stepladder.strategies.names import canonical_names
from stepladder.trainer.models.decoder import next_token_loss
from stepladder.trainer.step import accumulate

SHIPPED = sorted(recipes.shipped())
LADDER = sorted(name for name in SHIPPED if name.startswith("llama3_8b"))
ONE_NODE = [name for name in SHIPPED if (recipes.read(name).mesh.required_ranks([]) or 1) <= 8]
"""The others are built in `parallel/test_recipes.py`."""


def plan_for_its_machine(name: str) -> Plan:
    """The plan on as many devices as the recipe was written for."""
    recipe = recipes.read(name)
    world = recipe.mesh.required_ranks([]) or recipe.run.cpu_ranks
    return make_plan(recipe, num_gpus=world if recipe.run.device == "cuda" else 0)


def test_there_are_recipes_to_look_at() -> None:
    assert len(SHIPPED) >= 3
    assert len(LADDER) >= 3
    assert {"demo", "synthetic", "llama3_8b"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_checks_clean_where_there_is_no_gpu(name: str, stepladder: Any) -> None:
    done = stepladder("check", name)

    assert (done.returncode, done.stderr) == (0, "")
    assert "no problems" in done.stdout


@pytest.mark.parametrize("name", SHIPPED)
def test_its_model_has_the_parameters_that_its_facts_promise(name: str) -> None:
    recipe = recipes.read(name)
    model = build_on_meta(recipe.model.chosen.build)
    facts = recipe.model.chosen.facts(recipe.batch.sequence_length)

    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == facts.num_parameters
    assert all(model.get_submodule(block) is not None for block in facts.blocks)


def apply_on_a_fake_world(name: str) -> dict[str, Any]:
    """All strategies of a recipe on the meta device, as rank 0 of a world that does not exist."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    plan = plan_for_its_machine(name)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=plan.num_ranks)
    try:
        # The device's own mesh would need the device; the strategies are handed everything else as it would be.
        run = plan.run()
        run = replace(run, mesh=build_mesh("cpu", plan.degrees), device=torch.device("cpu"))
        program = Program(
            model=build_on_meta(plan.recipe.model.chosen.build),
            facts=plan.facts,
            loss=next_token_loss,
            forward_backward=accumulate,
            clip_gradients=measure_norm,
        )
        names = canonical_names(program.model)
        program = apply_all(program, plan.recipe.strategies, run)
        parameters = list(program.model.parameters())
        return {
            "world": dist.get_world_size(),
            "same names": canonical_names(program.model) == names,
            "all on meta": all(parameter.is_meta for parameter in parameters),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "own part": sum(getattr(p, "_local_tensor", p).numel() for p in parameters),
            "optimizer": program.make_optimizer is not None,
        }
    finally:
        dist.destroy_process_group()


def fake_worlds(names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: apply_on_a_fake_world(name) for name in names}


def is_ddp(name: str) -> bool:
    return recipes.read(name).strategies.ddp is not None


def test_all_its_strategies_apply_in_its_world() -> None:
    """In a process of its own: a process has one default group, and the other tests may want it."""
    names = [name for name in ONE_NODE if not is_ddp(name)]
    assert len(names) >= 4
    script = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('t', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"print(json.dumps(module.fake_worlds({names!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        plan = plan_for_its_machine(name)
        assert found["world"] == plan.num_ranks, name
        assert found["same names"], name
        assert found["all on meta"], name
        assert found["optimizer"], name
        assert found["parameters"] == plan.facts.num_parameters, name
        if plan.recipe.strategies.fsdp2:
            assert found["world"] == 8
            assert found["own part"] == plan.facts.num_parameters // 8, name  # every dimension divides by 8


def built_with_ddp(name: str) -> tuple[bool, int]:
    """DDP compares real weights, and its reducer does not run on a fake group: so on real ranks."""
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    plan = make_plan(recipes.read(name), num_gpus=0, num_ranks=world, started=True)
    program = build_program(plan, Ranks(rank=rank, local_rank=rank, num_ranks=world), torch.device("cpu"))
    return isinstance(program.model, torch.nn.parallel.DistributedDataParallel), sum(
        p.numel() for p in program.model.parameters()
    )


@pytest.mark.parametrize("name", [name for name in SHIPPED if is_ddp(name)])
def test_a_replicated_recipe_is_built_on_its_ranks(name: str, run_ranks: Any) -> None:
    plan = plan_for_its_machine(name)
    assert plan.num_ranks == 2

    wrapped, num_parameters = run_ranks(built_with_ddp, 2, name)

    assert wrapped
    assert num_parameters == plan.facts.num_parameters


@pytest.mark.parametrize("name", [name for name in LADDER if name != "llama3_8b"])
def test_a_rung_differs_from_the_one_below_in_one_table(name: str) -> None:
    path = recipes.shipped()[name]
    base = next(line for line in path.read_text().splitlines() if line.startswith("extends")).split('"')[1]
    assert base.removesuffix(".toml") in LADDER

    changed = recipes.diff(recipes.read(base.removesuffix(".toml")), recipes.read(name))

    assert changed
    assert len({line.partition(":")[0].split(".")[1] for line in changed}) == 1, changed
    assert all(line.startswith("strategies.") for line in changed)


def test_the_rungs_form_one_ladder() -> None:
    """Each is the base of the next, so that a measurement of one compares with the one before."""
    bases = [
        next((line.split('"')[1] for line in recipes.shipped()[name].read_text().splitlines() if "extends" in line), "")
        for name in LADDER
    ]
    assert bases == ["", *(f"{name}.toml" for name in LADDER[:-1])]


def test_llama_3_8b_has_the_published_size_and_the_flops_of_the_formula() -> None:
    """Grattafiori et al. 2024, Table 3; the parameter count is that of the released checkpoint."""
    plan = plan_for_its_machine("llama3_8b")
    dim, layers, heads, kv_heads, ffn, vocab, length = 4096, 32, 32, 8, 14336, 128256, 8192
    head = dim // heads
    matrices = 2 * dim * dim + 2 * dim * kv_heads * head + 3 * dim * ffn  # q, o; k, v; gate, up, down
    norms = 2 * layers * dim + dim

    assert plan.facts.num_parameters == layers * matrices + norms + 2 * vocab * dim == 8_030_261_248
    # 6 FLOPs for each multiplying parameter; attention: 2 products of [T, head] by [head, T], 2 FLOPs, 3 passes.
    expected = 6 * (layers * matrices + vocab * dim) + layers * heads * 12 * head * length
    assert plan.facts.flops_per_token == expected
    assert plan.tokens_per_step == 65_536
