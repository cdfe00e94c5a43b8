"""The GPU benchmark without a GPU: its motions on a CPU, its refusals, and its arithmetic."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import parse

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script as a module, its neighbour importable as for a script."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("gpu_parallel", FOLDER / "gpu_parallel.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(FOLDER / "gpu_parallel.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )


def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = call()
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no GPU on this machine" in done.stderr


@pytest.mark.slow
def test_a_dry_run_trains_each_arm_and_leaves_out_what_needs_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = call("--dry-run", "--rounds", "1", "--arms", "bf16,fp8 rowwise,cuda graph", "--out", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("verdict: dry run on a CPU, no measurement: 2 arms ran; all losses within 5% of BF16")
    assert last.endswith("left out: cuda graph")
    found = json.loads(file.read_text())
    assert "there are no CUDA graphs without a GPU" in found["left_out"]["cuda graph"]
    assert found["figures"]["bf16"]["loss"] != found["figures"]["fp8 rowwise"]["loss"]
    assert len(found["turns"]["bf16"][0]["step_ms"]) == 2
    assert found["verdict"] == last


def test_every_arm_is_a_sound_recipe_on_a_machine_that_has_everything(bench: ModuleType) -> None:
    for arm in bench.arms():
        recipe = parse(bench.recipe_of(arm, bench.FULL), {})
        plan = make_plan(recipe, num_gpus=1, num_ranks=1, capability=(10, 0))
        assert plan.device_type == "cuda"
        assert 0.5e9 < plan.facts.num_parameters < 1e9
        assert arm.versus in {each.name for each in bench.arms()}


def test_no_turn_begins_that_would_not_end_in_time(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bench, "refused", lambda arm, size, folder: "")

    def take_turn(arm: Any, size: Any, folder: Path, timeout_s: float) -> dict[str, Any]:
        now[0] += 60
        return {"step_ms": [1.0], "memory_gib": 1.0, "loss": 1.0, "wall_s": 60.0}

    monkeypatch.setattr(bench, "take_turn", take_turn)
    chosen = bench.arms()[:3]
    turns, left_out = bench.measure(chosen, bench.FULL, 2, 60 * 5 + 1)
    assert now[0] <= 60 * 5 + 1
    assert {name: len(each) for name, each in turns.items()} == {
        arm.name: n for arm, n in zip(chosen, (1, 2, 2), strict=True)
    }
    assert "turn 2: no time (1 s were left)" in left_out[chosen[0].name]
    turns, left_out = bench.measure(chosen, bench.FULL, 1, now[0] + bench.FIRST_TURN_S - 1)
    assert list(left_out) == [arm.name for arm in chosen]


def test_the_core_takes_its_second_turn_first_in_another_order(bench: ModuleType) -> None:
    order = [arm.name for arm in bench.schedule(bench.arms(), 2)]
    count = len(bench.arms())
    second = order[count:]
    assert sorted(order[:count]) == sorted(second)
    assert set(second[:4]) == bench.core()
    assert second[0] != order[0]


def figures(step_ms: float, loss: float) -> dict[str, Any]:
    return {"step_ms": step_ms, "loss": loss, "memory_gib": 1.0, "tokens_per_s": 1.0}


def test_the_verdict_compares_speeds_and_losses(bench: ModuleType) -> None:
    found = {"bf16": figures(20, 4.0), "bf16 compiled": figures(10, 4.01), "fp8 tensorwise": figures(8, 4.02)}
    line, is_well = bench.verdict(found, {}, [], bench.FULL)
    assert is_well
    assert "fp8 tensorwise 1.25x; fastest fp8 tensorwise 1.25x; all losses within 5% of BF16" in line
    line, is_well = bench.verdict(found | {"fp8 rowwise": figures(5, 5.0)}, {}, [], bench.FULL)
    assert not is_well
    assert "losses off by more than 5%: fp8 rowwise" in line
    line, is_well = bench.verdict(found, {"ac full": "no time"}, ["cuda graph"], bench.FULL)
    assert not is_well
    assert line.endswith("failed: cuda graph; left out: ac full")


def test_a_run_that_fails_leaves_its_reason(bench: ModuleType, tmp_path: Path) -> None:
    broken = bench.Arm(name="broken", strategies={"no_such": {}})
    turn = bench.take_turn(broken, bench.TINY, tmp_path, 60)
    assert "no_such" in turn["failed"]
    assert "no_such" in bench.refused(broken, bench.TINY, tmp_path)
