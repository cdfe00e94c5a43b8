"""Real runs on image shards, killed in the middle and resumed on other ranks: who saw which sample in which step."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from image_shards import numbered_shards

from stepladder.trainer.data.order import permutation

STEPS, GLOBAL_BATCH, SAMPLES = 20, 8, 52
RECIPE = f"""
name = "seen"

[run]
num_steps = {STEPS}
log_every = 1
seed = 11
device = "cpu"

[model.module]
file = "model.py"
takes = "images"

[data.shards]
paths = ["shards/*.tar"]
image_size = 8
held_out_paths = ["held/*.tar"]

[checkpoint]
every = 3

[strategies.adamw]
"""
MODEL = """
import os, time
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def loss(output, batch):
    name = f"{os.environ['SEEN']}-{os.environ.get('RANK', '0')}-{os.getpid()}"
    with open(name, "a") as file:
        file.write(" ".join(map(str, batch.labels.tolist())) + "\\n")
    time.sleep(float(os.environ["PACE_S"]))
    return (output ** 2).sum()
"""


def arguments(ranks: int, *more: str) -> list[str]:
    keys = [f"run.cpu_ranks={ranks}", f"batch.microbatch_size={GLOBAL_BATCH // ranks}", "loader.num_workers=4"]
    keys += ["strategies.ddp={}"] if ranks > 1 else []
    return ["run", "seen.toml", "--out", "run", *(part for key in keys for part in ("--set", key)), *more]


def seen(folder: Path, name: str) -> list[list[int]]:
    """Labels of each step, all ranks in their order."""
    ranks = sorted(folder.glob(f"{name}-*"), key=lambda path: int(path.name.split("-")[1]))
    lines = [[[int(each) for each in line.split()] for line in path.read_text().splitlines()] for path in ranks]
    return [[label for rank in step for label in rank] for step in zip(*lines, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_killed_run_resumed_on_other_ranks_sees_every_sample_exactly_once(
    tmp_path: Path, stepladder: Callable[..., "subprocess.CompletedProcess[str]"], ranks: int
) -> None:
    """Four workers on each of two ranks at first; fewer shards than readers."""
    numbered_shards(tmp_path / "shards", [20, 0, 32], ending="png")
    numbered_shards(tmp_path / "held", [8], ending="png")
    (tmp_path / "seen.toml").write_text(RECIPE)
    (tmp_path / "model.py").write_text(MODEL)

    begun = subprocess.Popen(
        [sys.executable, "-P", "-m", "stepladder", *arguments(2)],
        cwd=tmp_path,
        env=os.environ | {"SEEN": "first", "PACE_S": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end_s = time.monotonic() + 200
    while len(seen(tmp_path, "first")) < 8 and time.monotonic() < end_s and begun.poll() is None:
        time.sleep(0.05)
    for path in tmp_path.glob("first-*"):
        os.kill(int(path.name.split("-")[2]), signal.SIGKILL)
    said, _ = begun.communicate(timeout=100)
    assert begun.returncode != 0, said

    resumed = stepladder(*arguments(ranks, "--resume"), cwd=tmp_path, SEEN="second", PACE_S="0")
    assert resumed.returncode == 0, resumed.stderr + resumed.stdout
    (first_step,) = (int(each) for each in re.findall(r"continuing after step (\d+)", resumed.stdout))
    assert 0 < first_step < STEPS

    whole = seen(tmp_path, "first")[:first_step] + seen(tmp_path, "second")
    order = [label for epoch in range(4) for label in permutation(SAMPLES, 11, epoch).tolist()]
    assert whole == [order[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH] for step in range(STEPS)]
    flat = [label for step in whole for label in step]
    assert sorted(flat[:SAMPLES]) == sorted(flat[SAMPLES : 2 * SAMPLES]) == list(range(SAMPLES))
