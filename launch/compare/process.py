"""Starts `stepladder run` as a process of its own, and makes sure that nothing of it is left behind."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import run_folder
from ..errors import UsageError
from ..recipe import PACKAGE, to_toml
from ..schema import Recipe

_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", run_folder.FOLDER_VARIABLE)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LEFT_S = 60.0
_LONGEST_OUTPUT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    code: int | None
    """Exit code; None if it was ended because its time was up."""
    seconds: float
    started_at: float
    """In seconds since 1970."""
    reason: str | None
    """What the run itself said of its end."""
    output: str


def run_recipe(
    recipe: Recipe,
    folder: Path,
    arguments: Sequence[str] = (),
    *,
    num_ranks: int | None = None,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a recipe in a fresh process group; the run folder is `folder/run`, what it printed is `folder/output.txt`.

    A `folder` that an interrupted run has left is emptied first. However this function is left, no process of the run
    goes on. num_ranks: as `--ranks` has it. environment: to be added to that of this process.
    """
    _empty(folder)
    (folder / "recipe.toml").write_text(to_toml(recipe))
    command = [sys.executable, "-P", "-m", PACKAGE, "run", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    command += [*(("--ranks", str(num_ranks)) if num_ranks else ()), *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    started_at, started_s = time.time(), time.monotonic()
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited | {"PYTHONSAFEPATH": "1"} | dict(environment or {}),
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # else the number may be that of a stranger by now
                end_tree(process.pid)
                process.wait()
    ended = run_folder.read_exit(folder / "run")
    return Ended(
        code=code,
        seconds=time.monotonic() - started_s,
        started_at=started_at,
        reason=str(ended["reason"]) if ended else None,
        output=_tail(folder / "output.txt"),
    )


def _tail(path: Path) -> str:
    """The end of what a run has printed, which may be anything."""
    with path.open("rb") as output:
        output.seek(max(0, output.seek(0, os.SEEK_END) - _LONGEST_OUTPUT))
        return output.read().decode(errors="replace")


def _end_with_parent() -> None:
    """Be told to stop when the comparison is killed, so that nothing disturbs what is measured after it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def end_tree(pid: int) -> None:
    """Kill a process and all that it has started. A measured run has nothing to save, so it is not asked."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGSTOP)  # it starts nothing more, and restarts nobody
    for child in _children(pid):
        end_tree(child)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(each) for each in (task / "children").read_text().split()]
    return found


def _empty(folder: Path) -> None:
    """An empty folder; waits for a run that is still leaving it. Raises: UsageError if it does not leave."""
    lock = folder / "run" / ".lock"
    if lock.exists():
        with lock.open("r+") as held:
            for _ in range(int(_LEFT_S / 0.1)):
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
                except OSError:  # a file system without locks
                    break
            else:
                raise UsageError(f"{folder}: a run is still going on there; end it, then resume")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
