"""What only torch can refuse, and what the data are too short for: one sentence, code 2, no folder left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_operator_that_torch_does_not_have(
    ranks: int, recipe_file: Callable[..., Path], stepladder: Any, tmp_path: Path
) -> None:
    ddp = "[strategies.ddp]\n" if ranks > 1 else ""
    recipe = recipe_file(f"{ddp}[strategies.ac]\nmode = 'selective'\nsave = ['aten.nonsense']\n")

    answer = stepladder("run", str(recipe), "--ranks", str(ranks), cwd=tmp_path)

    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "strategies.ac.save = 'aten.nonsense'" in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_a_held_out_part_shorter_than_one_microbatch_on_each_rank(
    recipe_file: Callable[..., Path], stepladder: Any, tmp_path: Path
) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"{i} " * 40)
    text = recipe_file().read_text().replace("[data.synthetic]", "[data.files]\npaths = ['*.txt']\nheld_out = 0.1")
    text = text.replace("vocab_size = 64", "vocab_size = 256").replace("sequence_length = 32", "sequence_length = 128")
    recipe = recipe_file(text + "[evaluation]\n", alone=True)

    short = stepladder("run", str(recipe), "--set", "batch.microbatch_size=64", cwd=tmp_path)
    enough = stepladder("run", str(recipe), "--set", "batch.microbatch_size=2", "--out", "enough", cwd=tmp_path)

    assert short.returncode == 2
    assert "held_out part" in short.stderr
    assert "64 sequences" in short.stderr
    assert not (tmp_path / "runs").exists()
    assert enough.returncode == 0, enough.stderr
    lines = [json.loads(line) for line in (tmp_path / "enough" / "metrics.jsonl").read_text().splitlines()]
    # Far fewer than the 16 microbatches that the recipe asks for: each sample once, none twice.
    assert 0 < lines[-1]["num_tokens"] < 16 * 2 * 128


def test_settings_without_effect_on_a_cpu(recipe_file: Callable[..., Path], stepladder: Any) -> None:
    recipe = recipe_file("[strategies.compile]\nmode = 'reduce-overhead'\n[loader]\npin_memory = true\n")

    answer = stepladder("check", str(recipe))

    assert answer.returncode == 2
    assert "loader.pin_memory: has no effect" in answer.stderr
    assert "strategies.compile.mode = 'reduce-overhead'" in answer.stderr
    assert len(answer.stderr.splitlines()) == 2
