"""CUDA graph: forward and backward of a step are recorded once, and launched as a whole from then on.

Problem: a small model's kernels are shorter than their launches, and the device waits for Python.
Mechanism: after a few ordinary steps one step is captured: its kernels, in order, at fixed addresses. A step then is
copies into the input buffers and one launch, and leaves its gradients where the captured one did.
Saves: the host's time for forward and backward, all of it; the memory traffic and the kernels stay.
Costs: shapes are fixed; the memory of the captured step stays reserved; no Python runs in it, so a breakdown shows all
of it as backward.
When: one GPU, steps that the host cannot keep up with (idle time between kernels in a trace).
When not: kernels are long; several GPUs, where strategies.compile with few launches serves better.
Measure: ms/step and launches a step with and without; the losses must be equal.
Source: Ng & Feng 2021, "Accelerating PyTorch with CUDA Graphs"; torch.cuda.graph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from ..profiling.record import Marker, no_span
from ..profiling.spans import Span
from .base import Batch, ForwardBackward, Owns, Program, Run
from .changes import Changes, MayChange
from .errors import StrategyError
from .limits import PositiveInt
from .mesh import Axis
from .refusal import Refusal
from .wins import WAITING, Wins

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Result = TypeVar("Result")
_COLLECTIVES = "the ranks' collectives would be captured, which nobody has tried here"
_ONE_GPU = "remove strategies.cuda_graph, or run on one GPU"


@dataclass(frozen=True, kw_only=True)
class CudaGraph:
    """Captures forward and backward of a step, all its microbatches, and replays them."""

    warmup_steps: PositiveInt = 3
    """Ordinary steps before the capture, in which libraries choose their kernels and compilers compile."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER)
    wins: ClassVar[Wins] = Wins(on=WAITING)
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(beside="device cpu", why="there are no CUDA graphs without a GPU", instead="remove the strategy"),
        Refusal(
            beside="ac",
            why="a recomputation restores the state of the random number generator, which a capture forbids",
            instead="remove one of the two",
        ),
        Refusal(
            beside="ddp",
            why="DistributedDataParallel rebuilds its buckets in the first steps and must be made on the stream that "
            "captures",
            instead=_ONE_GPU,
        ),
        Refusal(
            beside="fsdp2",
            why="FSDP2 allocates and frees the gathered parameters in every step",
            instead="use strategies.amp for the compute dtype, on one GPU",
        ),
        Refusal(
            beside="optimizer_in_backward",
            why="the learning rate of the captured step would be that of all steps",
            instead="remove one of the two",
        ),
        *(
            Refusal(beside=f"mesh.{axis}", why=_COLLECTIVES, instead=_ONE_GPU)
            for axis in ("dp_replicate", "dp_shard", "cp", "tp")
        ),
        Refusal(
            beside="data documents",
            why="the mask of a batch's documents is laid out anew in every step",
            instead="use packing = 'split', which lets attention see across documents",
        ),
        Refusal(
            beside="mesh.ep",
            why="the host waits for the number of rows that each rank gets",
            instead=_ONE_GPU,
        ),
        Refusal(
            beside="amp",
            setting="with strategies.amp.dtype = 'fp16'",
            holds=lambda strategy, run: run.owners.get(Owns.GRADIENT_SCALE) == "amp",
            why="the loss scale changes between the steps",
            instead="use dtype = 'bf16'",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """The order of forward and backward: what is captured."""
        return frozenset({Owns.FORWARD_BACKWARD})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse a capture after the last step, and models in which the host must know values."""
        if self.warmup_steps >= run.num_steps:
            yield f"warmup_steps = {self.warmup_steps}: the run ends after {run.num_steps} steps; use fewer"
        if run.facts.experts is not None and Owns.COMPUTE_DTYPE not in run.owners:
            yield (
                "in float32 the host must know how many rows each expert gets, which a capture forbids; "
                "add strategies.amp = {}"
            )
        elif run.facts.experts is not None and not run.facts.experts.can_be_grouped(run.degrees[Axis.TP]):
            experts = run.facts.experts
            yield (
                f"experts of width {experts.ffn_dim} in a model of width {experts.dim} are computed one by one, and "
                f"the host must know how many rows each gets, which a capture forbids; "
                f"make both widths multiples of {experts.grouped_multiple}"
            )

    def apply(self, program: Program, run: Run) -> Program:
        """Put the capture around what has been decided about forward and backward so far."""
        assert run.device is not None, "a capture needs the device"
        graphed = capturing(program.forward_backward, recorder=CudaRecorder(run.device), warmup_steps=self.warmup_steps)
        return replace(program, forward_backward=graphed)


class Recorder(Protocol):
    """How work is recorded and repeated."""

    def warm(self, work: Callable[[], Result]) -> Result:
        """Do the work as it will be recorded, without recording it."""
        ...

    def record(self, work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Record the work without doing it: its result, with no values yet, and how to fill it in by doing the work."""
        ...


class CudaRecorder:
    """Records into a CUDA graph."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device)  # one for all steps: what it has allocated only it allocates again

    def warm(self, work: Callable[[], Result]) -> Result:
        """On another stream than the default one, as a capture is."""
        import torch

        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Capture; other threads (a loader that pins memory) may go on calling CUDA."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """A captured step: where it reads, where it writes, and how to run it."""

    inputs: "tuple[Batch, ...]"
    scale: "Tensor"
    loss_sum: "Tensor"
    gradients: "tuple[tuple[Tensor, Tensor], ...]"
    """Each parameter that has one, and its gradient."""
    replay: Callable[[], None]


def capturing(forward_backward: ForwardBackward, *, recorder: Recorder, warmup_steps: int) -> ForwardBackward:
    """`forward_backward`, recorded when it has been called `warmup_steps` times and replayed ever after.

    [Note: gradients at fixed addresses]
    The loop drops the gradients after each step. So they do not exist when the step is captured: backward creates them,
    at addresses that belong to the graph and are kept for it here. Every replay writes them anew, from the first
    microbatch's on, so that nothing has to be zeroed; afterwards they are handed to the parameters again.
    """
    num_calls, recorded = 0, None

    def graphed(program: Program, microbatches: Sequence[Batch], scale: "float | Tensor", mark: Marker) -> "Tensor":
        nonlocal num_calls, recorded
        num_calls += 1
        if num_calls <= warmup_steps:
            return recorder.warm(lambda: forward_backward(program, microbatches, scale, mark))
        if recorded is None:
            recorded = _record(forward_backward, recorder, program, microbatches, scale)
        with mark(Span.HOST_TO_DEVICE):
            _fill(recorded, microbatches, scale)
        with mark(Span.BACKWARD):
            recorded.replay()
        for parameter, gradient in recorded.gradients:
            parameter.grad = gradient
        return recorded.loss_sum.clone()  # the next replay writes over it

    return graphed


def _record(
    forward_backward: ForwardBackward,
    recorder: Recorder,
    program: Program,
    microbatches: Sequence[Batch],
    scale: "float | Tensor",
) -> _Recorded:
    """Capture a step that reads copies of these inputs."""
    import torch

    inputs = tuple(batch.map(lambda tensor: tensor.clone()) for batch in microbatches)
    device = inputs[0].inputs.device
    held = torch.as_tensor(scale, dtype=torch.float32, device=device).clone()
    parameters = [parameter for parameter in program.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is None for parameter in parameters), "gradients must be made within the capture"
    loss_sum, replay = recorder.record(lambda: forward_backward(program, inputs, held, no_span))
    gradients = tuple((each, each.grad) for each in parameters if each.grad is not None)
    return _Recorded(inputs=inputs, scale=held, loss_sum=loss_sum, gradients=gradients, replay=replay)


def _fill(recorded: _Recorded, microbatches: Sequence[Batch], scale: "float | Tensor") -> None:
    """Copy a step's inputs to where the captured step reads them. Raises: StrategyError for other shapes."""
    held, given = _tensors(recorded.inputs), _tensors(microbatches)
    has, wants = ([tuple(each.shape) for each in tensors] for tensors in (given, held))
    if has != wants:
        raise StrategyError(
            f"strategies.cuda_graph: a step came with tensors {_differing(has, wants)} of the captured one; "
            f"a CUDA graph has fixed shapes, so give every step the same, or remove the strategy"
        )
    for buffer, tensor in zip(held, given, strict=True):
        buffer.copy_(tensor, non_blocking=True)
    if isinstance(scale, int | float):
        recorded.scale.fill_(scale)
    else:
        recorded.scale.copy_(scale, non_blocking=True)


def _tensors(microbatches: Sequence[Batch]) -> "list[Tensor]":
    return [each for batch in microbatches for each in batch if each is not None]


def _differing(has: Sequence[Any], wants: Sequence[Any]) -> str:
    """The first shape that is another one, or the numbers of tensors."""
    pairs = zip(has, wants, strict=False)
    found = next((f"{list(a)} where it has {list(b)}" for a, b in pairs if a != b), None)
    return f"{found} in those" if found else f"({len(has)} of them) where there are {len(wants)}"
