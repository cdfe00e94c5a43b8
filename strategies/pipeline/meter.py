"""How much of a pipeline step a rank works, measured on its device."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


class BusyMeter:
    """Adds up the time inside `busy`, and that inside `step` around it, over some steps.

    Not over the first steps, which compile and open connections. On a GPU by events on the stream of the computation,
    read when somebody asks: the host neither waits nor matters.
    """

    def __init__(self, device: torch.device, *, first_step: int = 2, num_steps: int = 10) -> None:
        self.device = device
        self.measured = range(first_step, first_step + num_steps)
        self.num_steps = 0
        self.on = False
        self._steps: list[tuple[Any, Any]] = []
        self._works: list[tuple[Any, Any]] = []

    @contextmanager
    def step(self) -> Generator[None]:
        """Around one step."""
        self.on = self.num_steps in self.measured
        begin = self._now() if self.on else None
        yield
        if self.on:
            self._steps.append((begin, self._now()))
        self.num_steps += 1
        self.on = False

    @contextmanager
    def busy(self) -> Generator[None]:
        """Around forward, loss or backward of one microbatch in one stage."""
        if not self.on:
            yield
            return
        begin = self._now()
        yield
        self._works.append((begin, self._now()))

    def totals_s(self) -> tuple[float, float, int]:
        """Seconds of work, seconds of steps, number of steps."""
        return self._sum(self._works), self._sum(self._steps), len(self._steps)

    def forget(self) -> None:
        """Begin anew, with the next step."""
        self._steps.clear()
        self._works.clear()

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _sum(self, pairs: list[tuple[Any, Any]]) -> float:
        if self.device.type != "cuda":
            return sum(end - begin for begin, end in pairs)
        torch.cuda.synchronize(self.device)
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
