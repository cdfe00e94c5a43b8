"""Taking turns: arms that are measured together never run together.

Every rank of an arm stops at the beginning of a step, tells the driver what it has measured, and waits to be told to
go on. So all arms see the same minutes of a machine whose speed changes by the minute, and each leaves without the
teardown in which gloo sometimes aborts.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(kw_only=True)
class Turns:
    """When a rank runs: after `warmup` steps, turns of `settle` steps and `blocks` measured blocks of steps.

    A turn's figure is its fastest block: what else the machine does can only make a block slower.
    """

    warmup: int
    settle: int
    """Steps at the beginning of a turn that bring caches back and are not measured."""
    block: int
    """Steps that are timed together."""
    blocks: int
    go_fd: int
    """Read a byte from here before each turn; the end of the file ends the process."""
    told_fd: int
    """One JSON object a line goes here at the end of the warmup and of each turn."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the first message says."""
    _steps: int = field(default=0, init=False)
    _next: int = field(default=0, init=False)
    _marks_ns: list[int] = field(default_factory=list, init=False)
    _is_warm: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._next = self.warmup + 1

    def step_begins(self) -> None:
        """Called by every arm at the beginning of each batch; 0.1 us where there is nothing to do."""
        self._steps += 1
        if self._steps == self._next:
            self._mark()

    def _mark(self) -> None:
        now_ns = time.perf_counter_ns()
        if not self._is_warm:
            self._is_warm = True
            self._wait(self.about)
            return
        self._marks_ns.append(now_ns)
        self._next += self.block
        if len(self._marks_ns) > self.blocks:
            spans = [after - before for before, after in pairwise(self._marks_ns)]
            self._wait({"step_us": min(spans) / self.block / 1000})

    def _wait(self, message: dict[str, Any]) -> None:
        os.write(self.told_fd, (json.dumps(message) + "\n").encode())
        if not os.read(self.go_fd, 1):
            sys.stdout.flush()
            os._exit(0)
        self._marks_ns.clear()
        self._next = self._steps + self.settle
        if self.settle == 0:
            self._mark()
