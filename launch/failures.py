"""Failures of a running training that a user can mend: told in a sentence, with exit code 1."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from ..strategies.errors import StrategyError
from ..trainer.checkpoint.errors import CheckpointError
from ..trainer.data.errors import DataError, lost_worker
from ..trainer.models.errors import ModelError
from ..trainer.own_file import FAILURES, OwnFileError, told
from . import run_folder
from .errors import ExitCode

_NO_MEMORY = ("alloc_cpu.cpp", "DefaultCPUAllocator", "CUDA out of memory", "HIP out of memory")


def ending(error: BaseException) -> tuple[ExitCode, str]:
    """Code and reason of a run that fails with this error on rank 0, as `exit.json` has them."""
    if isinstance(error, CheckpointError):
        return ExitCode.CHECKPOINT, str(error)
    if isinstance(error, StrategyError):
        return ExitCode.USAGE, str(error)
    return ExitCode.FAILED, f"rank 0: {explained(error) or repr(error)}"


@contextlib.contextmanager
def written_down(folder: Path, rank: int) -> Generator[None]:
    """Have rank 0 leave `exit.json` as soon as something fails, before trackers are closed, which show it."""
    try:
        yield
    except FAILURES as error:
        code, reason = ending(error)
        if rank == 0:
            with contextlib.suppress(OSError):  # the error counts more
                run_folder.write_exit(folder, code=code, steps=None, reason=reason)
        raise


def explained(error: BaseException) -> str | None:
    """The sentence for a failure that is known; None for one that only its traceback explains."""
    said = str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return _memory(said)
    if isinstance(error, RuntimeError) and any(sign in said for sign in _NO_MEMORY):
        return _memory(said)
    if isinstance(error, DataError | ModelError | OwnFileError):
        return said
    if (lost := lost_worker(error)) is not None:
        return lost
    if "InvalidCxxCompiler" in f"{type(error).__name__} {said}":
        return "strategies.compile: torch finds no working C++ compiler; install one or set CXX, or remove it"
    if (known := told(error)) is None and isinstance(error, SystemExit):
        return f"something in it ends the program, with exit code {error.code!r}, in the middle of the run"
    return known  # where it arose in a file of the user's own


def _memory(said: str) -> str:
    first = said.strip().splitlines()[0][:200] if said.strip() else "no memory"
    return f"out of memory ({first}); use a smaller batch.microbatch_size, strategies.ac or strategies.fsdp2"
