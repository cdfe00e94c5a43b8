"""The training loop: the file that people will read. It knows no strategy, no model and no file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..profiling.record import Marker
from ..profiling.spans import Span
from ..strategies.base import Batch, Program

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class StepData(NamedTuple):
    """What one step trains on: this rank's microbatches and the number of valid tokens on all ranks."""

    microbatches: Sequence[Batch]
    num_tokens: "float | Tensor"


class Feed(Protocol):
    """Where batches come from: `wait` blocks until a step's data is on the host, `to_device` takes it from there."""

    def wait(self) -> Sequence[Batch]:
        """The next step's microbatches on the host."""
        ...

    def to_device(self, microbatches: Sequence[Batch]) -> StepData:
        """The same on the device, with the global number of valid tokens."""
        ...

    def run_ahead(self, mark: Marker) -> None:
        """Start on the next step's data, where that helps; called when this step is queued on the device."""
        ...


class StepResult(NamedTuple):
    """What a finished step leaves for the watchers. Tensors stay on the device until a watcher asks for a number."""

    step: int
    """Optimizer steps done, this one included."""
    loss_sum: "Tensor"
    """This rank's sum of losses."""
    num_tokens: "float | Tensor"
    """Valid tokens of the step on all ranks."""
    grad_norm: "Tensor | None"
    """Global gradient norm before clipping, in the steps that are logged."""
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Something that looks at the training every so many steps; a true answer ends the run after this step."""

    every: int
    """In steps; also called after the first step if `at_first`, and after the last."""
    look: Callable[[StepResult], bool | None]
    at_first: bool = False
    span: Span | None = None


def train(
    program: Program,
    optimizer: "Optimizer",
    feed: Feed,
    *,
    num_steps: int,
    first_step: int,
    base_rates: Sequence[float],
    watchers: Sequence[Watcher],
    wants_norm: Callable[[int], bool],
    mark: Marker,
) -> int:
    """Train from `first_step` up to `num_steps` optimizer steps; return the number done.

    `base_rates` are the learning rates of the optimizer's groups, before the schedule. `wants_norm(step)` says whether
    somebody will look at the gradient norm of a step, so that the others need not compute it.
    """
    # Those that the optimizer was made with: after a forward pass without backward, a sharded model shows others.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = list(zip(optimizer.param_groups, base_rates, strict=True))
    scaling, divisor = program.loss_scaling, program.gradient_divisor
    rate_now: float | None = None
    for step in range(first_step, num_steps):
        done = step + 1
        rate = program.learning_rate(step)
        if rate != rate_now:
            rate_now = rate
            for group, base in groups:
                group["lr"] = base * rate
        with mark(Span.DATA_WAIT):
            host_batches = feed.wait()
        with mark(Span.HOST_TO_DEVICE):
            microbatches, num_tokens = feed.to_device(host_batches)
        loss_sum = program.forward_backward(program, microbatches, divisor / _at_least_one(num_tokens), mark)
        for finish in program.after_backward:
            finish()
        with mark(Span.CLIP):
            scaling.unscale(optimizer)
            grad_norm = program.clip_gradients(program, parameters, want_norm=wants_norm(done))
        with mark(Span.OPTIMIZER):
            scaling.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            for follow in program.after_step:
                follow()
        feed.run_ahead(mark)
        result = StepResult(done, loss_sum, num_tokens, grad_norm, rate * base_rates[0])
        stop = False
        for watcher in watchers:
            if done % watcher.every == 0 or done == num_steps or (watcher.at_first and done == 1):
                if watcher.span is None:
                    stop = watcher.look(result) or stop
                else:
                    with mark(watcher.span):
                        stop = watcher.look(result) or stop
        if stop:
            return done
    return num_steps


def _at_least_one(num_tokens: "float | Tensor") -> "float | Tensor":
    """Where no label of a step counts the sum of losses is 0, and 0 divided by 0 would end up in every weight."""
    return max(1.0, num_tokens) if isinstance(num_tokens, int | float) else num_tokens.clamp(min=1)
