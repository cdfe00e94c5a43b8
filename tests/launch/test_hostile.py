"""What an adversary tried: each ends in a sentence and the right code, and leaves nothing that was not there."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "batch.microbatch_size=1000000000000000000000"], "at most 64 bits"),
        (["--set", "run.threads_per_rank=1000000000000"], "must be less than 4097"),
        (["--set", f"model.decoder.vocab_size=1{'0' * 400}"], "at most 64 bits"),
        (["--set", "name='../../escape'"], "begins the run folder's name"),
        (["--set", 'name="a\\u0000b"'], "begins the run folder's name"),
        (["--set", "name=''"], "begins the run folder's name"),
        (["--set", f"name={LONG}"], "begins the run folder's name"),
        (["--ranks", "-1"], "--ranks -1: a run needs at least 1 rank"),
        (["--ranks", "0"], "--ranks 0: a run needs at least 1 rank"),
    ],
)
def test_values_beyond_sense(arguments: list[str], said: str, tiny: Path, stepladder: Any) -> None:
    answer = stepladder("check", str(tiny), *arguments)

    assert answer.returncode == 2
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ""])
def test_names_that_no_file_can_have(name: str, capsys: pytest.CaptureFixture[str], recipe_file: Any) -> None:
    from stepladder.launch.cli import main

    assert main(["check", name]) == 2
    extended = recipe_file(f"extends = {name!r}\n" if "\0" not in name else 'extends = "a\\u0000b"\n', alone=True)
    assert main(["check", str(extended)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "abc", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "5", "WORLD_SIZE": "1"},
        {"RANK": "-1", "WORLD_SIZE": "1"},
    ],
)
def test_an_environment_that_no_launcher_has_made(
    environment: dict[str, str], tiny: Path, stepladder: Any, tmp_path: Path
) -> None:
    answer = stepladder("run", str(tiny), cwd=tmp_path, **environment)

    assert answer.returncode == 2
    assert answer.stderr.startswith("error: environment RANK = ")
    assert len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_more_ranks_than_gpus_under_torchrun(tiny: Path, stepladder: Any, tmp_path: Path) -> None:
    answer = stepladder("run", str(tiny), "--set", "run.device=cuda", cwd=tmp_path, RANK="0", WORLD_SIZE="1")

    assert answer.returncode == 2
    assert "ranks: 1 were started on" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_resume_into_another_model_is_refused(tiny: Path, stepladder: Any, tmp_path: Path) -> None:
    keep = ["--out", "run", "--set", "checkpoint={}", "--set"]
    assert stepladder("run", str(tiny), *keep, "run.num_steps=2", cwd=tmp_path).returncode == 0
    for change in ("model.decoder.num_layers=1", "model.decoder.rope_theta=500.0"):
        answer = stepladder("run", str(tiny), *keep, "run.num_steps=4", "--set", change, "--resume", cwd=tmp_path)

        assert answer.returncode == 66, answer.stderr
        assert f"was trained with {change.split('=')[0]} = " in answer.stderr


def test_a_folder_that_another_run_holds(tiny: Path, stepladder: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    held = os.open(tmp_path / "run" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        answer = stepladder("run", str(tiny), "--out", "run", cwd=tmp_path)
    finally:
        os.close(held)

    assert answer.returncode == 2
    assert "another run is writing there" in answer.stderr
    assert stepladder("run", str(tiny), "--out", "run", cwd=tmp_path).returncode == 0


def test_out_of_memory_is_a_sentence(tiny: Path, stepladder: Any, tmp_path: Path) -> None:
    answer = stepladder("run", str(tiny), "--set", "batch.sequence_length=1000000000000", cwd=tmp_path)

    assert answer.returncode == 1
    assert "out of memory" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_refused_run_leaves_the_users_own_folders(
    recipe_file: Callable[..., Path], stepladder: Any, tmp_path: Path
) -> None:
    recipe = recipe_file("[strategies.ac]\nmode = 'selective'\nsave = ['aten.nonsense']\n")
    (tmp_path / "mine").mkdir()

    assert stepladder("run", str(recipe), "--out", "mine", cwd=tmp_path).returncode == 2

    assert list((tmp_path / "mine").iterdir()) == []


def test_a_loss_that_is_not_finite_is_told(tiny: Path, stepladder: Any, tmp_path: Path) -> None:
    answer = stepladder("run", str(tiny), "--set", "strategies.adamw.learning_rate=1e30", cwd=tmp_path)

    assert "warning: the loss is not finite" in answer.stdout
