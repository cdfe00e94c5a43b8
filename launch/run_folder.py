"""The folder of a run: what was run, on what, and what came of it."""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..trainer.checkpoint.manager import last_checkpoint
from .errors import UsageError
from .recipe import diff, read, recipe_hash, to_toml
from .schema import Recipe

if TYPE_CHECKING:
    from .plan import Plan

RESOLVED = "recipe.resolved.toml"
FOLDER_VARIABLE = "STEPLADDER_RUN_FOLDER"
"""Tells workers the folder that `stepladder run` has made; under a bare torchrun rank 0 makes it."""
_VERSIONS = ("stepladder", "torch", "numpy", "triton", "torchao", "transformer-engine", "datasets")
_ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def default_name(recipe: Recipe) -> Path:
    """`runs/<name>-<date>-<time>-<4 hex digits>`."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{recipe.name}-{now}-{secrets.token_hex(2)}"


def begin(plan: "Plan", *, out: Path | None, command: Sequence[str], resume: bool) -> Path:
    """Make the run folder and tell the user what is about to run in it. Raises: as `create`."""
    folder = out or default_name(plan.recipe)
    said = create(folder, plan.recipe, command=command, resume=resume)
    print(*plan.summary(), f"folder      {folder}", *said, sep="\n", flush=True)
    return folder


def create(folder: Path, recipe: Recipe, *, command: Sequence[str], resume: bool) -> list[str]:
    """Make the folder and write down what is about to run; return lines to tell the user.

    A run that is resumed keeps what stands there until its checkpoint is loaded; then `record` replaces it.
    Raises: UsageError if it cannot be written, holds another run, or (to resume) holds none; CheckpointError if there
    is nothing to resume from.
    """
    earlier = folder / RESOLVED
    said: list[str] = []
    try:
        if resume and not earlier.is_file():
            raise UsageError(f"--resume: {folder} holds no run; give the folder of one with --out")
        if not resume and earlier.exists():
            raise UsageError(
                f"--out {folder}: holds a run already; add --resume to continue it, or choose another folder"
            )
        if resume:
            last_checkpoint(folder / "checkpoints")
            said = [f"changed since the run began: {line}" for line in diff(read(str(earlier)), recipe)]
        folder.mkdir(parents=True, exist_ok=True)
        lock(folder)
        if not resume:
            record(folder, recipe, command=command)
        (folder / "exit.json").unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            if not resume and not (folder / "metrics.jsonl").exists():
                discard(folder, ours=False)
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error
    return said


def lock(folder: Path) -> int:
    """Hold the folder until this process ends, or what it turns into. Raises: UsageError if another run holds it.

    Returns: the file descriptor, for who wants to let go of it before that.
    """
    held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise UsageError(f"--out {folder}: another run is writing there; wait for it, or choose another") from error
    except OSError:
        pass  # a file system without locks
    os.set_inheritable(held, True)  # and not closed by a run: one rank is this process with another program in it
    return held


def record(folder: Path, recipe: Recipe, *, command: Sequence[str]) -> None:
    """Write the resolved recipe and the environment. Raises: OSError."""
    (folder / RESOLVED).write_text(to_toml(recipe))
    (folder / "environment.json").write_text(json.dumps(environment(recipe, command), indent=1) + "\n")


def discard(folder: Path, *, ours: bool) -> None:
    """Take back what `create` has made, for a run that turned out to be impossible.

    Empty folders go too if they are `ours`; one that the user has named stays.
    """
    for name in (RESOLVED, "environment.json", "exit.json", ".lock"):
        (folder / name).unlink(missing_ok=True)
    for empty in (folder, folder.parent) if ours else ():
        with contextlib.suppress(OSError):
            empty.rmdir()


def start_anew(folder: Path) -> None:
    """Clear away a run that ended before its first checkpoint. Raises: UsageError if another process is writing it."""
    if (folder / RESOLVED).is_file():
        held = lock(folder)
        discard(folder, ours=False)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        os.close(held)


def environment(recipe: Recipe, command: Sequence[str]) -> dict[str, Any]:
    """Everything outside the recipe that a run may depend on: versions, host, git state, chosen variables."""
    return {
        "recipe_sha256": recipe_hash(recipe),
        "command": list(command),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
        "git": git_state(Path.cwd()),
        "variables": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        | {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NCCL_", "TORCH_"))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None outside a checkout or without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write_exit(folder: Path, *, code: int, steps: int | None, reason: str) -> None:
    """Leave `exit.json`: how the run ended, for the launcher and for whoever looks later; None: steps not known."""
    partial = folder / ".partial-exit.json"
    partial.write_text(json.dumps({"code": code, "steps": steps, "reason": reason}) + "\n")
    partial.replace(folder / "exit.json")


def read_exit(folder: Path) -> dict[str, Any] | None:
    """How the run ended, or None if it never came to say so."""
    try:
        return json.loads((folder / "exit.json").read_text())
    except (OSError, ValueError):
        return None
