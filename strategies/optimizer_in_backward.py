"""Optimizer in backward: each parameter is updated as soon as its gradient is there, and the gradient is freed.

Problem: between backward and the optimizer the gradients of all parameters exist at once, 4 bytes a parameter.
Mechanism: a hook behind each gradient (with fsdp2, behind its reduction) takes the optimizer's step for this parameter
alone and drops the gradient; backward goes on to the next.
Saves: the memory of the gradients but for the largest block's; and the reductions overlap with the updates.
Costs: one small optimizer call for each parameter in the place of a fused one over all; no clipping, no gradient norm.
When: gradients are what does not fit: one device, or few, with a large model.
When not: steps must be clipped or accumulated; a small model, whose step is launches already.
Measure: peak memory with and without; then optimizer and backward in the breakdown, which become one.
Source: Lv et al. 2023 (LOMO), arXiv:2306.09782; Tensor.register_post_accumulate_grad_hook.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .errors import StrategyError
from .refusal import Refusal
from .wins import WAITING, Part, Wins

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class OptimizerInBackward:
    """Takes the optimizer's step parameter by parameter while backward runs."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.NOTHING)
    wins: ClassVar[Wins] = Wins(off=WAITING | {Part.OPTIMIZER})
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="clip",
            why="the norm of all gradients is known only when the first ones are used up and gone",
            instead="remove strategies.clip",
        ),
        Refusal(
            beside="accumulation",
            why="every microbatch would be a step of its own",
            instead="use a larger microbatch, or remove one of the two",
        ),
        Refusal(
            beside="ddp",
            why="DistributedDataParallel reduces a bucket when its gradients are there, after they have been used",
            instead="use strategies.fsdp2, with mesh.dp_replicate for replicas",
        ),
        Refusal(
            beside="mesh.pp",
            why="every microbatch would be a step of its own",
            instead="use strategies.fsdp2 without a pipeline",
        ),
        Refusal(
            beside="mesh.tp",
            why="what the ranks of a slice owe each other is summed after backward",
            instead="use strategies.fsdp2 over these ranks",
        ),
        Refusal(
            beside="amp",
            holds=lambda strategy, run: run.owners.get(Owns.GRADIENT_SCALE) == "amp",
            why="with dtype = 'fp16' a gradient must be found finite and unscaled before it is used",
            instead="use dtype = 'bf16'",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: the optimizer stays whose it is, and takes the same steps."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Nothing beyond what it cannot work beside."""
        return iter(())

    def apply(self, program: Program, run: Run) -> Program:
        """Have the optimizer step from hooks. Raises: StrategyError if somebody changes gradients after backward."""
        make = program.make_optimizer
        assert make is not None, "check has made sure that a strategy owns the optimizer"
        if program.after_backward:
            raise StrategyError(
                "strategies.optimizer_in_backward: another strategy completes the gradients after backward, when "
                "they are used up; remove one of the two"
            )

        def make_optimizer(model: "nn.Module") -> "Optimizer":
            optimizer = make(model)
            _step_from_hooks(optimizer)
            return optimizer

        return replace(program, make_optimizer=make_optimizer, clip_gradients=_no_norm)


def _no_norm(program: Program, parameters: "Sequence[nn.Parameter]", *, want_norm: bool) -> None:
    """No gradient is left whose length could be told."""


def _step_from_hooks(optimizer: "Optimizer") -> None:
    """Update each parameter when its gradient is complete.

    It is the optimizer itself that steps, shown one parameter at a time: so its state is where a checkpoint looks for
    it, and the learning rate where the loop sets it. Its `step` in the loop then finds no gradients, and does nothing.
    """
    index_of = {parameter: i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]}

    def step(parameter: "nn.Parameter") -> None:
        groups = optimizer.param_groups  # asked each time, for a checkpoint puts others in their place
        optimizer.param_groups = [groups[index_of[parameter]] | {"params": [parameter]}]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = groups
        parameter.grad = None

    for parameter in index_of:
        parameter.register_post_accumulate_grad_hook(step)
