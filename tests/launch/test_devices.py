"""What is asked about the GPUs of a machine, and when."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.devices import compute_capability

RECIPE = """
[run]
num_steps = 2
[model.decoder]
dim = 32
num_layers = 2
ffn_dim = 64
[data.synthetic]
[batch]
microbatch_size = 1
sequence_length = 32
[strategies.adamw]
[strategies.amp]
"""


def answering(folder: Path, script: str) -> str:
    """A search path on which the driver's tool is this script."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 9.0", (9, 0)),
        ("echo 9.0; echo 8.6; echo 12.0", (8, 6)),  # all GPUs of a run do the same, so the least capable one counts
        ("echo 10.0", (10, 0)),
        ("echo '[N/A]'", None),
        ("echo 9.0; exit 9", None),
        ("true", None),
    ],
)
def test_the_least_capable_gpu_counts_and_no_answer_is_none(
    script: str, expected: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", answering(tmp_path, script))
    assert compute_capability() == expected


def test_a_machine_without_a_driver_has_no_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compute_capability() is None


@pytest.mark.parametrize(("fp8", "asked"), [("", 0), ("[strategies.fp8]\n", 1)])
def test_the_driver_is_asked_for_fp8_only(
    fp8: str, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stepladder.launch import cli, devices

    calls: list[int] = []
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE + fp8)
    monkeypatch.setattr(devices, "count_gpus", lambda: 1)
    monkeypatch.setattr(devices, "compute_capability", lambda: calls.append(1) or (8, 0))
    code = cli.main(["check", str(recipe)])
    assert len(calls) == asked
    assert code == (2 if asked else 0)
    said = capsys.readouterr().err
    assert ("compute capability 8.9, and these have 8.0; remove strategies.fp8" in said) == bool(asked)


def test_fp8_on_a_cpu_says_how_it_can_be_had(stepladder: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE + "[strategies.fp8]\n")
    done = stepladder("check", recipe, "--set", "run.device='cpu'")
    assert done.returncode == 2
    assert "emulate = false: cannot work beside device cpu" in done.stderr
    assert (
        stepladder("check", recipe, "--set", "run.device='cpu'", "--set", "strategies.fp8.emulate=true").returncode == 0
    )
