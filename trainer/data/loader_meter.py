"""What a rank's loader did, summed over a run; without torch, for whoever reads it afterwards."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import DataError
from .stages import Making, Stage


@dataclass(frozen=True, kw_only=True)
class LoaderTimes:
    """A rank's loader in numbers, from its second step on: the first one also starts the workers. Times in seconds."""

    run_s: float
    """Time of the steps, pauses for evaluation and checkpoints left out."""
    waited_s: float
    """Part of it blocked in `next()`."""
    microbatches: int
    make_s: float
    """Work to make them, wherever it was done."""
    stage_s: Mapping[str, float]
    """The same by stage, as far as the source tells."""
    ready: float | None
    """Microbatches that lay ready when one was asked for, on average; None without workers."""
    copy_s: float
    """Copies to the device, as the device saw them."""
    copies: int
    overlapped: int
    """Steps whose copies had ended before the step asked for them."""
    skipped: tuple[str, ...] = ()
    """A sentence for each damaged sample that took part without a label."""

    @property
    def wait_percent(self) -> float:
        """Part of the run in which the rank waited for data."""
        return min(100.0, 100 * self.waited_s / self.run_s) if self.run_s > 0 else 0.0

    @property
    def make_ms(self) -> float:
        """Work for one microbatch."""
        return 1000 * self.make_s / max(1, self.microbatches)

    @property
    def busy_ms(self) -> float:
        """Time between two microbatches that was spent on anything but waiting."""
        return 1000 * max(0.0, self.run_s - self.waited_s) / max(1, self.microbatches)

    @staticmethod
    def of(told: Mapping[str, Any]) -> "LoaderTimes":
        """What `loader.json` tells of a rank. Raises: KeyError, TypeError."""
        values: dict[str, Any] = {**told, "skipped": tuple(told["skipped"])}
        return LoaderTimes(**values)


@dataclass(kw_only=True)
class LoaderMeter:
    """Adds up how a rank's microbatches were made."""

    max_skipped: int | None = None
    """Different damaged samples after which the run ends; None if the source skips none."""
    microbatches: int = field(default=0, init=False)
    make_s: float = field(default=0.0, init=False)
    stage_s: list[float] = field(default_factory=lambda: [0.0] * len(Stage), init=False)
    skipped: dict[str, None] = field(default_factory=dict[str, None], init=False)
    _asks_met: int = field(default=0, init=False)
    _asked_s: deque[float] = field(default_factory=lambda: deque(maxlen=256), init=False)

    def asked(self) -> None:
        """The rank asks for a microbatch."""
        self._asked_s.append(time.monotonic())

    def received(self, making: Making) -> None:
        """The microbatch has come. Raises: DataError if more samples were skipped than may be.

        It lay ready in all the asks since it was made: summed over microbatches and divided by asks, that is how many
        lay ready on average, without a look into any queue.
        """
        self.microbatches += 1
        self.make_s += making.total_s
        for stage, spent in enumerate(making.stage_s):
            self.stage_s[stage] += spent
        for asked_s in reversed(self._asked_s):
            if asked_s < making.made_at_s:
                break
            self._asks_met += 1
        if making.skipped:
            self._skip(making.skipped)

    def _skip(self, sentences: tuple[str, ...]) -> None:
        self.skipped |= dict.fromkeys(sentences)
        if self.max_skipped is not None and len(self.skipped) > self.max_skipped:
            raise DataError(
                f"data: {len(self.skipped)} damaged samples, but only {self.max_skipped} may be skipped; "
                f"the last: {sentences[-1]}"
            )

    @property
    def ready(self) -> float:
        """Microbatches that lay ready when one was asked for, on average."""
        return self._asks_met / max(1, self.microbatches)
