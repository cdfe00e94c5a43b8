"""What the commands that measure have in common: lines and a bar, Ctrl-C, how to go on, the results as JSON."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from .errors import ExitCode, UsageError

if TYPE_CHECKING:
    from .compare.experiment import Told


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command has found."""

    results: dict[str, Any]
    lines: Iterable[str]
    folder: Path


def carry_out(work: "Callable[[Told], Done]", options: argparse.Namespace, given: Sequence[str]) -> int:
    """Measure, and print what was found. options: with `json`. Raises: UsageError."""
    from .compare.experiment import ExperimentError
    from .compare.progress import Progress

    to_stdout = str(options.json) == "-"
    if options.json is not None and not to_stdout and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no such folder; make it first")
    if options.json is not None and options.json.is_dir():
        raise UsageError(f"--json {options.json}: is a folder; name a file in it")
    progress = Progress(lines=sys.stderr if to_stdout else sys.stdout)
    opened: list[Path] = []
    asked_to_stop: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked_to_stop.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # as Ctrl-C: the running segment ends too
    try:
        done = work(replace(progress.told(), opened=opened.append))
    except UsageError:
        progress.clear()
        raise
    except ExperimentError as error:
        progress.clear()
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        progress.clear()
        print(f"stopped; to go on: {again(given, opened)}", file=sys.stderr)
        return ExitCode.TERMINATED if asked_to_stop else ExitCode.INTERRUPTED
    progress.clear()
    told = json.dumps(done.results, indent=1)
    if to_stdout:
        print(told)
    else:
        page = done.folder / "report.html"
        print(
            "", *done.lines, f"results     {done.folder}", *([f"report      {page}"] if page.exists() else []), sep="\n"
        )
        if options.json is not None:
            _write(options.json, told)
    return ExitCode.DONE


def _write(path: Path, told: str) -> None:
    """The results where they were asked for. Raises: UsageError; they lie in the folder in any case."""
    try:
        path.write_text(told + "\n")
    except OSError as error:
        raise UsageError(
            f"--json {path}: cannot be written ({error.strerror}); results.json of the folder has it"
        ) from error


def again(given: Sequence[str], opened: Sequence[Path]) -> str:
    """The command that continues what was begun."""
    words = ["stepladder", *given]
    if opened and "--resume" not in words:
        words += [*(() if "--out" in words else ("--out", str(opened[0]))), "--resume"]
    return shlex.join(words)
