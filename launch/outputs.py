"""What a command prints and writes: nothing a terminal would obey, and one sentence for what cannot be written."""

import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from ..profiling.trace.spelling import printable
from .errors import UsageError

STDOUT = Path("-")


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Where a file is written. Raises: UsageError in place of what the system says."""
    try:
        yield
    except BrokenPipeError:  # who read it has seen enough
        raise
    except OSError as error:
        where = "standard output" if path == STDOUT else path
        raise UsageError(f"{where}: cannot be written: {error.strerror or error}") from error


def check_target(path: Path) -> None:
    """Look before the work whether a file could be written. Raises: UsageError."""
    if path == STDOUT:
        return
    with writing(path):
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file in it")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")


def show(lines: Iterable[str], *, to_stderr: bool = False) -> None:
    """Print lines, without what a terminal would obey. Raises: UsageError."""
    show_text("\n".join(printable(line) for line in lines), to_stderr=to_stderr)


def show_text(text: str, *, to_stderr: bool = False) -> None:
    """Print a text as it is. Raises: UsageError."""
    if to_stderr:
        print(text, file=sys.stderr)
        return
    try:
        with writing(STDOUT):
            print(text, flush=True)
    except UsageError:
        _give_up_stdout()
        raise


def _give_up_stdout() -> None:
    """Let what is still to be written vanish, or Python would fail on it once more when it ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # it is no file of the system
        return
