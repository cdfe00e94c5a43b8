"""The guard on real runs of the command, on one and two gloo ranks: equivalents pass, planted errors are found."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guard_plants import Processes

from stepladder.launch.compare.guard import Effort, GuardResult, Tier, check_parity
from stepladder.launch.compare.guard_runs import FreshRuns, RunError, Task
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import parse
from stepladder.launch.schema import Recipe

MODEL = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64, "vocab_size": 256}
EFFORT = Effort(num_steps=6, bias_steps=20, seeds=3)


def recipe(*, mesh: Any = None, loader: Any = None, data: str = "synthetic", **strategies: Any) -> Recipe:
    tree = {
        "run": {"num_steps": 20, "device": "cpu"},
        "model": {"decoder": MODEL},
        "data": {data: {}},
        "batch": {"microbatch_size": 2, "sequence_length": 32},
        "mesh": mesh or {},
        "loader": loader or {},
        "strategies": {"adamw": {"learning_rate": 3e-3}, "clip": {}, "accumulation": {}} | strategies,
    }
    return parse(tree, {})


def guard(folder: Path, baseline: Recipe, arm: Recipe, *, ranks: int, plant: str = "none") -> GuardResult:
    plan = partial(make_plan, num_gpus=0, num_ranks=ranks, started=True)
    return check_parity(baseline, arm, run=Processes(folder, ranks, plant), effort=EFFORT, plan=plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "tier"),
    [
        ({"ddp": {"bucket_mib": 1}}, Tier.BITWISE),
        ({"ddp": {"overlap": False, "gradient_as_bucket_view": False}}, Tier.BITWISE),
        ({"ddp": {}, "ac": {"mode": "full", "every": 2}}, Tier.BITWISE),
        ({"ddp": {}, "data": "stdlib", "loader": {"num_workers": 1, "prefetch_factor": 3}}, Tier.BITWISE),
        ({"fsdp2": {}}, Tier.FLOAT32),
        ({"ddp": {}, "adamw": {"learning_rate": 3e-3, "implementation": "for-loop"}}, Tier.FLOAT32),
        ({"ddp": {}, "compile": {}}, Tier.FLOAT32),
        ({"ddp": {}, "amp": {}}, Tier.BIAS),
    ],
    ids=["bucket", "no overlap", "ac", "loader workers", "fsdp2", "for-loop AdamW", "compile", "bf16"],
)
def test_what_is_equivalent_passes_on_two_ranks(tmp_path: Path, changed: dict[str, Any], tier: Tier) -> None:
    baseline = recipe(ddp={}, data=changed.get("data", "synthetic"))
    found = guard(tmp_path, baseline, recipe(**changed), ranks=2)
    assert (found.tier, found.passed) == (tier, True), found.sentence


@pytest.mark.slow
def test_a_sharded_model_keeps_its_bits_when_only_the_time_of_gathers_changes(tmp_path: Path) -> None:
    arm = recipe(fsdp2={"reshard_after_forward": False, "prefetch": 0})
    found = guard(tmp_path, recipe(fsdp2={}), arm, ranks=2)
    assert (found.tier, found.passed) == (Tier.BITWISE, True), found.sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"tp": 2}, {"cp": 2}, {"pp": 2}], ids=["sliced matrices", "split sequences", "stages"]
)
def test_another_mesh_is_the_same_training_at_float32(tmp_path: Path, mesh: dict[str, int]) -> None:
    (axis,) = mesh
    strategies: dict[str, Any] = {axis: {}} | ({"fsdp2": {}} if axis == "cp" else {})
    samples = {"accumulation": {"num_microbatches": 4}}  # of both data ranks of the baseline
    arm = recipe(mesh=mesh, **strategies, **samples)
    found = guard(tmp_path, recipe(ddp={}), arm, ranks=2)
    assert (found.tier, found.passed) == (Tier.FLOAT32, True), found.sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [
        "learning_rate",
        "dropped_microbatch",
        "dropped_gradient",
        "wrong_loss_scale",
        "skipped_all_reduce",
        "without_causal_mask",
        "stale_weight_once",
    ],
)
@pytest.mark.parametrize("changed", [{"ddp": {"bucket_mib": 1}}, {"ddp": {}, "chunked_loss": {}}], ids=str)
def test_an_error_planted_in_the_ranks_of_the_arm_is_found(tmp_path: Path, plant: str, changed: Any) -> None:
    found = guard(tmp_path, recipe(ddp={}), recipe(**changed), ranks=2, plant=plant)
    assert found.checked, found.sentence
    assert not found.passed
    if plant == "skipped_all_reduce":
        assert "weights that differ between ranks" in found.sentence


@pytest.mark.slow
def test_fresh_runs_go_through_the_command_and_are_made_once(tmp_path: Path) -> None:
    runs = FreshRuns(folder=tmp_path)
    task = Task(recipe=recipe(), num_steps=3, role="baseline")
    first = runs(task)
    assert len(first.losses) == 3
    (folder,) = tmp_path.iterdir()
    (folder / "recipe.toml").unlink()
    assert runs(task) == first
    assert not (folder / "recipe.toml").exists()


@pytest.mark.slow
def test_a_run_that_cannot_be_says_why_and_where(tmp_path: Path) -> None:
    task = Task(recipe=recipe(), num_steps=0, role="arm")
    with pytest.raises(RunError, match=r"a run of the arm failed .*--stop-after 0"):
        FreshRuns(folder=tmp_path)(task)
