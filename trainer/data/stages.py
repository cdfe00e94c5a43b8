"""What making a microbatch takes, stage by stage: measured where it is made, handed over with it."""

import time
from enum import IntEnum
from typing import NamedTuple, Protocol, cast

from ...strategies.base import Batch


class Stage(IntEnum):
    """What is done to samples before they are a batch on the host."""

    READ = 0
    DECODE = 1
    TOKENISE = 2
    COLLATE = 3


class Making(NamedTuple):
    """How one microbatch was made."""

    total_s: float
    stage_s: tuple[float, ...]
    """By `Stage`; empty if the source does not tell its stages."""
    made_at_s: float
    """When it was ready, by the clock that all processes of a machine share (`time.monotonic`)."""
    skipped: tuple[str, ...] = ()
    """A sentence for each damaged sample in it that counts nothing."""


class Made(NamedTuple):
    """A microbatch and how it was made: a named tuple, since torch's pinning of memory looks into those."""

    batch: Batch
    making: Making


class StageClock:
    """Splits the time of one microbatch into stages, each `lap` taking what has passed since the one before."""

    def __init__(self) -> None:
        self.stage_s = [0.0] * len(Stage)
        self.skipped: list[str] = []
        self.started_s = self._since_s = time.perf_counter()

    def lap(self, stage: Stage) -> None:
        """What has passed since the last lap was this stage."""
        now = time.perf_counter()
        self.stage_s[stage] += now - self._since_s
        self._since_s = now

    def skip(self, sentence: str) -> None:
        """A damaged sample takes part without a label."""
        self.skipped.append(sentence)

    def making(self) -> Making:
        """All of it, the batch being ready now."""
        total_s = time.perf_counter() - self.started_s
        return Making(total_s, tuple(self.stage_s), time.monotonic(), tuple(self.skipped))


class Measured(Protocol):
    """A source that tells its stages."""

    def measured(self, indices: object, clock: StageClock) -> Batch:
        """As `__getitems__`, with laps on the clock."""
        ...


def make(source: object, indices: object) -> Made:
    """One microbatch of a source, timed."""
    if hasattr(source, "measured"):
        clock = StageClock()
        batch = cast(Measured, source).measured(indices, clock)
        return Made(batch, clock.making())
    started_s = time.perf_counter()
    batch = cast("_Plain", source).__getitems__(indices)
    return Made(batch, Making(time.perf_counter() - started_s, (), time.monotonic()))


class _Plain(Protocol):
    def __getitems__(self, indices: object) -> Batch: ...
