"""The one abstraction: a recipe switches strategies on, and each maps a `Program` to a `Program`.

Nothing here imports torch at run time, so a recipe can be checked on a laptop in a few milliseconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, cast

from ..profiling.record import Marker
from .changes import MayChange
from .facts import Facts
from .mesh import Axis
from .refusal import Refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

DeviceType: TypeAlias = Literal["cpu", "cuda"]


class Owns(StrEnum):
    """Something in a training run that exactly one strategy may take charge of."""

    PP = "the pp axis"
    DP_REPLICATE = "the dp_replicate axis"
    DP_SHARD = "the dp_shard axis"
    CP = "the cp axis"
    EP = "the ep axis"
    TP = "the tp axis"
    FORWARD_BACKWARD = "the order of forward and backward"
    SPLIT_BACKWARD = "backward in two halves, for inputs and for weights"
    GRADIENT_REDUCTION = "the gradient reduction"
    GRADIENT_SCALE = "the scale of the gradients from step to step"
    COMPUTE_DTYPE = "the compute dtype"
    OPTIMIZER = "the optimizer"


OWNER_OF_AXIS = {axis: Owns[axis.name] for axis in Axis}


class Batch(NamedTuple):
    """One microbatch. B microbatch size, T sequence length (this rank's part of it, once it has been split)."""

    inputs: "Tensor"
    """[B, T] token ids for a language model, [B, C, H, W] images for a vision model; a user's own model may take any
    nest of dicts, lists and tuples of tensors."""
    labels: "Tensor"
    """What counts in the loss, -100 where nothing does: [B, T] next-token ids, [B] classes."""
    positions: "Tensor | None" = None
    """[T] positions in the sequence, or [B, T] where each document has its own; None for 0 .. T-1."""
    documents: "Tensor | None" = None
    """[B, T] number of the document that a position belongs to: attention does not look into another one. None where
    every sequence is a whole."""

    @property
    def arguments(self) -> "tuple[Tensor | None, ...]":
        """What the model is called with."""
        if self.documents is not None:
            return (self.inputs, self.positions, self.documents)
        return (self.inputs,) if self.positions is None else (self.inputs, self.positions)

    def map(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        """A batch of what `change` makes of each tensor: its copy on a device, say."""
        return Batch(*(_map(change, each) for each in self))


def _map(change: "Callable[[Tensor], Tensor]", value: Any) -> Any:
    """`change` of every tensor in a nest of dicts, lists and tuples; what is no tensor stays."""
    if isinstance(value, Mapping):
        return {key: _map(change, each) for key, each in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        changed = [_map(change, each) for each in cast(Sequence[Any], value)]
        return changed if isinstance(value, list) else tuple(changed)
    return change(value) if hasattr(value, "device") else value


_NOTHING = nullcontext()


def _no_context(*arguments: object) -> AbstractContextManager[Any]:
    """One context manager for all that need none: making another costs more than entering it."""
    return _NOTHING


def _identity(loss: "Tensor") -> "Tensor":
    return loss


def _whole(batch: Batch) -> Batch:
    return batch


def _nothing(optimizer: "Optimizer") -> None:
    """Gradients that were never scaled need no unscaling."""


def _plain_step(optimizer: "Optimizer") -> None:
    optimizer.step()


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """How small gradients survive a narrow format; the default leaves everything as it is."""

    scale: "Callable[[Tensor], Tensor]" = _identity
    """Applied to the loss before backward."""
    unscale: "Callable[[Optimizer], None]" = _nothing
    """Applied to the gradients before they are measured or clipped."""
    step: "Callable[[Optimizer], None]" = _plain_step
    """Takes the optimizer step, or skips it when a gradient is not finite."""
    state: Callable[[], dict[str, float]] = dict
    """What a checkpoint must keep: JSON values."""
    restore: Callable[[dict[str, float]], None] = field(default=lambda state: None)
    """The inverse of `state`."""


class ForwardBackward(Protocol):
    """Forward and backward over all microbatches of a step; a pipeline has its own."""

    def __call__(
        self, program: "Program", microbatches: Sequence[Batch], scale: "float | Tensor", mark: Marker
    ) -> "Tensor":
        """Leave the reduced gradient of `scale * sum of losses` in `.grad`; return this rank's sum of losses."""
        ...


class ForwardOnly(Protocol):
    """Forward passes that no backward follows; a pipeline has its own."""

    def __call__(self, program: "Program", microbatches: Sequence[Batch]) -> "Tensor":
        """Sum of this rank's losses over the microbatches, on the device."""
        ...


class ClipGradients(Protocol):
    """What happens to the gradients between backward and the optimizer."""

    def __call__(self, program: "Program", parameters: "Sequence[nn.Parameter]", *, want_norm: bool) -> "Tensor | None":
        """Global gradient norm before clipping, on the device; None if nobody wants it and nothing is clipped."""
        ...


def _forward_each(program: "Program", microbatches: Sequence[Batch]) -> "Tensor":
    """One microbatch after the other through the whole model."""
    losses: list[Tensor] = []
    for whole in microbatches:
        batch = program.shard_batch(whole)
        with program.forward_context():
            losses.append(program.loss(program.model(*batch.arguments), batch).detach().double())
    return sum(losses[1:], start=losses[0])


@dataclass(frozen=True, kw_only=True)
class Program:
    """What the trainer runs: the only thing that a strategy may change."""

    model: "nn.Module"
    facts: Facts
    loss: "Callable[[Tensor, Batch], Tensor]"
    """Sum of the losses over the valid tokens of a microbatch, from the model's output."""
    forward_backward: ForwardBackward
    clip_gradients: ClipGradients
    forward_only: ForwardOnly = field(default=lambda program, microbatches: _forward_each(program, microbatches))
    make_optimizer: "Callable[[nn.Module], Optimizer] | None" = None
    learning_rate: Callable[[int], float] = field(default=lambda step: 1.0)
    """Multiplier of the optimizer's learning rate in step 0, 1, 2, ...; a pure function, so it resumes by itself."""
    num_microbatches: int = 1
    shard_batch: Callable[[Batch], Batch] = _whole
    """Cuts the part that this rank sees out of the sequences of a microbatch (cp)."""
    sequence_split: int = 1
    """By how much the hidden states between blocks are split along the sequence."""
    hidden_dtype: "torch.dtype | None" = None
    """Of the hidden states between blocks; None for that of the parameters."""
    compiler_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What strategies need of Inductor, if the model is compiled: its options, for these graphs only."""
    forward_context: "Callable[[], AbstractContextManager[Any]]" = _no_context
    """Entered around each forward pass (AMP)."""
    before_microbatch: "Callable[[bool], AbstractContextManager[Any]]" = _no_context
    """Entered around forward and backward of each microbatch, told whether gradients are to be reduced now."""
    after_evaluation: Callable[[], None] = field(default=lambda: None)
    """Called when forward passes were done that no backward follows."""
    gradient_divisor: int = 1
    """By what the gradient reduction divides the sum over ranks; the loss is multiplied by it."""
    after_backward: tuple[Callable[[], None], ...] = ()
    """Called once a step when all gradients are there, before they are measured or clipped."""
    after_step: tuple[Callable[[], None], ...] = ()
    """Called once a step when the optimizer has moved the weights."""
    norm_group: "ProcessGroup | None" = None
    """Ranks that hold other parameters of the same model (a pipeline): the gradient norm is taken over all of them."""
    loss_scaling: LossScaling = LossScaling()
    replica: int | None = None
    """Which of several models that train apart this rank holds, so that a checkpoint keeps each; None for one model."""
    kept_tensors: "Callable[[], dict[str, Tensor]]" = dict
    """Further tensors that a checkpoint keeps and reads back in place, by name; the same on every replica."""
    reports: tuple[Callable[[], list[str]], ...] = ()
    """What strategies have to say when the run is over: lines for the log."""


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A second model beside the one that is trained."""

    program: Program
    """Its weights may be on the meta device still."""
    seed: int
    """Of the weights that it begins with."""
    load: "Callable[[nn.Module], None]"
    """Reads its trained weights into places that exist by now, sharded or not; all ranks call it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a strategy may know about the run that it is part of.

    `mesh` and `device` are None while a recipe is only checked; everything else is known without a GPU or torch.
    """

    device_type: DeviceType
    degrees: Mapping[Axis, int]
    facts: Facts
    num_steps: int
    tokens_per_step: int
    seed: int
    active: frozenset[str]
    owners: Mapping[Owns, str] = field(default_factory=dict[Owns, str])
    """Which strategy takes charge of what."""
    strategies: Any = None
    """The `Strategies` of the run; ask for one key of one with `setting`."""
    num_microbatches: int = 1
    """Microbatches of a step on each rank."""
    microbatch_size: int = 1
    """B: samples of a microbatch."""
    capability: tuple[int, int] | None = None
    """Compute capability of the GPUs, (9, 0) for an H100; None if there are none or they cannot be asked."""
    deterministic: bool = False
    documents: bool | None = None
    """True if samples hold several documents, which attention must keep apart."""
    mesh: "DeviceMesh | None" = None
    device: "torch.device | None" = None
    open_model: Callable[[str], OpenedModel] | None = None
    """The model of another recipe or run folder; None while a recipe is only checked."""

    def setting(self, strategy: str, key: str) -> Any:
        """What a key of another strategy says, for a combination that depends on both; None if that one is off."""
        return getattr(getattr(self.strategies, strategy, None), key, None)

    @property
    def computes_in_bf16(self) -> bool:
        """Whether products are of BF16 numbers: somebody set a dtype, and not one whose gradients need a scale."""
        return Owns.COMPUTE_DTYPE in self.owners and Owns.GRADIENT_SCALE not in self.owners

    @property
    def groups_experts(self) -> bool:
        """Whether all experts of a layer are computed together, so that the host need not know their rows."""
        experts = self.facts.experts
        fits = experts is not None and experts.can_be_grouped(self.degrees[Axis.TP])
        return fits and self.device_type == "cuda" and self.computes_in_bf16


class Strategy(Protocol):
    """One optimization: a frozen dataclass whose fields are its recipe keys.

    The module's docstring answers, labelled: Problem, Mechanism, Saves, Costs, When, When not, Measure, Source.
    """

    changes: ClassVar[MayChange]
    """What it may change about the numbers, so that a comparison knows what sameness to check."""
    conflicts: ClassVar[tuple[Refusal, ...]]
    """Combinations that cannot work, each with the reason and the way out."""

    @property
    def owns(self) -> frozenset[Owns]:
        """What this strategy takes charge of.

        It may also say what it `serves`, a frozenset like this one: taken on only if no other strategy owns it. And the
        `environment(run)` that it needs, by name, set before the process group exists unless the user has set it.
        """
        ...

    def check(self, run: Run) -> Iterator[str]:
        """Every problem as `key = value: why; what to do`, without the strategy's own name in front."""
        ...

    def apply(self, program: Program, run: Run) -> Program:
        """The program with this optimization in it."""
        ...
