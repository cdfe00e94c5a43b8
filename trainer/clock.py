"""The time and the loss of every step, taken without waiting for the device: what comparisons are made of."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .loop import StepResult

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(kw_only=True)
class StepClock:
    """Notes when each step of this rank ends: events of the device on a GPU, the monotonic clock on a CPU.

    Should look first of all watchers, so that the end of a step is always the same place in the loop.
    """

    device: "torch.device"
    began_at: float = field(default=0.0, init=False)
    """When the first step began, in seconds since 1970."""
    _ends: list[Any] = field(default_factory=list[Any], init=False)
    _loss_sums: "list[Tensor]" = field(default_factory=list, init=False)
    _num_tokens: "list[float | Tensor]" = field(default_factory=list, init=False)

    def start(self) -> None:
        """Begin; called right before the first step."""
        self.began_at = time.time()
        self._ends.append(self._now())

    def look(self, result: StepResult) -> None:
        """Note the end of a step; the loss is copied on the device, for a captured graph writes each into one place."""
        self._ends.append(self._now())
        self._loss_sums.append(result.loss_sum.detach().clone())
        self._num_tokens.append(result.num_tokens)

    def step_s(self) -> list[float]:
        """Seconds of each step; waits for the device, so only when all is over."""
        pairs = zip(self._ends, self._ends[1:], strict=False)
        if self.device.type != "cuda":
            return [end - begin for begin, end in pairs]
        import torch

        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]

    def loss_sums(self) -> "Tensor":
        """Sum of the losses of this rank in each step, float64."""
        import torch

        kept = [each.double().reshape(()) for each in self._loss_sums]
        return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.float64, device=self.device)

    def num_tokens(self) -> list[float]:
        """Valid tokens of each step, on all ranks."""
        return [float(each) for each in self._num_tokens]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
