"""Torchrun over two hosts whose agents are counted in turns: tp stays on its host, also after all have changed places.

Asks for root. Each host runs two agents with one rank, as a scheduler with a task for each GPU does; torchrun sorts
agents by address, so that as launched every pair of tp would be split.
"""

import json
import os
import signal
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from netns import Agents, Host, descendants, hosts, why_not

pytestmark = [pytest.mark.skipif(bool(reason := why_not()), reason=reason), pytest.mark.timeout(600)]

RECIPE = """
name = "pairs"
[run]
num_steps = 12
log_every = 2
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
[mesh]
dp_shard = 2
tp = 2
[strategies.fsdp2]
[strategies.tp]
[strategies.adamw]
[checkpoint]
every = 2
"""
NAMES = ("node10", "node2")


@pytest.fixture
def two() -> Generator[tuple[Host, Host]]:
    with hosts({"node10": (1, 3), "node2": (2, 4)}) as found:
        yield found["node10"], found["node2"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.toml"
    path.write_text(RECIPE)
    return path


def start(two: Sequence[Host], job: Sequence[object], **options: str) -> Agents:
    agents = Agents()
    endpoint = f"{two[0].addresses[0]}:29400"
    for i in (1, 0):  # the wrong order also in time
        for host in reversed(two):
            agents.start(
                host, host.addresses[i], [str(each) for each in job], endpoint=endpoint, num_agents=4, **options
            )
    return agents


def pairs_of(folder: Path) -> list[set[str]]:
    """The hosts of each group along tp."""
    seats = json.loads((folder / "placement.json").read_text())["seats"]
    assert [seat["rank"] for seat in seats] == [0, 1, 2, 3]
    return [{seats[rank]["host"], seats[rank + 1]["host"]} for rank in (0, 2)]


def test_tp_stays_on_its_host_though_agents_are_counted_in_turns(
    two: tuple[Host, Host], recipe: Path, tmp_path: Path
) -> None:
    losses: list[list[float]] = []
    for mode, split in (("rank-order", True), ("auto", False)):
        folder = tmp_path / mode
        ended = start(two, ["run", recipe, "--out", folder, "--placement", mode]).wait(240)
        assert {code for code, _ in ended} == {0}, ended[0][1][-3000:]
        assert [len(pair) == 2 for pair in pairs_of(folder)] == [split, split]
        assert set.union(*pairs_of(folder)) == set(NAMES)
        losses.append([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
    said = "\n".join(out for _, out in ended)
    assert "less communication than as launched, by the model, on node2 (2), node10 (2)" in said
    assert "checked: 4 ranks on their hosts and devices" in said
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_killed_and_started_again_with_the_hosts_swapped_tp_still_does(
    two: tuple[Host, Host], recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = ["run", recipe, "--out", folder, "--set", "run.num_steps=400", "--requeue"]
    agents = start(two, job)
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    agents.kill()
    before = pairs_of(folder)
    saved = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoints/step-*"))
    assert saved >= 2
    job[-2] = f"run.num_steps={saved + 4}"
    ended = start(two[::-1], job).wait(240)
    assert {code for code, _ in ended} == {0}, ended[0][1][-3000:]
    assert "continuing after step" in "\n".join(out for _, out in ended)
    assert [len(pair) for pair in (*before, *pairs_of(folder))] == [1, 1, 1, 1]


def test_a_rank_that_dies_is_started_again_on_the_same_terms(
    two: tuple[Host, Host], recipe: Path, tmp_path: Path
) -> None:
    """The launcher's own restart: the agents live on, and with them the store and what the dead have left in it."""
    folder = tmp_path / "run"
    job = ["run", recipe, "--out", folder, "--set", "run.num_steps=60", "--requeue"]
    agents = start(two, job, max_restarts="2")
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    victim = descendants(agents.running[0].pid)[-1]
    os.kill(victim, signal.SIGKILL)
    ended = agents.wait(300)
    assert {code for code, _ in ended} == {0}, ended[0][1][-3000:]
    assert "continuing after step" in "\n".join(out for _, out in ended)
    assert [len(pair) for pair in pairs_of(folder)] == [1, 1]
