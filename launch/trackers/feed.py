"""The training's side of a tracker: a queue with room for so many records, and a thread that empties it into a pipe."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from .sink import Beginning

ROOM = 10_000
"""Records that wait for a tracker that is slow; what comes beyond them it does not get."""
_GRACE_S = 5.0
"""How much longer than its own patience a tracker may take to leave."""
_HURRY_S = 3.0
"""How long the end of a run that failed waits, for other ranks may be waiting for this one."""


class Tracker:
    """A process that shows records somewhere. Nothing here raises, and nothing waits but `close`."""

    def __init__(self, beginning: Beginning, *, command: Sequence[str] = (), room: int = ROOM) -> None:
        self.name, self._patience_s = beginning.tracker, beginning.patience_s
        self._waiting: queue.Queue[bytes | None] = queue.Queue(maxsize=room)
        self._said: deque[str] = deque()
        self._lost = 0
        self._process = self._start(beginning, list(command) or _command())
        if self._process is None:
            return
        self._waiting.put_nowait(_line(asdict(beginning)))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        threading.Thread(target=self._feed, args=(self._process.stdin,), daemon=True).start()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def tell(self, record: Mapping[str, Any]) -> None:
        """Have a record shown; takes microseconds, whatever state the tracker is in."""
        if self._process is None:
            return
        try:
            self._waiting.put_nowait(_line({"record": dict(record), "at_s": time.time()}))
        except queue.Full:
            self._lost += 1

    def news(self) -> list[str]:
        """Lines for the console since it was asked last."""
        return [self._said.popleft() for _ in range(len(self._said))]

    def close(self, code: int, *, hurry: bool = False) -> list[str]:
        """Tell the tracker that the run is over, wait for it as long as agreed, and return the last lines."""
        if self._process is None:
            return self.news()
        deadline = time.monotonic() + (_HURRY_S if hurry else self._patience_s + _GRACE_S)
        with contextlib.suppress(queue.Full):
            self._waiting.put(_line({"end": {"code": code}}), timeout=1)
            self._waiting.put(None, timeout=1)
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
            self._reader.join(1)
        except subprocess.TimeoutExpired:
            if hurry:  # it ends by itself
                return self.news()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._said.append(f"{self.name}: did not finish in time; what it has is in the run folder")
        if self._lost:
            self._said.append(f"{self.name}: was too slow for {self._lost} records; metrics.jsonl has them all")
        return self.news()

    def _start(self, beginning: Beginning, command: list[str]) -> "subprocess.Popen[bytes] | None":
        """The process, in a session of its own: a Ctrl-C is meant for the run."""
        folder = beginning.run_folder / "trackers"
        try:
            folder.mkdir(exist_ok=True)
            with (folder / f"{self.name}.log").open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._said.append(f"{self.name}: cannot be started ({error}); metrics.jsonl has every record")
            return None

    def _feed(self, pipe: IO[bytes]) -> None:
        """From the queue into the pipe, which takes nothing while the tracker is busy."""
        try:
            while (line := self._waiting.get()) is not None:
                pipe.write(line)
                pipe.flush()
        except OSError:  # the tracker is gone; what it wanted to say it has said
            while self._waiting.get() is not None:
                pass
        with contextlib.suppress(OSError):
            pipe.close()

    def _read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self._said.append(line.decode(errors="replace").rstrip())


def _line(message: Mapping[str, Any]) -> bytes:
    return (json.dumps(message, default=str) + "\n").encode()


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", f"{__package__}.process"]


def patience_s(table: Mapping[str, Any]) -> float:
    """How long the end of a run waits for a tracker with these keys."""
    return float(table.get("finish_timeout_s", 30))


def beginning_of(name: str, table: Mapping[str, Any], *, folder: Path, first_step: int, config: Any) -> Beginning:
    """What a tracker's process is told first."""
    return Beginning(
        tracker=name,
        table=table,
        folder=str(folder.resolve()),
        first_step=first_step,
        config=config,
        patience_s=patience_s(table),
    )
