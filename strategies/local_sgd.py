"""Local SGD: replicas train by themselves and meet every so many steps to average their weights.

Problem: the links between the replicas are so slow that summing gradients in every step leaves the devices waiting.
Mechanism: each replica (a rank, or the ranks along all other axes that share a copy) takes optimizer steps on its own
data. Every `every` steps the weights are averaged. DiLoCo: the way that the average has gone since the last meeting is
taken for a gradient, by which SGD with Nesterov momentum moves the weights that all go on from.
Saves: the communication between replicas: what is left is an all-reduce of the weights in `every` steps, and in each
step a few numbers: valid tokens where labels are masked, the tokens of each expert if they are balanced, FP16's flag
of an overflow; and the loss of each line of the log.
Costs: another trajectory than synchronous training, with fewer steps on averaged gradients. DiLoCo: 8 bytes a
parameter for the last meeting's weights and the momentum. Each replica checkpoints its weights and optimizer state.
When: replicas in different buildings, or on an ordinary network; post-local SGD: for the later part of a run.
When not: links that hide a gradient reduction behind backward; take ddp, or fsdp2 with mesh.dp_replicate.
Measure: ms/step, and held-out loss at equal tokens; losses and norms between meetings are the replicas' own.
Source: Stich 2018, arXiv:1805.09767; Lin et al. 2018, arXiv:1808.07217 (post-local SGD); Douillard et al. 2023,
arXiv:2311.08105 (DiLoCo).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .limits import Count, Fraction, PositiveFloat, PositiveInt
from .materialise import materialise
from .mesh import Axis, coordinates
from .names import canonical
from .refusal import Refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

_BUCKET_ELEMENTS = 16 * 2**20
"""Averaged in one message: 64 MiB of float32."""
_OUTER_LEARNING_RATE = 0.7
_OUTER_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class LocalSGD:
    """Averages the weights along `mesh.dp_replicate`, instead of the gradients."""

    every: PositiveInt = 20
    """Steps between meetings; DiLoCo goes up to 500."""
    warmup_steps: Count = 0
    """Steps at the start after each of which the weights are averaged."""
    outer: Literal["average", "nesterov"] = "average"
    """What becomes of the average: the new weights, or the gradient of an outer optimizer (DiLoCo)."""
    outer_learning_rate: PositiveFloat | None = None
    """Nesterov: 1 would go to the average, had it no momentum (0.7)."""
    outer_momentum: Fraction | None = None
    """Nesterov: how much of the last meeting's direction is kept (0.9)."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.ALGORITHM)
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """The replicate axis: fsdp2 then leaves it alone."""
        return frozenset({Owns.DP_REPLICATE})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse what would have no effect, and a run that ends with the replicas apart."""
        if run.degrees[Axis.DP_REPLICATE] == 1:
            yield "has no effect with mesh.dp_replicate = 1; raise the degree or remove it"
        if self.warmup_steps >= run.num_steps:
            yield f"warmup_steps = {self.warmup_steps}: the run has {run.num_steps} steps; use fewer"
        elif run.num_steps % self.every:
            yield f"every = {self.every}: no divisor of run.num_steps = {run.num_steps}, so it would end apart; use one"
        if self.every == 1 and self.warmup_steps:
            yield f"warmup_steps = {self.warmup_steps}: has no effect with every = 1; remove it"
        if self.outer == "average":
            for key in ("outer_learning_rate", "outer_momentum"):
                if getattr(self, key) is not None:
                    yield f"{key}: has no effect with outer = 'average'; remove it or set outer = 'nesterov'"

    def apply(self, program: Program, run: Run) -> Program:
        """Meet after steps; the weights must exist by now, for the first meeting asks how far they have come."""
        import torch

        assert run.mesh is not None, "local_sgd needs the device mesh"
        assert run.device is not None, "local_sgd needs the device"
        materialise(program, run)
        replicas = run.degrees[Axis.DP_REPLICATE]
        group = run.mesh[Axis.DP_REPLICATE].get_group()
        outer = _Outer.of(self, program) if self.outer == "nesterov" else None
        parameters = list(program.model.parameters())  # asked now: between steps FSDP2 may show whole ones
        steps_done = torch.zeros((), dtype=torch.int64)  # on the host, where it can be asked without waiting

        def meet() -> None:
            steps_done.add_(1)
            warming_up = int(steps_done) <= self.warmup_steps
            if not warming_up and int(steps_done) % self.every:
                return
            with torch.no_grad():
                weights = [_local(parameter.detach()) for parameter in parameters]
                _average(weights, group, run.device)
                if outer is not None:
                    (outer.follow if warming_up else outer.step)(weights)

        def kept_tensors() -> "dict[str, Any]":
            kept = {"steps_done": steps_done} | (outer.tensors() if outer else {})
            return program.kept_tensors() | {f"local_sgd.{name}": tensor for name, tensor in kept.items()}

        rank = torch.distributed.get_rank()
        return replace(
            program,
            after_step=(*program.after_step, meet),
            kept_tensors=kept_tensors,
            replica=coordinates(rank, run.degrees)[Axis.DP_REPLICATE],
            # The loss is divided by the tokens of all replicas; of these a replica sees its share.
            gradient_divisor=program.gradient_divisor * replicas,
        )


@dataclass(frozen=True, kw_only=True)
class _Outer:
    """SGD with Nesterov momentum on the weights of the last meeting."""

    learning_rate: float
    momentum: float
    met: "dict[str, Tensor]"
    """Weights of the last meeting, by name; sharded like the parameters."""
    direction: "dict[str, Tensor]"

    @staticmethod
    def of(config: LocalSGD, program: Program) -> "_Outer":
        """Begin where the model is."""
        import torch

        named = {canonical(name): parameter.detach() for name, parameter in program.model.named_parameters()}
        rate, momentum = config.outer_learning_rate, config.outer_momentum
        return _Outer(
            learning_rate=_OUTER_LEARNING_RATE if rate is None else rate,
            momentum=_OUTER_MOMENTUM if momentum is None else momentum,
            met={name: parameter.clone() for name, parameter in named.items()},
            direction={name: torch.zeros_like(parameter) for name, parameter in named.items()},
        )

    def tensors(self) -> "dict[str, Tensor]":
        """What a checkpoint must keep; the same on all replicas."""
        met = {f"met.{name}": tensor for name, tensor in self.met.items()}
        return met | {f"direction.{name}": tensor for name, tensor in self.direction.items()}

    def step(self, weights: "Sequence[Tensor]") -> None:
        """Put the weights, which are the average, where the outer optimizer would have them."""
        for mean, met, direction in self._matched(weights):
            come = met - mean
            direction.mul_(self.momentum).add_(come)
            met.sub_(come.add_(direction, alpha=self.momentum), alpha=self.learning_rate)
            mean.copy_(met)

    def follow(self, weights: "Sequence[Tensor]") -> None:
        """Take the average as it is."""
        for mean, met, _ in self._matched(weights):
            met.copy_(mean)

    def _matched(self, weights: "Sequence[Tensor]") -> "Iterator[tuple[Tensor, Tensor, Tensor]]":
        mets, directions = map(_local, self.met.values()), map(_local, self.direction.values())
        return zip(weights, mets, directions, strict=True)


def _average(tensors: "Sequence[Tensor]", group: "ProcessGroup", device: "torch.device | None") -> None:
    """The mean over the ranks of a group, in place, in messages of useful size."""
    import torch
    import torch.distributed as dist

    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket]).to(device)  # offloaded ones lie on the host
        dist.all_reduce(flat, group=group)
        flat.div_(group.size())
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: "Sequence[Tensor]") -> "Iterator[list[Tensor]]":
    """Tensors of one type in groups, in order; a large one is a group of its own."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(each.numel() for each in bucket) + tensor.numel()
        if bucket and (size > _BUCKET_ELEMENTS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _local(tensor: Any) -> "Tensor":
    """The part that this rank holds, in the storage of the whole."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
