"""A real Slurm: two nodes learn what one process learns, a cancelled job keeps its steps, a requeued one goes on."""

import json
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from slurm_cluster import Slurm, slurm, why_not

pytestmark = [pytest.mark.skipif(bool(reason := why_not()), reason=reason), pytest.mark.timeout(600)]

RECIPE = """
name = "queued"
[run]
num_steps = 8
log_every = 1
device = "cpu"
[model.decoder]
dim = 32
num_layers = 2
num_heads = 4
ffn_dim = 64
vocab_size = 64
[data.synthetic]
[batch]
microbatch_size = 4
sequence_length = 32
[strategies.ddp]
[strategies.adamw]
[checkpoint]
every = 100000
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "queued.toml"
    path.write_text(RECIPE)
    return path


def stepladder(*words: object) -> list[str]:
    return [sys.executable, "-P", "-m", "stepladder", *map(str, words)]


def submit(cluster: Slurm, recipe: Path, folder: Path, *more: object) -> str:
    said = cluster.ask(*stepladder("run", recipe, "--slurm", "--nodes", 2, "--out", folder, *more))
    assert said.startswith("job ")
    return said.split()[1]


def losses(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def log(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.parent.glob(f"{folder.name}.slurm-*.log"))


def wait_for_steps(cluster: Slurm, job: str, folder: Path, number: int) -> None:
    deadline = time.monotonic() + 200
    while len(losses(folder)) < number:
        assert time.monotonic() < deadline, f"{cluster.state(job)}\n{log(folder)}"
        time.sleep(0.2)


def test_two_nodes_with_a_rank_each_learn_what_one_process_learns(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    job = submit(cluster, recipe, tmp_path / "two")
    assert cluster.wait(job) == "COMPLETED", log(tmp_path / "two")
    alone = stepladder("run", recipe, "--out", tmp_path / "one", "--set", "strategies.ddp=false")
    subprocess.run([*alone, "--set", "batch.microbatch_size=8"], check=True, capture_output=True)
    assert len(losses(tmp_path / "two")) == 8
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert "on node1 (1), node2 (1)" in log(tmp_path / "two")


def test_a_cancelled_job_leaves_a_checkpoint(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, recipe, folder, "--set", "run.num_steps=100000")
    wait_for_steps(cluster, job, folder, 3)
    cluster.ask("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    deadline = time.monotonic() + 60
    while not (folder / "exit.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    ended = json.loads((folder / "exit.json").read_text())
    assert ended["code"] == 143, log(folder)
    assert [path.name for path in folder.glob("checkpoints/step-*")] == [f"step-{ended['steps']:06d}"]


def test_a_job_whose_time_is_nearly_up_is_queued_again_and_goes_on(
    cluster: Slurm, recipe: Path, tmp_path: Path
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    job = submit(cluster, recipe, folder, "--set", "run.num_steps=150")
    wait_for_steps(cluster, job, folder, 3)
    cluster.ask("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 does at that time
    deadline = time.monotonic() + 120
    while "continuing after step" not in log(folder):
        assert time.monotonic() < deadline, f"{cluster.state(job)}\n{log(folder)}"
        time.sleep(0.5)
    assert cluster.wait(job, 400) == "COMPLETED", log(folder)
    assert json.loads((folder / "exit.json").read_text()) == {"code": 0, "steps": 150, "reason": "done"}
    again = submit(cluster, recipe, whole, "--set", "run.num_steps=150")
    assert cluster.wait(again, 400) == "COMPLETED"
    assert losses(folder) == losses(whole)
