"""The tutorials: their files are written, their commands run, and a migration is as short as it says."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
TUTORIALS = sorted(path.name for path in FOLDER.glob("*.md"))
MAX_CHANGED_LINES = 20


def files(name: str) -> dict[str, str]:
    """Files of a tutorial: fenced blocks below a line with nothing but a name."""
    found = re.findall(
        r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```", (FOLDER / name).read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return dict(found)


def commands(name: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", (FOLDER / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def ran(name: str, folder: Path) -> list[tuple[str, str]]:
    """(command, output) of each command, in a folder with the tutorial's files."""
    for file, text in files(name).items():
        (folder / file).write_text(text)
    python = f"'{sys.executable}' -P -m"
    shell = f'stepladder() {{ {python} stepladder "$@"; }}\ntorchrun() {{ {python} torch.distributed.run "$@"; }}\n'
    shell += f"python() {{ '{sys.executable}' \"$@\"; }}\n"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    said: list[tuple[str, str]] = []
    for command in commands(name):
        done = subprocess.run(
            ["bash", "-c", shell + command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        said.append((command, done.stdout))
    return said


def final_losses(said: list[tuple[str, str]]) -> dict[str, float]:
    """Loss that each command printed last."""
    return {
        command: float(found[-1]) for command, text in said if (found := re.findall(r"(?<!out )loss +(\d+\.\d+)", text))
    }


def test_there_are_tutorials_with_files_and_commands() -> None:
    assert TUTORIALS == ["migrating.md", "own_module.md", "transformers.md"]
    for name in TUTORIALS:
        assert files(name), name
        assert commands(name), name
        for file, text in files(name).items():
            if file.endswith(".py"):
                compile(text, file, "exec")


def test_a_script_is_migrated_in_fewer_than_twenty_changed_lines() -> None:
    before, after = (files("migrating.md")[name].splitlines() for name in ("train_ddp.py", "train.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]

    assert len(before) >= 60
    assert 0 < len(changed) < MAX_CHANGED_LINES
    assert any("DistributedDataParallel" in line for line in changed)


@pytest.mark.slow
def test_a_migrated_script_prints_the_same_losses(tmp_path: Path) -> None:
    said = ran("migrating.md", tmp_path)

    epochs = [re.findall(r"loss (\S+)", text) for command, text in said if "torchrun" in command]
    assert len(epochs) == 4
    assert len(epochs[0]) == 3
    assert float(epochs[0][2]) < 0.9 * float(epochs[0][0])
    for printed in epochs[1:]:
        assert [float(each) for each in printed] == pytest.approx([float(each) for each in epochs[0]], abs=2e-4)
    assert "forward" in said[-1][1] or "compute" in said[-1][1]


@pytest.mark.slow
def test_the_commands_of_your_own_module_run(tmp_path: Path) -> None:
    said = ran("own_module.md", tmp_path)

    losses = final_losses(said[:4])
    assert len(losses) == 3
    assert max(losses.values()) - min(losses.values()) < 1e-3
    assert "continuing after step 40" in said[-1][1]


@pytest.mark.slow
def test_the_commands_of_a_model_of_hugging_face_run(tmp_path: Path) -> None:
    losses = final_losses(ran("transformers.md", tmp_path))

    sharded, compiled, sliced = (losses[command] for command in losses if "qwen.toml" in command)
    assert compiled == pytest.approx(sharded, abs=1e-3)
    assert sliced > 0
    assert len(losses) == 4
