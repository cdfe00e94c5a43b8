"""The guard on real runs of the command, on one and two gloo ranks: equivalents pass, planted errors are found."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guard_plants import PLANTS, InProcess, Processes

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


BASELINE: dict[str, Any] = {"ddp": {}}
EQUIVALENTS: dict[str, tuple[dict[str, Any], dict[str, Any], Tier]] = {
    "bucket": (BASELINE, {"ddp": {"bucket_mib": 1}}, Tier.BITWISE),
    "no overlap": (BASELINE, {"ddp": {"overlap": False, "gradient_as_bucket_view": False}}, Tier.BITWISE),
    "ac": (BASELINE, {"ddp": {}, "ac": {"every": 2}}, Tier.BITWISE),
    "prefetch": ({"fsdp2": {}}, {"fsdp2": {"reshard_after_forward": False, "prefetch": 0}}, Tier.BITWISE),
    "shards": (BASELINE, {"fsdp2": {}}, Tier.FLOAT32),
    "optimizer in backward": (
        {"fsdp2": {}, "clip": False, "accumulation": False},
        {"fsdp2": {}, "clip": False, "accumulation": False, "optimizer_in_backward": {}},
        Tier.BITWISE,
    ),
    "for-loop AdamW": (
        BASELINE,
        {"ddp": {}, "adamw": {"learning_rate": 3e-3, "implementation": "for-loop"}},
        Tier.FLOAT32,
    ),
    "slices": (BASELINE, {"mesh": {"tp": 2}, "tp": {}, "accumulation": {"num_microbatches": 4}}, Tier.FLOAT32),
    "stages": (BASELINE, {"mesh": {"pp": 2}, "pp": {}, "accumulation": {"num_microbatches": 4}}, Tier.FLOAT32),
    "parts of sequences": (
        BASELINE,
        {"mesh": {"cp": 2}, "cp": {}, "fsdp2": {}, "accumulation": {"num_microbatches": 4}},
        Tier.FLOAT32,
    ),
    "bf16": (BASELINE, {"ddp": {}, "amp": {}}, Tier.BIAS),
}
CHANGED: tuple[dict[str, Any], ...] = ({"ddp": {"bucket_mib": 1}}, {"ddp": {}, "chunked_loss": {}})


def told(baseline: dict[str, Any], changed: dict[str, Any], plant: str = "none") -> tuple[str, bool, str]:
    """On every rank: what the guard says."""
    plan = partial(make_plan, num_gpus=0, num_ranks=2, started=True)
    run = InProcess(PLANTS[plant])
    found = check_parity(recipe(**baseline), recipe(**changed), run=run, effort=EFFORT, plan=plan)
    return found.tier, found.passed, found.sentence


def of_equivalents() -> dict[str, tuple[str, bool, str]]:
    return {name: told(baseline, changed) for name, (baseline, changed, _) in EQUIVALENTS.items()}


def of_errors() -> dict[tuple[str, int], tuple[str, bool, str]]:
    return {(name, i): told(BASELINE, changed, name) for name in PLANTS for i, changed in enumerate(CHANGED)}


@pytest.mark.slow
def test_what_is_equivalent_on_two_ranks_passes_in_the_tier_that_it_promises(run_ranks: Any) -> None:
    found = run_ranks(of_equivalents, 2)
    wrong = {name: each for name, each in found.items() if each[:2] != (EQUIVALENTS[name][2], True)}
    assert not wrong


@pytest.mark.slow
def test_an_error_planted_in_the_arm_on_two_ranks_is_found(run_ranks: Any) -> None:
    found = run_ranks(of_errors, 2)
    wrong = {key: each for key, each in found.items() if each[1] != (key[0] == "none")}
    assert not wrong
    assert all("weights that differ between ranks" in found["skipped_all_reduce", i][2] for i in range(len(CHANGED)))


def guard(folder: Path, baseline: Recipe, arm: Recipe, *, ranks: int, plant: str = "none") -> GuardResult:
    plan = partial(make_plan, num_gpus=0, num_ranks=ranks, started=True)
    return check_parity(baseline, arm, run=Processes(folder, ranks, plant), effort=EFFORT, plan=plan)


@pytest.mark.slow
def test_compiled_blocks_are_the_same_training_at_float32(tmp_path: Path) -> None:
    found = guard(tmp_path, recipe(), recipe(compile={}), ranks=1)
    assert (found.tier, found.passed) == (Tier.FLOAT32, True), found.sentence


@pytest.mark.slow
def test_loader_workers_hand_over_the_same_bits(tmp_path: Path) -> None:
    arm = recipe(data="stdlib", loader={"num_workers": 1, "prefetch_factor": 3})
    found = guard(tmp_path, recipe(data="stdlib"), arm, ranks=1)
    assert (found.tier, found.passed) == (Tier.BITWISE, True), found.sentence


@pytest.mark.slow
def test_an_error_in_processes_of_their_own_is_found(tmp_path: Path) -> None:
    found = guard(tmp_path, recipe(ddp={}), recipe(ddp={"bucket_mib": 1}), ranks=2, plant="skipped_all_reduce")
    assert not found.passed
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
