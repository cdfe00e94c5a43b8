"""Starts the ranks of a run on this machine and owns its exit code.

One rank is this very process, replaced by its worker. Several are started by torchrun, in a session of their own:
Ctrl-C reaches this launcher alone, which asks every worker to stop after a whole step; a second one ends them at once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from . import run_folder
from .errors import ExitCode
from .plan import Plan
from .ranks import STOPPING
from .recipe import PACKAGE
from .run_folder import FOLDER_VARIABLE


def worker_environment(plan: Plan, local_ranks: int) -> dict[str, str]:
    """Environment of the workers: nothing on their import path that a user did not put there, and a share of cores."""
    threads = plan.recipe.run.threads_per_rank or max(1, (os.cpu_count() or 1) // local_ranks)
    environment = dict(os.environ)
    environment["PYTHONSAFEPATH"] = "1"
    if plan.recipe.run.threads_per_rank or "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(threads)
    if plan.device_type == "cpu":
        # Kineto tells of each start and stop on stderr, above its level for errors. On a GPU its errors matter more.
        environment.setdefault("KINETO_LOG_LEVEL", "6")
    return environment


def start(plan: Plan, arguments: Sequence[str], *, out: Path | None, resume: bool) -> int:
    """Make the run folder, run the workers to their end, return the exit code.

    `arguments` are those of this command; each worker gets the same.
    Raises: UsageError or CheckpointError for the folder.
    """
    folder = run_folder.begin(plan, out=out, command=["stepladder", *arguments], resume=resume)
    environment = worker_environment(plan, plan.num_ranks) | {FOLDER_VARIABLE: str(folder.resolve())}
    worker = ["-m", PACKAGE, *arguments]
    if plan.num_ranks == 1:
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.execve(sys.executable, [sys.executable, *worker], environment)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.num_ranks}", *worker]
    agent = subprocess.Popen([sys.executable, *torchrun], env=environment, start_new_session=True)
    asked = _wait(agent)
    code = _end(agent.returncode, asked, folder)
    if code == ExitCode.USAGE and not resume:
        run_folder.discard(folder, ours=out is None)
    return code


def _wait(agent: "subprocess.Popen[bytes]") -> int | None:
    """Wait for torchrun; hand Ctrl-C and SIGTERM to its workers, and end everything the second time.

    Returns: the first signal that came, if any.
    """
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        workers = _children(agent.pid)
        if workers is None:  # torchrun's own way: it hands SIGTERM on, and prints a traceback
            agent.send_signal(signal.SIGTERM)
        elif len(asked) == 1 and workers and all(map(_listens, workers)):
            print(STOPPING, file=sys.stderr, flush=True)
            for pid in workers:
                _signal(pid, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        else:  # asked twice, or so early that there is nothing to save
            _kill(agent, workers)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
            signal.signal(number, forward)
    while agent.poll() is None:
        time.sleep(0.05)
    return asked[0] if asked else None


def _children(pid: int) -> list[int] | None:
    """Processes started by `pid`; None where /proc does not tell."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return None


def _listens(pid: int) -> bool:
    """Whether a worker has come so far that it catches SIGTERM (a bare Python does not)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _kill(agent: "subprocess.Popen[bytes]", workers: Sequence[int]) -> None:
    """End torchrun and its workers at once; torchrun first falls silent, so that it neither restarts nor complains."""
    agent.send_signal(signal.SIGSTOP)
    for pid in {*workers, *(_children(agent.pid) or ())}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # a worker leads a session of its own, with its loader processes
        _signal(pid, signal.SIGKILL)
    agent.kill()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end(returncode: int, asked: int | None, folder: Path) -> int:
    """The run's exit code: what the workers left in `exit.json` counts more than how torchrun saw them die."""
    ended = run_folder.read_exit(folder)
    if ended is None and asked is not None:
        code = ExitCode.TERMINATED if asked == signal.SIGTERM else ExitCode.INTERRUPTED
        run_folder.write_exit(folder, code=code, steps=None, reason="ended at once by a signal")
        return code
    if ended is None:
        run_folder.write_exit(folder, code=ExitCode.FAILED, steps=None, reason="a rank failed")
        return ExitCode.FAILED
    if returncode and ended["code"] == ExitCode.DONE:
        # gloo sometimes aborts while its threads are torn down, long after the last result was written.
        print("note: a rank crashed while exiting; the run itself was complete", file=sys.stderr)
    return int(ended["code"])
