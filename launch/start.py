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
from .recipe import PACKAGE
from .run_folder import FOLDER_VARIABLE


def worker_environment(plan: Plan, local_ranks: int) -> dict[str, str]:
    """Environment of the workers: nothing on their import path that a user did not put there, and a share of cores."""
    threads = plan.recipe.run.threads_per_rank or max(1, (os.cpu_count() or 1) // local_ranks)
    environment = dict(os.environ)
    environment["PYTHONSAFEPATH"] = "1"
    if plan.recipe.run.threads_per_rank or "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def start(plan: Plan, arguments: Sequence[str], *, out: Path | None, resume: bool) -> int:
    """Make the run folder, run the workers to their end, return the exit code. Raises: UsageError for the folder.

    `arguments` are those of this command; each worker gets the same.
    """
    folder = out or run_folder.default_name(plan.recipe)
    said = run_folder.create(folder, plan.recipe, command=["stepladder", *arguments], resume=resume)
    print(*plan.summary(), f"folder      {folder}", *said, sep="\n", flush=True)
    environment = worker_environment(plan, plan.num_ranks) | {FOLDER_VARIABLE: str(folder.resolve())}
    worker = ["-m", PACKAGE, *arguments]
    if plan.num_ranks == 1:
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.execve(sys.executable, [sys.executable, *worker], environment)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.num_ranks}", *worker]
    agent = subprocess.Popen([sys.executable, *torchrun], env=environment, start_new_session=True)
    return _end(_wait(agent), folder)


def _wait(agent: "subprocess.Popen[bytes]") -> int:
    """Wait for torchrun; hand Ctrl-C and SIGTERM to its workers, the second time to everything."""
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        workers = _children(agent.pid)
        if len(asked) > 1 or not workers:
            agent.send_signal(signal.SIGTERM)
            return
        print("stopping after the next logged step; once more ends the run at once", file=sys.stderr, flush=True)
        for pid in workers:
            _signal(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    while agent.poll() is None:
        time.sleep(0.05)
    return agent.returncode


def _children(pid: int) -> list[int]:
    """Processes started by `pid`; empty where /proc does not tell."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end(returncode: int, folder: Path) -> int:
    """The run's exit code: what the workers left in `exit.json` counts more than how torchrun saw them die."""
    ended = run_folder.read_exit(folder)
    if ended is None:
        return ExitCode.FAILED if returncode else ExitCode.DONE
    if returncode and ended["code"] == ExitCode.DONE:
        # gloo sometimes aborts while its threads are torn down, long after the last result was written.
        print("note: a rank crashed while exiting; the run itself was complete", file=sys.stderr)
    return int(ended["code"])
