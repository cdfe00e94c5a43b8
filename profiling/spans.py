"""The names a trace may carry, spelled once: the trainer writes them, the analysis reads them.

A span becomes a `record_function` range, so Kineto shows it as `user_annotation` on the CPU timeline and as
`gpu_user_annotation` on the GPU timeline. No string that starts with the prefix stands anywhere else (a test keeps it).
"""

from enum import StrEnum

PREFIX = "stepladder::"


class Span(StrEnum):
    """A phase of the training loop, in the order in which a step passes through them."""

    DATA_WAIT = f"{PREFIX}data_wait"
    """The rank is blocked in `next()` of its loader."""
    HOST_TO_DEVICE = f"{PREFIX}host_to_device"
    """Copies of the microbatches to the device, or the wait for a copy that was started earlier."""
    PIPELINE = f"{PREFIX}pipeline"
    """Forward and backward of a step in a pipeline; without those, what remains is the wait for the neighbours."""
    FORWARD = f"{PREFIX}forward"
    """Forward pass and loss of one microbatch."""
    BACKWARD = f"{PREFIX}backward"
    """Backward pass of one microbatch; ends with its `GRADIENT_SYNC`."""
    GRADIENT_SYNC = f"{PREFIX}gradient_sync"
    """What remains of the gradient reduction after the last gradient was computed: its exposed part on the host."""
    CLIP = f"{PREFIX}clip"
    """Gradient norm, loss-scale removal and clipping."""
    OPTIMIZER = f"{PREFIX}optimizer"
    """Optimizer step and the release of the gradients."""
    LOGGING = f"{PREFIX}logging"
    """Reduction of the displayed values over the ranks, and their writing."""
    CHECKPOINT = f"{PREFIX}checkpoint"
    """Writing of a checkpoint."""
    EVALUATION = f"{PREFIX}evaluation"
    """Held-out evaluation."""

    @property
    def label(self) -> str:
        """The name without the prefix, as tables print it."""
        return self.value.removeprefix(PREFIX)


GARBAGE_COLLECTION = f"{PREFIX}garbage_collection"
"""Python collects its garbage. No phase: it interrupts any of them, on whatever thread made one object too many."""

# Foreign names that the analysis depends on; a test finds them in a trace of the pinned torch.
PROFILER_STEP = "ProfilerStep#"  # torch.profiler marks each `step()` so
DDP_FORWARD = "DistributedDataParallel.forward"
FSDP_PREFIX = "FSDP::"  # FSDP::all_gather, FSDP::post_backward_reduce, ...
OPTIMIZER_STEP_PREFIX = "Optimizer.step#"
GLOO_PREFIX = "gloo:"
NCCL_PREFIX = "nccl:"
