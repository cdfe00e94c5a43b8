import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch import recipe as recipes
from stepladder.launch.compare.arms import Arm
from stepladder.launch.compare.process import Ended, end_tree, run_recipe
from stepladder.launch.compare.segment import Measured, Steps, failure_of, judge_times, measured_recipe, run_segment
from stepladder.launch.instruments import StepTimes
from stepladder.launch.plan import make_plan

STEPS = Steps(window=5, max_warmup=15)


def ended(output: str = "", *, code: int | None = 1, reason: str | None = None) -> Ended:
    return Ended(code=code, seconds=12.0, started_at=100.0, reason=reason, output=output)


def times(step_s: list[float], losses: list[float] | None = None) -> StepTimes:
    return StepTimes(
        step_s=tuple(step_s),
        losses=tuple(losses or [1.0] * len(step_s)),
        began_at=103.0,
        memory_gib=1.0,
        waited_s=0.0,
        num_ranks=2,
        device="cpu",
        tokens_per_step=100,
        flops_per_token=3e9,
        peak_flops=1e12,
    )


@pytest.fixture
def arm(tiny: Path) -> Arm:
    return Arm(name="arm", plan=make_plan(recipes.read(str(tiny)), num_gpus=0))


def test_a_segment_trains_the_recipe_without_what_is_not_a_step(tiny: Path) -> None:
    extra = ["evaluation.every=2", "checkpoint.every=2", "profiler.skip_first=1"]
    recipe = recipes.read(str(tiny), extra)
    short = measured_recipe(recipe, num_steps=5, keep_log_every=False)
    assert (short.evaluation, short.checkpoint, short.profiler) == (None, None, None)
    assert short.run.num_steps == recipe.run.num_steps  # schedules see the length that the recipe has
    assert short.run.log_every > 5
    long = measured_recipe(recipe, num_steps=60, keep_log_every=True)
    assert (long.run.num_steps, long.run.log_every) == (60, 1)
    kept = dataclasses.replace(long, run=recipe.run, name=recipe.name)
    assert recipes.diff(kept, dataclasses.replace(recipe, evaluation=None, checkpoint=None, profiler=None)) == []


def test_a_signal_that_ended_a_run_is_named_beside_its_last_line() -> None:
    assert failure_of(ended("step 1/8", code=-11)) == ("crash", "ended by SIGSEGV; its last line: step 1/8")
    several = "rank 1 exitcode: -6\n traceback : Signal 6 (SIGABRT) received by PID 9"
    assert failure_of(ended(several))[1].startswith("ended by SIGABRT; its last line: traceback")
    assert failure_of(ended("", code=-50))[1] == "ended by signal 50; it said nothing"


@pytest.mark.parametrize(
    ("output", "code", "kind"),
    [
        ("step 1\nerror: rank 0: out of memory (CUDA out of memory. Tried ...); use a smaller", 1, "out of memory"),
        ("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2 GiB", 1, "out of memory"),
        ("worker Signal 9 (SIGKILL) received by PID 12", 1, "out of memory"),
        ("", -9, "out of memory"),
        ("Traceback ...\nValueError: what", 1, "crash"),
        ("step 1", -11, "crash"),
        ("error: strategies.pp: needs two ranks", 2, "refused"),
        ("error: no such data", 66, "refused"),
        ("step 3/8", None, "timeout"),
    ],
)
def test_a_failure_has_a_kind_and_a_reason(output: str, code: int | None, kind: str) -> None:
    found, reason = failure_of(ended(output, code=code))
    assert found == kind
    assert reason
    assert not reason.startswith("error:")


def test_times_become_a_median_a_start_and_a_time_of_compilation(arm: Arm) -> None:
    found = judge_times(arm, ended(code=0), times([7.0] + [1.0] * 19), STEPS)
    assert found.segment is not None
    assert found.segment.median_s == 1.0
    assert found.startup_s == 3.0
    assert found.compile_s == 6.0
    assert found.failure is None
    assert found.times is not None
    assert found.times.mfu(1.0) == 100 * 3e9 / (2 * 1e12)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_a_failure_with_its_step(arm: Arm, loss: float) -> None:
    found = judge_times(arm, ended(code=0), times([1.0] * 20, [1.0, 2.0, loss] + [1.0] * 17), STEPS)
    assert found.failure == "loss not finite"
    assert "step 3" in (found.reason or "")


def test_a_segment_survives_json(arm: Arm) -> None:
    for found in (
        judge_times(arm, ended(code=0), times([2.0] * 20), STEPS),
        judge_times(arm, ended("boom"), None, STEPS),
    ):
        assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_real_segment_leaves_times_and_losses_of_every_step(arm: Arm, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    found = run_segment(arm, folder, Steps(window=5, max_warmup=12))
    assert found.failure is None, found.reason
    assert found.times is not None
    assert found.segment is not None
    assert len(found.times.step_s) == len(found.times.losses) == 17
    assert min(found.times.step_s) > 0
    assert found.startup_s is not None
    assert 0 < found.startup_s < found.seconds
    assert sum(found.times.step_s) < found.seconds - found.startup_s
    logged = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in logged] == [1, 17]  # nobody waited for the device in between
    assert [each["loss"] for each in logged] == [found.times.losses[0], found.times.losses[-1]]


def test_a_refused_segment_is_a_result_and_a_second_one_takes_its_folder(arm: Arm, tmp_path: Path) -> None:
    plan = dataclasses.replace(arm.plan, recipe=recipes.read("demo", ["strategies.schedule.warmup_steps=5000"]))
    broken = dataclasses.replace(arm, plan=plan)
    for _ in range(2):
        found = run_segment(broken, tmp_path / "one", STEPS)
        assert found.failure == "refused"
        assert "warmup_steps" in (found.reason or "")


def test_a_run_whose_time_is_up_leaves_no_process(arm: Arm, tmp_path: Path) -> None:
    found = run_recipe(arm.recipe, tmp_path / "one", num_ranks=1, timeout_s=0.5)
    assert found.code is None
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path) in command_line(pid)]


def test_the_end_of_a_tree_reaches_children_in_sessions_of_their_own() -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    child += "start_new_session=True); print('there', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    grandchildren = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(grandchildren) == 1
    end_tree(process.pid)
    assert process.wait(10) == -signal.SIGKILL
    assert eventually(lambda: state(grandchildren[0]) in ("", "Z"))


def eventually(holds: Callable[[], bool]) -> bool:
    for _ in range(200):
        if holds():
            return True
        time.sleep(0.05)
    return False


def state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def command_line(pid: str) -> Any:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
