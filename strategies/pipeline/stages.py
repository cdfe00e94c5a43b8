"""A stage of torch's pipeline that takes its microbatches from the trainer and says what it is doing.

[Note: shapes between stages]
torch can find the shapes of what stages exchange by running them once and sending the answers along, which takes real
ranks, runs hooks that count, and is done otherwise in each version. Here they follow from the facts: B from the batch,
T divided by what cp and tp cut it into, the model's width, and the dtype that FSDP2's policy or the parameters give.
A stage casts what it sends to that dtype and compares the shape, so a wrong fact is an error and not a hang.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage

from ...profiling.record import Marker, no_span
from ...profiling.spans import Span
from ..base import Batch, Program
from ..errors import StrategyError
from .meter import BusyMeter


@dataclass(kw_only=True)
class Step:
    """What the stages of a rank share during one step."""

    meter: BusyMeter
    program: Program
    batches: Sequence[Batch] = ()
    """This rank's part of each microbatch, with positions."""
    scale: "float | Tensor" = 1.0
    mark: Marker = no_span
    losses: list[Tensor] = field(default_factory=list[Tensor])
    """Sum of the losses of each microbatch, where this rank has the last stage."""

    def working(self, span: Span) -> AbstractContextManager[Any]:
        """Around a piece of work."""
        stack = ExitStack()
        stack.enter_context(self.mark(span))
        stack.enter_context(self.meter.busy())
        return stack

    def loss(self, output: Tensor, target: object) -> Tensor:
        """What backward starts from: the scaled loss of the next microbatch; the last stage takes them in order."""
        batch = self.batches[len(self.losses)]
        with self.working(Span.FORWARD), self.program.forward_context():
            loss = self.program.loss(output, batch)
            self.losses.append(loss.detach())
            return self.program.loss_scaling.scale(loss * self.scale)


class Stage(PipelineStage):
    """One stage on this rank. The overridden methods are those that torch's schedules call."""

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        *,
        index: int,
        num_stages: int,
        ids: Tensor,
        hidden: Tensor,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        """`ids` and `hidden` are meta tensors like the inputs of the first stage and what goes between stages."""
        super().__init__(
            module,
            index,
            num_stages,
            device,
            input_args=(ids if index == 0 else hidden,),
            output_args=(hidden,),  # of the last stage too: nobody is sent its output
            group=group,
        )
        self.step = step
        self.hidden = hidden
        self.batch: Batch | None = None

    def forward_one_chunk(
        self, fwd_chunk_id: int, args: Any, kwargs: Any = None, save_forward_output: bool = True
    ) -> Any:
        """Forward pass of one microbatch; whatever the schedule hands in, the inputs are those of the step."""
        self.batch = self.step.batches[fwd_chunk_id]
        inputs = (self.batch.inputs,) if self.is_first else ()
        with self.step.working(Span.FORWARD):
            return super().forward_one_chunk(fwd_chunk_id, inputs, {}, save_forward_output)

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> Any:
        """What was received, ready for a gradient; torch 2.11 would leave it as an evaluation has first made it."""
        received = super()._retrieve_recv_activations(fwd_chunk_id)
        for hidden in received:
            hidden.requires_grad_(self.has_backward)
        return received

    def forward_maybe_with_nosync(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, with positions, in the program's context."""
        assert self.batch is not None
        with self.step.program.forward_context():
            output = self.submod(*args, self.batch.positions)
        if self.is_last:
            return output
        if output.shape != self.hidden.shape:
            raise StrategyError(
                f"strategies.pp: stage {self.stage_index} returned {list(output.shape)}, but the facts of the model "
                f"and its strategies say {list(self.hidden.shape)}; does forward hand on what stages lack?"
            )
        return output.to(self.hidden.dtype).contiguous()

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Backward of one microbatch, or of its inputs only."""
        if self.has_backward:
            with self.step.working(Span.BACKWARD):
                super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> Any:
        """The gradients of the weights that were left for later."""
        if self.has_backward:
            with self.step.working(Span.BACKWARD):
                super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> Any:
        """Messages with the gradients for the stage before, in one piece each: an expanded one cannot be sent."""
        if bwd_chunk_id in self.bwd_cache:
            grads = self.bwd_cache[bwd_chunk_id]
            self.bwd_cache[bwd_chunk_id] = tuple(None if grad is None else grad.contiguous() for grad in grads)
        return super().get_bwd_send_ops(bwd_chunk_id)

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Reduce the gradients that all microbatches have added to."""
        if self.has_backward:
            with self.step.mark(Span.GRADIENT_SYNC):
                super().perform_reduce_grad(grad_scale_factor)

    def get_local_bwd_output(self, mb_index: int) -> Any:
        """Gradients for the stage before, on the same rank; torch's own refuses an evaluation."""
        return super().get_local_bwd_output(mb_index) if self.has_backward else ()

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        """Gradients from the stage after, on the same rank."""
        if self.has_backward:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def _warmup_forward_vote(self, has_backward: bool, received_acc: Any = None) -> Tensor:
        """Say that all shapes are known, about which torch 2.13 votes; its messages open the connections."""
        return torch.ones_like(super()._warmup_forward_vote(has_backward, received_acc))

    def _warmup_backward_result(self, received_result: Any = None) -> Tensor:
        return torch.ones_like(super()._warmup_backward_result(received_result))

    def _post_metadata_inference_cleanup(self) -> None:
        """Do nothing: torch 2.13 would drop the gradients of sharded parameters whenever an evaluation begins."""

    def _validate_fwd_outputs(self, outputs: Any) -> None:
        """Do nothing: torch 2.11 would compare the last stage's output too, whose shape is nobody else's business."""
