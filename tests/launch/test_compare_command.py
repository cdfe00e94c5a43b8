"""The command: what it refuses, and real comparisons of tiny recipes, one of them killed in the middle."""

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
from sleepy import install_sleepy

from stepladder.launch.cli import main
from stepladder.launch.errors import ExitCode

Write = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
ARM = "half=batch.microbatch_size=2,strategies.accumulation.num_microbatches=2"
SMALL = ("--pairs", "4", "--calibration-pairs", "4", "--window-steps", "10", "--window-seconds", "0", "--no-guard")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Exit code and what was complained of."""
    code = main(["compare", *map(str, arguments)])
    return code, capsys.readouterr().err.splitlines()


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines = said(
        capsys, tiny, "--arm", "a=run.seed=3", "--arm", "b", "--arm", "c=strategies.acc={}", "--pairs", 2, "--resume"
    )
    assert code == ExitCode.USAGE
    assert len(lines) == 5
    whole = "\n".join(lines)
    assert "--resume: continue which comparison?" in whole
    assert "--arm b: not of the form NAME=a.b=value" in whole
    assert "--pairs 2: too few for any verdict" in whole
    assert "arm c: --set: strategies.acc: unknown key" in whole
    assert "arm a: run.seed: 0 -> 3 changes what is trained" in whole
    assert not (tmp_path / "comparisons").exists()


def test_a_recipe_without_an_arm_is_nothing_to_compare(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (line,) = said(capsys, tiny)
    assert code == ExitCode.USAGE
    assert line == "error: arms: there is nothing to compare the recipe with; add --arm NAME=a.b=value"


def test_resuming_what_is_not_there_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, (line,) = said(capsys, tiny, "--arm", ARM, "--resume", "--out", tmp_path / "none")
    assert code == ExitCode.USAGE
    assert "holds no comparison" in line


def test_options_replace_what_an_experiment_file_says(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    experiment = tmp_path / "experiment.toml"
    experiment.write_text('recipe = "tiny.toml"\npairs = 8\nwindow_steps = 2\n[arms.none]\nrun.log_every = 1\n')
    code, lines = said(capsys, experiment, "--pairs", 3)
    assert code == ExitCode.USAGE
    assert lines == [
        "error: --pairs 3: too few for any verdict; allow 4 at least, 16 by default",
        "error: --window-steps 2: too few for a median; measure 5 at least, 20 by default",
        "error: arm none: differs from the baseline in nothing; change a key, or remove it",
    ]


def test_the_command_loads_no_torch_before_it_measures() -> None:
    code = "import sys; from stepladder.launch.cli import main; main(['compare', 'demo', '--arm', 'a=run.seed=1']); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def comparison(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def sleepy(tmp_path: Path) -> dict[str, str]:
    """Environment in which `strategies.sleep.ms` makes every step longer by a known time."""
    return install_sleepy(tmp_path / "plugin")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_planted_delay_is_found_and_an_equal_arm_is_not(
    tiny: Path, sleepy: dict[str, str], stepladder: Any, tmp_path: Path
) -> None:
    """Steps of 40 ms, of which most is a sleep, so that a busy machine disturbs them little; 10 % more is found."""
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "stepladder", "compare", str(tiny), "--set", "strategies.sleep.ms=40"]
    command += ["--arm", "slower=strategies.sleep.ms=60", "--arm", "equal=run.gc_every=99", "--pairs", "6"]
    command += ["--calibration-pairs", "4", "--window-seconds", "0.5", "--no-guard", "--out", str(out), "--json", "-"]
    done = subprocess.run(
        command, env=os.environ | sleepy, capture_output=True, text=True, timeout=2900, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    arms = {arm["name"]: arm for arm in told["arms"]}
    assert arms["slower"]["verdict"]["kind"] == "slower"
    assert arms["equal"]["verdict"]["kind"] in ("same", "undecided")
    assert arms["slower"]["step_s"] > 0.055
    assert arms["slower"]["why"]["sentence"]
    assert "x [" not in done.stderr  # no multiplier without the guard
    assert {key: value for key, value in comparison(out).items() if key in told} == told


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_killed_comparison_goes_on_and_loses_the_running_segment_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "stepladder", "compare", str(tiny), "--arm", ARM, *SMALL, "--no-profile"]
    command += ["--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)

    def finished() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (out / "segments").glob("[a-z]*.json")}

    def wait(num: int) -> None:
        while len(finished()) < num or not any(
            (path / "run" / ".lock").exists()
            for path in (out / "segments").iterdir()
            if path.is_dir() and f"{path.name}.json" not in finished()
        ):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)

    wait(4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = finished()
    process = subprocess.Popen([*command, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    wait(7)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, complaints
    assert f"stopped; to go on: stepladder compare {tiny}" in complaints.decode()
    more = finished()
    done = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, timeout=2000, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole = finished()
    assert kept.items() <= more.items() <= whole.items()  # nothing was measured twice
    assert len(whole) == 2 + 2 * 4 + 2 * 4
    assert comparison(out)["num_pairs"] == 4
