"""Failures of a running training that a user can mend: told in a sentence, with exit code 1."""

from ..trainer.data.errors import DataError, lost_worker
from ..trainer.models.errors import ModelError
from ..trainer.own_file import OwnFileError, told

_NO_MEMORY = ("alloc_cpu.cpp", "DefaultCPUAllocator", "CUDA out of memory", "HIP out of memory")


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
