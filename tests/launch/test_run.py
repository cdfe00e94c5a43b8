"""Whole runs of a tiny recipe, started as a user starts them."""

import contextlib
import gzip
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.launch import recipe as recipes
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks, StopRequest
from stepladder.launch.run_folder import git_state
from stepladder.launch.session import Session
from stepladder.profiling.trace.load import read_trace
from stepladder.trainer.checkpoint.errors import CheckpointError

Write = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).resolve().parents[2]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x1b]")  # everything below a space, but for the line feed
TWO = ["--ranks", "2", "--set", "strategies.ddp={}", "--set", "batch.microbatch_size=2"]


def losses(folder: Path) -> dict[int, float]:
    """Loss of each logged step, in full precision."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def exit_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "exit.json").read_text())


def checked(done: "subprocess.CompletedProcess[str]", code: int = 0) -> "subprocess.CompletedProcess[str]":
    assert done.returncode == code, done.stdout[-1500:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    """The tiny recipe, with a profile and checkpoints."""
    conftest = (Path(__file__).parent / "conftest.py").read_text()
    path = place / "tiny.toml"
    path.write_text(conftest.split('"""')[3])
    return path


@pytest.fixture(scope="module")
def one(place: Path, recipe: Path, stepladder: Command) -> tuple[Path, str]:
    """Folder and output of a run on one rank."""
    done = checked(stepladder("run", str(recipe), "--out", str(place / "one"), cwd=place))
    assert done.stderr == ""
    return place / "one", done.stdout


@pytest.fixture(scope="module")
def two(place: Path, recipe: Path, stepladder: Command) -> tuple[Path, str]:
    """Folder and output of a profiled run on two ranks, with the same number of tokens per step."""
    profile = ["--set", "profiler.skip_first=2", "--set", "profiler.active=2", "--set", "checkpoint.every=100"]
    done = checked(stepladder("run", str(recipe), *TWO, *profile, "--out", str(place / "two"), cwd=place))
    return place / "two", done.stdout


def test_a_run_trains_and_ends_with_zero(one: tuple[Path, str]) -> None:
    folder, out = one

    assert list(losses(folder)) == list(range(1, 9))
    assert all(0 < loss < 10 for loss in losses(folder).values())
    assert len(set(losses(folder).values())) == 8
    assert exit_of(folder) == {"code": 0, "steps": 8, "reason": "done"}
    assert out.count("\nstep ") == 8
    assert "= 128 tokens per step" in out


def test_the_run_folder_tells_what_was_run_and_on_what(two: tuple[Path, str], recipe: Path) -> None:
    folder, _ = two
    resolved = recipes.read(str(folder / "recipe.resolved.toml"))
    environment = json.loads((folder / "environment.json").read_text())

    assert resolved.strategies.ddp is not None
    assert environment["recipe_sha256"] == recipes.recipe_hash(resolved)
    assert environment["command"][:3] == ["stepladder", "run", str(recipe)]
    assert environment["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert environment["git"] is None  # the run was started outside a checkout
    assert environment["python"] == sys.version.split()[0]
    assert exit_of(folder)["code"] == 0
    assert not list(folder.rglob(".partial*"))


def test_the_git_state_is_that_of_the_working_directory(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_profiled_run_leaves_a_trace_of_each_rank_their_analysis_and_the_report(two: tuple[Path, str]) -> None:
    folder, out = two
    names = sorted(path.name for path in (folder / "traces").iterdir())

    assert names == ["rank-0.step-5.pt.trace.json.gz", "rank-1.step-5.pt.trace.json.gz"]  # 2 + 1 warm-up + 2
    for name in names:
        assert json.loads(gzip.decompress((folder / "traces" / name).read_bytes()))["traceEvents"]
        assert read_trace(folder / "traces" / name).steps.height == 2
    assert "Content-Security-Policy" in (folder / "report.html").read_text()
    for word in ("ranks 0, 1", "a step, mean", "backward", "gradient_sync", "clip", "report.html"):
        assert word in out


def test_lines_for_a_file_hold_no_control_characters(one: tuple[Path, str], two: tuple[Path, str]) -> None:
    for _, out in (one, two):
        assert not CONTROL.search(out)
        assert "[#" not in out


def test_one_rank_and_two_ranks_see_the_same_losses(one: tuple[Path, str], two: tuple[Path, str]) -> None:
    single, double = losses(one[0]), losses(two[0])

    assert single.keys() == double.keys()
    assert max(abs(single[step] - double[step]) / single[step] for step in single) <= 1e-5


@pytest.mark.parametrize("where", ["elsewhere", "the repository root"])
def test_torchrun_starts_the_same_run(
    where: str, two: tuple[Path, str], place: Path, recipe: Path, tmp_path: Path
) -> None:
    """Bitwise: the same ranks, the same order of sums. From the root too, whose folders have common names."""
    out = place / f"torchrun-{where[:3]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stepladder"]
    arguments = ["run", str(recipe), *TWO[2:], "--out", str(out)]
    cwd = tmp_path if where == "elsewhere" else ROOT

    done = subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=200, check=False, env=dict(os.environ)
    )

    checked(done)
    assert losses(out) == losses(two[0])
    assert exit_of(out)["code"] == 0


def test_a_resumed_run_continues_bit_by_bit(place: Path, recipe: Path, stepladder: Command) -> None:
    """Eight steps at once, and four and four; with accumulation and with the loss scaling of fp16."""
    fp16 = ["strategies.amp.dtype=fp16", "strategies.amp.growth_interval=3"]
    keys = ["checkpoint.every=100", "strategies.accumulation={}", *fp16]
    arguments = ["run", str(recipe), *(word for key in keys for word in ("--set", key))]
    whole, half = place / "whole", place / "half"
    with ThreadPoolExecutor() as pool:
        runs = [[*arguments, "--out", str(whole)], [*arguments, "--out", str(half), "--set", "run.num_steps=4"]]
        for done in pool.map(lambda run: stepladder(*run, cwd=place), runs):
            checked(done)
    kept = {path: path.read_bytes() for path in half.rglob("*") if path.is_file() and path.name != "exit.json"}

    refused = checked(stepladder(*arguments, "--resume", "--out", str(half), "--set", "run.seed=1", cwd=place), code=66)
    assert refused.stderr == (
        f"error: {half}/checkpoints/step-000004: was trained with seed = 0, but the recipe says 1; "
        f"set it back or start a new run\n"
    )
    assert {path: path.read_bytes() for path in kept} == kept, "a refusal changed the run"

    done = checked(stepladder(*arguments, "--resume", "--out", str(half), cwd=place))

    assert done.stderr == ""
    assert "continuing after step 4" in done.stdout
    assert "changed since the run began: run.num_steps: 4 -> 8" in done.stdout
    assert losses(half) == losses(whole)
    assert list(losses(half)) == list(range(1, 9))
    assert recipes.read(str(half / "recipe.resolved.toml")).run.num_steps == 8
    scaling = [
        json.loads((f / "checkpoints/step-000008/state.json").read_text())["loss_scaling"] for f in (whole, half)
    ]
    assert scaling[0] == scaling[1]
    assert scaling[0]["scale"] == 4 * 65536  # grown in steps 3 and 6: the count of good steps survived, too


def whole_and_resumed(recipe: str, place: str) -> dict[str, Any]:
    """On each layout: eight steps, four steps, four more; and what is said to one who resumes with another seed."""
    import torch.distributed as dist

    rank = dist.get_rank()
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=2)
    answers: dict[str, Any] = {}

    def run(layout: str, folder: Path, *keys: str, resume: bool = False) -> dict[int, float]:
        overrides = ["checkpoint.every=100", "strategies.accumulation={}", f"strategies.{layout}={{}}", *keys]
        plan = make_plan(recipes.read(recipe, overrides), num_gpus=0, num_ranks=2, started=True)
        folder.mkdir(exist_ok=True)
        stop, device = StopRequest(), torch.device("cpu")
        session = Session(plan=plan, ranks=ranks, device=device, folder=folder, stop=stop, command=[])
        with contextlib.redirect_stdout(io.StringIO()):
            assert session.run(resume=resume) == 0
        dist.barrier()
        return losses(folder)

    for layout in ("ddp", "fsdp2"):
        whole = run(layout, Path(place) / f"{layout} whole")
        run(layout, half := Path(place) / f"{layout} half", "run.num_steps=4")
        try:
            run(layout, half, "run.seed=1", resume=True)
        except CheckpointError as error:
            answers[f"{layout} refusal"] = str(error)
        answers[layout] = whole, run(layout, half, resume=True)
    return answers


def test_two_ranks_continue_bit_by_bit_replicated_and_sharded(recipe: Path, tmp_path: Path, run_ranks: Any) -> None:
    """The worker's own session, in one pair of processes: starting them costs more than the runs."""
    answers = run_ranks(whole_and_resumed, 2, str(recipe), str(tmp_path))

    for layout in ("ddp", "fsdp2"):
        whole, resumed = answers[layout]
        assert list(whole) == list(range(1, 9))
        assert resumed == whole, layout
        assert "was trained with seed = 0, but the recipe says 1" in answers[f"{layout} refusal"]


def test_a_run_on_two_ranks_is_resumed_by_one_with_as_many_tokens_a_step(
    two: tuple[Path, str], place: Path, recipe: Path, tmp_path: Path, stepladder: Command
) -> None:
    folder = shutil.copytree(two[0], tmp_path / "two")
    arguments = ["run", str(recipe), "--set", "strategies.ddp={}", "--resume", "--out", str(folder)]
    half = ["--set", "batch.microbatch_size=2"]

    assert "continuing after step 8" in checked(stepladder(*arguments, cwd=place)).stdout
    refused = checked(stepladder(*arguments, *half, cwd=place), code=66)

    assert "tokens_per_step" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


class Endless:
    """A run that would take hours, started in the background."""

    def __init__(self, recipe: Path, folder: Path, *arguments: str) -> None:
        more = ["--set", "run.num_steps=10000000", "--set", "checkpoint.every=10000000", "--out", str(folder)]
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stepladder", "run", str(recipe), *arguments, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_steps(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            metrics = self.folder / "metrics.jsonl"
            if metrics.is_file() and metrics.read_text().count("\n") > 2:
                return
            time.sleep(0.05)
        raise AssertionError(f"no steps: {self.process.communicate(timeout=5)}")

    def ended(self) -> tuple[int, str]:
        """Exit code as a shell sees it, and everything that was said."""
        out, errors = self.process.communicate(timeout=40)
        code = self.process.returncode
        return (code if code >= 0 else 128 - code), out + errors


@pytest.fixture
def endless(recipe: Path, tmp_path: Path) -> Iterator[Callable[..., Endless]]:
    started: list[Endless] = []

    def start(*arguments: str) -> Endless:
        started.append(Endless(recipe, tmp_path / "run", *arguments))
        return started[-1]

    yield start
    for each in started:
        for pid in {each.process.pid, *processes_of(each.folder)}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def processes_of(folder: Path) -> list[int]:
    """Processes that name this run folder on their command line."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            raw = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in raw and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def none_left(folder: Path) -> bool:
    deadline = time.monotonic() + 5
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(folder)


STOPS: dict[str, tuple[list[str], signal.Signals, bool, int]] = {
    "Ctrl-C in the terminal, two ranks": (TWO, signal.SIGINT, True, 130),
    "SIGTERM to the launcher, two ranks": (TWO, signal.SIGTERM, False, 143),
    "Ctrl-C in the terminal, one rank": ([], signal.SIGINT, True, 130),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_run_that_is_asked_to_stop_does_so_after_a_whole_step(case: str, endless: Callable[..., Endless]) -> None:
    arguments, number, whole_group, expected = STOPS[case]
    run = endless(*arguments)
    run.wait_for_steps()

    (os.killpg if whole_group else os.kill)(run.process.pid, number)
    code, said = run.ended()

    assert code == expected, said[-2000:]
    assert "Traceback" not in said
    assert "stopping after the next steps" in said
    last = max(losses(run.folder))
    assert exit_of(run.folder) == {"code": expected, "steps": last, "reason": f"stopped by a signal after step {last}"}
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == [f"step-{last:06d}"]
    files = {path.name for path in (run.folder / "checkpoints" / f"step-{last:06d}").iterdir()}
    assert {".metadata", "state.json", "__0_0.distcp"} <= files
    assert none_left(run.folder)


def test_a_second_ctrl_c_ends_two_ranks_at_once(endless: Callable[..., Endless]) -> None:
    run = endless(*TWO, "--set", "run.log_every=10000000")  # never comes to a logged step
    deadline = time.monotonic() + 60
    while not (run.folder / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)

    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert run.process.poll() is None
    asked_s = time.monotonic()
    os.kill(run.process.pid, signal.SIGINT)
    code, said = run.ended()

    assert time.monotonic() - asked_s < 3
    assert code == 130
    assert "Traceback" not in said
    assert exit_of(run.folder)["code"] == 130
    assert none_left(run.folder)


def test_a_ctrl_c_before_there_are_ranks_ends_at_once(endless: Callable[..., Endless]) -> None:
    run = endless(*TWO)
    while not (run.folder / "environment.json").is_file():
        time.sleep(0.01)
    time.sleep(0.3)

    os.kill(run.process.pid, signal.SIGINT)
    code, said = run.ended()

    assert code == 130, said
    assert "Traceback" not in said
    assert exit_of(run.folder)["code"] == 130
    assert none_left(run.folder)


def test_a_checkpoint_that_cannot_be_written_ends_every_rank_with_one_sentence(
    place: Path, recipe: Path, stepladder: Command, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")

    done = checked(
        stepladder("run", str(recipe), *TWO, "--set", "checkpoint.every=2", "--out", str(tmp_path), cwd=place), code=66
    )

    assert done.stderr.splitlines() == [
        f"error: {tmp_path}/checkpoints/step-000002: cannot be written (Not a directory); free space or change --out"
    ]
    assert exit_of(tmp_path)["code"] == 66


def test_a_terminal_gets_a_bar_and_the_same_run(one: tuple[Path, str], place: Path, tmp_path: Path) -> None:
    """From the resolved recipe that the first run left: the same recipe in other words, so the same losses bitwise."""
    main, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "stepladder", "run", str(one[0] / "recipe.resolved.toml"), "--out", "again"],
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=place,
    ) as process:
        os.close(child)
        raw = b""
        try:
            while chunk := os.read(main, 65536):
                raw += chunk
        except OSError:  # how Linux says that nobody holds the other end any more
            pass
        assert process.wait(timeout=60) == 0
    os.close(main)

    text = raw.decode()
    assert re.search(r"\r\x1b\[K\[#+\.*\] \d/8  eta 0:0\d", text)
    assert "step 8/8  loss" in text
    assert text.rstrip("\r\n").splitlines()[-1].replace("\r", "").startswith(("\x1b[Kdone: 8 of 8", "done: 8 of 8"))
    assert losses(place / "again") == losses(one[0])
