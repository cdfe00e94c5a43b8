"""What rank 0 says while it trains: lines, and on a terminal a progress bar below them."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ..trainer.loop import StepResult
from ..trainer.metrics import duration

_REDRAW_S = 0.2


@dataclass(kw_only=True)
class Console:
    """Writes to a stream; draws a bar only if the stream is a terminal, so that log files stay readable."""

    active: bool
    """False on every rank but 0: nothing is said."""
    num_steps: int
    first_step: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    _started_s: float = field(default_factory=time.monotonic, init=False)
    _drawn_s: float = field(default=0.0, init=False)

    @property
    def draws(self) -> bool:
        """Whether there is a bar."""
        return self.active and self.stream.isatty()

    def say(self, *lines: str) -> None:
        """Write lines, the bar out of their way."""
        if self.active:
            clear = "\r\x1b[K" if self.draws else ""
            self.stream.write("".join(f"{clear}{line}\n" for line in lines))
            self.stream.flush()

    def look(self, result: StepResult) -> None:
        """Redraw the bar, at most five times a second."""
        now = time.monotonic()
        if now - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now
        done = result.step - self.first_step
        left = (now - self._started_s) / max(1, done) * (self.num_steps - result.step)
        filled = 30 * result.step // self.num_steps
        bar = "#" * filled + "." * (30 - filled)
        self.stream.write(f"\r\x1b[K[{bar}] {result.step}/{self.num_steps}  eta {duration(left)}")
        self.stream.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self.draws:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def shown(path: Path) -> str:
    """A path as the user would write it: relative, where it lies below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
