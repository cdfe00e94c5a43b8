"""Forward and backward of one optimizer step, when no pipeline owns them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..profiling.record import Marker, no_span
from ..profiling.spans import Span
from ..strategies.base import Batch, Program

if TYPE_CHECKING:
    from torch import Tensor


def accumulate(program: Program, microbatches: Sequence[Batch], scale: "float | Tensor", mark: Marker) -> "Tensor":
    """Add the gradients of `scale * loss` of each microbatch; reduce them over the ranks with the last one.

    Returns: this rank's sum of losses, unscaled and detached, on the device.
    """
    total: Tensor | None = None
    seed: Tensor | None = None
    last = len(microbatches) - 1
    for i, whole in enumerate(microbatches):
        batch = program.shard_batch(whole)
        with program.before_microbatch(i == last):
            with mark(Span.FORWARD), program.forward_context():
                loss = program.loss(program.model(*batch.arguments), batch)
            with mark(Span.BACKWARD):
                seed = _seed(scale, loss) if seed is None else seed
                backward(program.loss_scaling.scale(loss), seed, mark)
        detached = loss.detach()
        total = detached if total is None else total + detached
    assert total is not None, "a step needs at least one microbatch"
    return total


def _seed(scale: "float | Tensor", loss: "Tensor") -> "Tensor":
    """The gradient with which backward starts: `scale` like the loss. A factor in the graph would cost two kernels."""
    return loss.new_full((), scale) if isinstance(scale, int | float) else scale.to(loss)


def backward(loss: "Tensor", seed: "Tensor", mark: Marker) -> None:
    """Run backward from `seed`; mark what the reduction takes after the last gradient as `GRADIENT_SYNC`.

    [Note: exposed gradient reduction]
    DDP and FSDP2 wait for their last reductions in callbacks that autograd runs when all gradients are computed, in
    the order in which they were queued. A callback queued from the very first hook, the one on the loss, runs before
    theirs; when it queues another one, that runs after theirs. Between the two lies what backward did not hide. Both
    run on one thread, which for CUDA is not the one that called `backward`.
    """
    if mark is no_span:
        loss.backward(seed)
        return
    from torch.autograd import Variable

    engine: Any = Variable._execution_engine  # pyright: ignore[reportPrivateUsage]
    span = mark(Span.GRADIENT_SYNC)

    def open_span() -> None:
        span.__enter__()
        engine.queue_callback(lambda: span.__exit__(None, None, None))

    def queue(grad: "Tensor") -> None:
        engine.queue_callback(open_span)

    loss.register_hook(queue)
    loss.backward(seed)
