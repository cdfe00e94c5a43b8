"""How far a comparison is: lines, and on a terminal a bar with the time that is left at most."""

import contextlib
import math
import sys
from dataclasses import dataclass, field
from typing import TextIO

from ...trainer.metrics import duration
from .experiment import Told

_WIDTH = 24


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Writes to streams: lines to one, the bar to the other, and that only if it is a terminal."""

    lines: TextIO = field(default_factory=lambda: sys.stdout)
    bar: TextIO = field(default_factory=lambda: sys.stderr)

    def told(self) -> Told:
        """What the experiment calls."""
        return Told(say=self.say, progress=self.show)

    def say(self, line: str) -> None:
        """Write lines, the bar out of their way."""
        with contextlib.suppress(OSError):  # nobody reads any more: no reason to stop measuring
            self.clear()
            print(line, file=self.lines, flush=True)

    def show(self, what: str, done: float, left_s: float) -> None:
        """Draw the bar. done: share from 0 to 1. left_s: infinite if it is not known."""
        if self.bar.isatty():
            filled = round(_WIDTH * min(1.0, max(0.0, done)))
            left = "" if math.isinf(left_s) else f", at most {duration(max(0.0, left_s))} left"
            self.bar.write(f"\r\x1b[K[{'#' * filled}{'.' * (_WIDTH - filled)}] {what}{left}")
            self.bar.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self.bar.isatty():
            self.bar.write("\r\x1b[K")
            self.bar.flush()
