"""Which files are the traces of a job."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import TraceError

_SUFFIXES = (".json", ".json.gz")
Paths = Path | str | Iterable[Path | str]
"""A file or a folder, or some of them."""
_WINDOW = re.compile(r"rank-(\d+)\.step-(\d+)\.pt\.trace\.json(\.gz)?")
_MAX_NAMES = 5


def trace_files(paths: Paths) -> list[Path]:
    """The traces among files and folders; of a rank's windows in one folder, the newest.

    Raises: TraceError if there is no trace.
    """
    return choose_traces(paths)[0]


def choose_traces(paths: Paths) -> tuple[list[Path], list[str]]:
    """`trace_files`, and what was left out: paths without a trace, and others of a folder; a sentence each.

    Raises: TraceError.
    """
    found: list[Path] = []
    notes: list[str] = []
    for path in [paths] if isinstance(paths, Path | str) else paths:
        try:
            newest, others = _of_path(Path(path))
        except TraceError as error:
            notes.append(str(error))
            continue
        found += newest
        if others:
            notes.append(_left_out(Path(path), others))
    if not found:
        raise TraceError("; ".join(notes) or "no traces: no path was given; name files, or folders of them")
    return list(dict.fromkeys(found)), notes


def _of_path(path: Path) -> tuple[list[Path], list[Path]]:
    """The traces that a path stands for, and what else is in it. Raises: TraceError if there is none."""
    try:
        if path.is_dir():
            return _newest(_inside(path))
        if path.is_file():
            return [path], []
        if path.exists():
            raise TraceError(
                f"{path}: a pipe or a device, which cannot be read twice; keep the trace in a file, "
                ".json or .json.gz, and give that"
            )
        raise TraceError(f"{path}: no such file or folder")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error


def is_among(path: Path, given: Iterable[Path]) -> bool:
    """Whether a file is one of some traces, or would be read as one the next time. Raises: OSError."""
    for each in given:
        if not each.is_dir():
            same = [each]
        elif path.name.endswith(_SUFFIXES) and path.parent.samefile(each):
            return True
        else:
            same = [file for file in each.iterdir() if file.name.endswith(_SUFFIXES)]
        if path.is_file() and any(file.exists() and path.samefile(file) for file in same):
            return True
    return False


def _inside(folder: Path) -> list[Path]:
    """All traces of a folder, in the order of their ranks. Raises: TraceError if there is none; OSError."""
    files = [each for each in folder.iterdir() if each.name.endswith(_SUFFIXES) and each.is_file()]
    if not files:
        raise TraceError(f"{folder}: no trace in this folder; traces end in .json or .json.gz")
    return sorted(files, key=_numerals_as_numbers)


def _left_out(folder: Path, others: Sequence[Path]) -> str:
    names = ", ".join(each.name for each in others[:_MAX_NAMES]) + (", ..." if len(others) > _MAX_NAMES else "")
    return (
        f"{folder}: {len(others)} of its files beside the windows of our own profiler were not read: {names}; "
        "name those that belong to it"
    )


def _numerals_as_numbers(path: Path) -> list[tuple[int, str]]:
    """A key by which rank 2 comes before rank 10."""
    parts = re.split(r"(\d{1,18})", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _newest(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Of the files that our own profiler has named, each rank's last window, and the files it has not; else all."""
    last: dict[int, tuple[int, Path]] = {}
    others: list[Path] = []
    for path in files:
        if match := _WINDOW.fullmatch(path.name):
            rank, step = int(match[1]), int(match[2])
            last[rank] = max(last.get(rank, (-1, path)), (step, path))
        else:
            others.append(path)
    return ([path for _, (_, path) in sorted(last.items())], others) if last else (others, [])
