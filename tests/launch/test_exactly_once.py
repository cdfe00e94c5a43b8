"""An epoch that is killed, and goes on with other ranks and workers, has every sample once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from stepladder.trainer.checkpoint.manager import last_checkpoint
from stepladder.trainer.data.pack.job import pack
from stepladder.trainer.data.pack.parts import Packing

NUM_SAMPLES, LENGTH, SAMPLES_PER_STEP = 320, 8, 8

RECORDER = """
import json, os, time
from dataclasses import dataclass, replace
from typing import ClassVar
from stepladder.strategies.changes import Changes, MayChange
from stepladder.strategies.wins import Wins

@dataclass(frozen=True, kw_only=True)
class Record:
    folder: str = ""
    ms: float = 0.0
    after: ClassVar[str] = "clip"
    conflicts: ClassVar[tuple] = ()
    changes: ClassVar[MayChange] = MayChange(switch=Changes.NOTHING)
    wins: ClassVar[Wins] = Wins()

    @property
    def owns(self):
        return frozenset()

    def check(self, run):
        return iter(())

    def apply(self, program, run):
        inner, file = program.forward_backward, open(f"{self.folder}/{os.getpid()}", "w")

        def forward_backward(program, microbatches, scale, mark):
            texts = [bytes(row.tolist()).decode() for batch in microbatches for row in batch.inputs]
            print(json.dumps([int(text[:7]) for text in texts]), file=file, flush=True)
            time.sleep(self.ms / 1000)
            return inner(program, microbatches, scale, mark)

        return replace(program, forward_backward=forward_backward)
"""

RECIPE = """
name = "once"
[run]
num_steps = 40
log_every = 10
device = "cpu"
[model.decoder]
dim = 16
num_layers = 1
num_heads = 2
ffn_dim = 16
[data.tokens]
folder = "packed"
packing = "{packing}"
[batch]
sequence_length = {length}
microbatch_size = 4
[loader]
num_workers = 4
[checkpoint]
every = 4
[strategies.adamw]
[strategies.ddp]
[strategies.record]
folder = "."
"""


@pytest.fixture
def recorder(tmp_path: Path) -> dict[str, str]:
    """The strategy, installed as a third party's."""
    place = tmp_path / "site"
    info = place / "recorder-1.dist-info"
    info.mkdir(parents=True)
    (place / "recorder.py").write_text(RECORDER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recorder\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[stepladder.strategies]\nrecord = recorder:Record\n")
    return {"PYTHONPATH": os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])}


def steps_of(folder: Path) -> list[list[int]]:
    """The samples of each step, of all ranks together; of a rank that was killed in a line, what is whole."""
    ranks = [[json.loads(line) for line in each.read_text().split("\n")[:-1]] for each in folder.iterdir()]
    return [[*chain(*step)] for step in zip(*ranks, strict=False)]


def command(recipe: Path, out: Path, record: Path, *more: str) -> list[str]:
    record.mkdir()
    told = ["--out", str(out), "--set", f'strategies.record.folder="{record}"', *more]
    return [sys.executable, "-P", "-m", "stepladder", "run", str(recipe), *told]


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "length"), [("split", LENGTH), ("best_fit", LENGTH - 1)])
def test_every_sample_of_a_killed_epoch_is_trained_on_once_on_any_ranks(
    packing: str, length: int, tmp_path: Path, recorder: dict[str, str]
) -> None:
    lines = tmp_path / "documents.jsonl"
    count = NUM_SAMPLES + (packing == "split")  # the last window of a stream wants one token more
    lines.write_text("".join(json.dumps({"text": f"{i:07d}"}) + "\n" for i in range(count)))
    pack(Packing(sources=(str(lines),), held_out=0.0), tmp_path / "packed")
    recipe = tmp_path / "once.toml"
    recipe.write_text(RECIPE.format(packing=packing, length=length))
    known: dict[str, Any] = {"cwd": tmp_path, "env": os.environ | recorder, "text": True}
    run, first = tmp_path / "run", tmp_path / "first"

    slow = command(recipe, run, first, "--ranks", "2", "--set", "strategies.record.ms=100")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(slow, stdout=log, stderr=log, **known)
        until = time.monotonic() + 200
        while len(list(first.iterdir())) < 2 or len(steps_of(first)) < 14:
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        for pid in [*(int(each.name) for each in first.iterdir()), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    checkpoint = last_checkpoint(run / "checkpoints")
    state = json.loads((checkpoint / "state.json").read_text())
    assert 8 <= state["step"] < 40
    assert state["position"]["samples"] == state["step"] * SAMPLES_PER_STEP
    assert state["position"]["epoch"] == 0
    done = [*chain(*steps_of(first)[: state["step"]])]

    for ranks, workers in ((1, 0), (4, 1)):
        out, record = tmp_path / f"run-{ranks}", tmp_path / f"record-{ranks}"
        shutil.copytree(run, out)
        sizes = ["--set", f"batch.microbatch_size={8 // ranks}", "--set", f"loader.num_workers={workers}"]
        resumed = command(recipe, out, record, "--resume", "--ranks", str(ranks), *sizes)
        answer = subprocess.run(resumed, capture_output=True, timeout=280, check=False, **known)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert sorted([*done, *chain(*steps_of(record))]) == list(range(NUM_SAMPLES)), f"{ranks} ranks"
