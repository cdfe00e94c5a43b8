"""Starts a command, and says how long it took and how much memory it and its children needed together."""

import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

_EVERY_S = 0.02
_PAGES_EVERY_S = 0.5
_GROWN = 1.01


@dataclass(frozen=True, kw_only=True)
class Run:
    """A command that has ended."""

    wall_s: float
    peak_mb: float
    """10^6 bytes. The larger of two figures: the most that all its processes together held at one of the moments looked
    at, each with its share of what it shares (PSS); the most that one process held at any moment (`ru_maxrss`)."""
    code: int
    output: str
    errors: str


def run(command: Sequence[str | Path]) -> Run:
    """A fresh process, from its start to its end."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        begin = perf_counter()
        process = subprocess.Popen([str(each) for each in command], stdout=output, stderr=errors)
        ended, seen = threading.Event(), [0]
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, seen))
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        wall_s = perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        texts: list[str] = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    peak_mb = max(used.ru_maxrss, *seen) * 1024 / 1e6
    return Run(wall_s=wall_s, peak_mb=peak_mb, code=process.returncode, output=texts[0], errors=texts[1])


def _watch(pid: int, ended: threading.Event, seen: list[int]) -> None:
    """Note the largest sum; in KiB.

    To share out pages the kernel walks them all, and whoever needs a new one waits: asked for every 20 ms, that made a
    process of 3 GB three times slower. So it is asked when the resident pages, which cost nothing to read, have grown.
    """
    most_resident, asked_s = 0.0, 0.0
    while not ended.wait(_EVERY_S):
        processes = _tree(pid)
        resident = sum(map(_resident_pages, processes))
        if resident > most_resident * _GROWN or perf_counter() - asked_s > _PAGES_EVERY_S:
            most_resident = max(most_resident, resident)
            seen[0] = max(seen[0], sum(map(_share_kib, processes)))
            asked_s = perf_counter()


def _tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        try:
            children = [path.read_text() for path in Path(f"/proc/{each}/task").glob("*/children")]
        except OSError:
            continue
        found += [int(child) for line in children for child in line.split()]
    return found


def _resident_pages(pid: int) -> int:
    """Pages in memory, those that are shared in full; 0 if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def _share_kib(pid: int) -> int:
    """Proportional set size; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
