"""Starts what `overhead.py` measures, hands out turns, and takes in the results."""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from overhead_stepladder import one_step_recipe

ARMS_FILE = str(Path(__file__).resolve().parent / "overhead_arms.py")
TIMEOUT_S = 180


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload on a number of ranks, and how it is measured."""

    workload: str
    ranks: int
    rounds: int
    turns: int
    """Turns of each arm in a round."""
    warmup: int
    settle: int
    block: int
    blocks: int
    """See `Turns`."""

    @property
    def title(self) -> str:
        """What a reader must know to read the table below it."""
        what = {"mlp": "MLP 64-128-128-10, batch 32", "decoder": "decoder d 256, 4 layers, 8 x 256 bytes"}
        each = f"the fastest of {self.blocks} blocks of {self.block} steps" if self.blocks > 1 else "one step"
        return f"{what[self.workload]}, {said(self.ranks)}: median of {self.rounds} x {self.turns} turns, each {each}"

    @property
    def num_steps(self) -> int:
        """Steps of an arm in a round, and a few to spare for loaders that run ahead."""
        return self.warmup + self.turns * (self.settle + self.block * self.blocks) + 4


def said(ranks: int) -> str:
    """A number of ranks in words."""
    return "1 rank" if ranks == 1 else f"{ranks} ranks (gloo, DDP)"


def environment() -> dict[str, str]:
    """The environment of every process: one thread, no GPU, and a malloc that keeps what it once got.

    glibc gives freed memory back and faults it in again at every step, which on the decoder costs more than any
    framework; 32 MiB is the largest threshold that it accepts.
    """
    return dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
        "PYTHONWARNINGS": "ignore",
    }


class CrashError(Exception):
    """A process left no result; the text is who it was and the end of what it said."""

    def __init__(self, who: str, errors: IO[str]) -> None:
        errors.seek(0)
        super().__init__(f"{who} left no result; the end of what it said:\n{errors.read()[-3000:]}")


class Arm:
    """An arm's ranks, each a process that runs when it is its turn."""

    def __init__(self, case: Case, name: str) -> None:
        self.name = name
        self._who = f"{name}, {case.workload}, {said(case.ranks)}"
        self._folder = tempfile.TemporaryDirectory()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open until `end`)
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._go: list[int] = []
        self._told: list[IO[str]] = []
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        shared = environment() | {
            "WORLD_SIZE": str(case.ranks),
            "LOCAL_WORLD_SIZE": str(case.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "overhead",  # tells Lightning that somebody else starts the ranks
        }
        started_s = time.time()
        for rank in range(case.ranks):
            self._start(case, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, started_s)

    def _start(self, case: Case, environment: dict[str, str], started_s: float) -> None:
        go_there, go_here = os.pipe()
        told_here, told_there = os.pipe()
        turns = {"warmup": case.warmup, "settle": case.settle, "block": case.block, "blocks": case.blocks}
        turns |= {"go_fd": go_there, "told_fd": told_there}
        command = [sys.executable, ARMS_FILE, self.name, case.workload, f"--steps={case.num_steps}"]
        command += [f"--turns={json.dumps(turns)}", f"--started={started_s}", f"--out={self._folder.name}"]
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            cwd=self._folder.name,
            pass_fds=(go_there, told_there),
        )
        os.close(go_there)
        os.close(told_there)
        self._ranks.append(process)
        self._go.append(go_here)
        self._told.append(os.fdopen(told_here))

    def ready(self) -> float:
        """Wait for the end of the warmup; seconds from the start of the process to the end of its first step."""
        return self._messages()[0]["start_s"]

    def turn(self) -> float:
        """Let it run for one turn; microseconds a step, of rank 0. Raises: CrashError."""
        for go in self._go:
            try:
                os.write(go, b"g")
            except BrokenPipeError:
                raise CrashError(self._who, self._errors) from None
        return self._messages()[0]["step_us"]

    def _messages(self) -> list[dict[str, Any]]:
        """One message of each rank."""
        found: list[dict[str, Any]] = []
        for told in self._told:
            ready, _, _ = select.select([told], [], [], TIMEOUT_S)
            line = told.readline() if ready else ""
            if not line:
                raise CrashError(self._who, self._errors)
            found.append(json.loads(line))
        return found

    def end(self) -> None:
        """Make it leave."""
        for go in self._go:
            os.close(go)
        for rank in self._ranks:
            try:
                rank.wait(timeout=20)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
        for told in self._told:
            told.close()
        self._errors.close()
        self._folder.cleanup()


def start_command(ranks: int, command: str) -> float:
    """Time from the start of a whole command to its first logged step, seconds. Raises: CrashError.

    Both commands train one step of the decoder on tokens made up in memory and log it to a file, whose last change is
    the moment. The bare script takes its model from stepladder; the time of that import is taken off its figure.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        if command == "bare script":
            log = Path(folder, "log.txt")
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
            arguments = [*launcher, ARMS_FILE, "bare", "decoder", "--steps=1", f"--loss-file={log}"]
        else:
            recipe = Path(folder, "overhead.toml")
            recipe.write_text(one_step_recipe(ranks))
            log = Path(folder, "run", "metrics.jsonl")
            arguments = ["-m", "stepladder", "run", str(recipe), f"--out={log.parent}"]
        started_s = time.time()
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment(), stdout=subprocess.PIPE, stderr=errors, cwd=folder
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        if not log.is_file() or not log.read_text():
            raise CrashError(f"{command}, {said(ranks)}", errors)
        start_s = log.stat().st_mtime - started_s
        return start_s - json.loads(output.splitlines()[-1])["borrowed_s"] if command == "bare script" else start_s
