"""Automatic mixed precision: matrix products in BF16 or FP16, sums and norms in float32.

Problem: float32 matrix products run at a fraction of what the tensor cores can do, and activations take 4 bytes.
Mechanism: autocast picks the format for each operator; the weights stay float32. FP16 also scales the loss.
Saves: about 1.7x on tensor cores, half the activation memory; BF16 needs nothing else.
Costs: a cast of each weight in each forward pass; FP16: skipped steps when a gradient overflows.
When: always on a device with BF16; FP16 on Volta and Turing.
When not: with strategies.fsdp2, its param_dtype = "bf16" does the same and gathers half the bytes.
Measure: ms/step, peak memory, and the loss against float32.
Source: Micikevicius et al. 2018, arXiv:1710.03740; torch.autocast, torch.amp.GradScaler.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from .base import LossScaling, Owns, Program, Run
from .changes import Changes, MayChange
from .limits import Above, Below, PositiveFloat, PositiveInt
from .refusal import Refusal
from .wins import COMPUTE, Part, Wins

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

_SCALER_KEYS = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")


@dataclass(frozen=True, kw_only=True)
class Amp:
    """Autocast around the forward pass and, for FP16, dynamic loss scaling."""

    dtype: Literal["bf16", "fp16"] = "bf16"
    """Format of the matrix products."""
    init_scale: PositiveFloat | None = None
    """FP16: first loss scale (65536)."""
    growth_factor: Annotated[float, Above(1)] | None = None
    """FP16: by what the scale grows after `growth_interval` good steps (2)."""
    backoff_factor: Annotated[float, Above(0), Below(1)] | None = None
    """FP16: by what the scale shrinks when a gradient is not finite (0.5)."""
    growth_interval: PositiveInt | None = None
    """FP16: good steps before the scale grows (2000)."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.PRECISION)
    wins: ClassVar[Wins] = Wins(on=COMPUTE | {Part.COPIES})
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """The compute dtype; with FP16 also by what gradients are multiplied."""
        scale = frozenset({Owns.GRADIENT_SCALE}) if self.dtype == "fp16" else frozenset[Owns]()
        return frozenset({Owns.COMPUTE_DTYPE}) | scale

    def check(self, run: Run) -> Iterator[str]:
        """Refuse loss-scale settings that BF16 would ignore."""
        if self.dtype == "bf16":
            for key in _SCALER_KEYS:
                if getattr(self, key) is not None:
                    yield f"{key}: has no effect with dtype = 'bf16'; remove it or set dtype = 'fp16'"

    def apply(self, program: Program, run: Run) -> Program:
        """Enter autocast around forward; scale the loss if the format needs it."""
        import torch

        dtype = torch.bfloat16 if self.dtype == "bf16" else torch.float16

        def forward_context() -> Any:
            return torch.autocast(run.device_type, dtype=dtype)

        scaling = _dynamic_scaling(self, run) if self.dtype == "fp16" else program.loss_scaling
        return replace(program, forward_context=forward_context, loss_scaling=scaling)


def _dynamic_scaling(amp: Amp, run: Run) -> LossScaling:
    """Loss scaling by torch's GradScaler, with all ranks of one mind about which steps are skipped."""
    import torch

    given = {key: getattr(amp, key) for key in _SCALER_KEYS if getattr(amp, key) is not None}
    scaler: Any = torch.amp.GradScaler(run.device_type, **given)  # pyright: ignore[reportPrivateImportUsage]
    # It would begin when a loss is scaled, but of a pipeline's ranks only the last one sees a loss.
    scaler.scale(torch.zeros((), device=run.device))
    scaler._unscale_grads_ = _unscale_everywhere(run)

    def scale(loss: "Tensor") -> "Tensor":
        return scaler.scale(loss)

    def step(optimizer: "Optimizer") -> None:
        scaler.step(optimizer)
        scaler.update()

    # The rest of the scaler's state are settings, and settings come from the recipe.
    kept = ("scale", "_growth_tracker")

    def state() -> dict[str, float]:
        return {key: scaler.state_dict()[key] for key in kept}

    def restore(state: dict[str, float]) -> None:
        scaler.load_state_dict(scaler.state_dict() | {key: state[key] for key in kept})

    return LossScaling(scale=scale, unscale=scaler.unscale_, step=step, state=state, restore=restore)


def _unscale_everywhere(run: Run) -> Any:
    """What GradScaler does to the gradients, with shards of any layout and with one answer for all ranks.

    Its own version takes tensors of one mesh only, and asks only the ranks of that mesh. A rank of another stage or
    with other experts would take a step that this one skips; from then on they train different models.
    """
    import torch
    import torch.distributed as dist

    several = math.prod(run.degrees.values()) > 1
    check_and_unscale: Any = torch._amp_foreach_non_finite_check_and_unscale_  # pyright: ignore[reportPrivateUsage]

    def unscale(optimizer: "Optimizer", inverse: "Tensor", found: "Tensor", allow_fp16: bool) -> "dict[Any, Tensor]":
        by_kind: dict[Any, list[Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                    by_kind.setdefault((local.device, local.dtype), []).append(local)
        for (device, _), gradients in by_kind.items():
            here = found.to(device, copy=True)  # offloaded gradients lie on the host
            check_and_unscale(gradients, here, inverse.to(device))
            torch.maximum(found, here.to(found.device), out=found)
        if several:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return {found.device: found}

    return unscale
