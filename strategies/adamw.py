"""AdamW, fused: the optimizer step as a few kernels instead of a dozen for each parameter.

Problem: an optimizer step of many small kernels; on a large model its memory traffic, on a small one its launches. And
its two moments: 8 bytes a parameter, twice what the weight itself takes.
Mechanism: one kernel updates many parameters at once (fused), or one kernel per operation over all of them (foreach).
With a narrow `state` the moments are kept in blocks of 128 or 256 codes with a scale each, and one compiled kernel for
each parameter reads, updates and writes them.
Saves: 5-15% of a step where the optimizer shows in the breakdown; nothing where it does not. Of the 8 bytes of the
moments, 8bit and fp8 leave 2.03, 4bit 1.06 (tensors below 4096 elements stay in float32).
Costs: nothing known; fused arithmetic differs from the for-loop in the last bit. A narrow state rounds the moments, and
compiles a kernel for each shape of parameter in the first step, seconds each.
When: always; the other implementations are here for an A/B. A narrow state: the moments are what does not fit.
When not: a parameter type without fused kernels. A narrow state: memory is to spare, or fsdp2 has divided it by enough.
Measure: optimizer in the breakdown; for a narrow state, peak memory and held-out loss at equal steps.
Source: Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW; Dettmers et al. 2022, arXiv:2110.02861 (8bit);
Li et al. 2023, arXiv:2309.01507 (4bit); torchao.optim.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .limits import AtLeast, Fraction, PositiveFloat
from .refusal import Refusal
from .wins import WAITING, Part, Try, Wins

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW with decoupled weight decay, on the parameters that should decay."""

    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate; strategies.schedule multiplies it."""
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.1
    """Decoupled weight decay, of the parameters in `decay`."""
    decay: Literal["matrices", "all"] = "matrices"
    """`matrices` spares norms and biases (fewer than two dimensions)."""
    implementation: Literal["fused", "foreach", "for-loop"] = "fused"
    """How the step is computed; the mathematics is the same."""
    state: Literal["float32", "8bit", "4bit", "fp8"] = "float32"
    """In what the two moments are kept; all but float32 need torchao, whose implementation is its own."""

    changes: ClassVar[MayChange] = MayChange(
        switch=Changes.ALGORITHM,
        keys={"implementation": Changes.REDUCTION_ORDER, "state": Changes.LOW_PRECISION},
    )
    wins: ClassVar[Wins] = Wins(keys={"implementation": Try(values=("fused",), parts=WAITING | {Part.OPTIMIZER})})
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """The optimizer."""
        return frozenset({Owns.OPTIMIZER})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse a narrow state without the library or the hardware, and an implementation that it does not have."""
        if self.state == "float32":
            return
        if importlib.util.find_spec("torchao") is None:
            yield f"state = '{self.state}': torchao is not installed; pip install torchao, or use state = 'float32'"
        if self.implementation != "fused":
            yield f"implementation = '{self.implementation}': has no effect with state = '{self.state}'; remove it"
        if self.state == "fp8" and run.capability is not None and run.capability < _FP8_CAPABILITY:
            major, minor = run.capability
            yield f"state = 'fp8': needs compute capability 8.9, but the GPUs have {major}.{minor}; use '8bit'"

    def apply(self, program: Program, run: Run) -> Program:
        """Hand the program its optimizer, to be made when the weights exist."""

        def make_optimizer(model: "nn.Module") -> "Optimizer":
            import torch

            common: dict[str, Any] = {"lr": self.learning_rate, "betas": (self.beta1, self.beta2), "eps": self.eps}
            if self.state != "float32":
                return _narrow(self.state, self.groups(model), common)
            return torch.optim.AdamW(
                self.groups(model),
                **common,
                fused=self.implementation == "fused",
                foreach=self.implementation == "foreach",
            )

        return replace(program, make_optimizer=make_optimizer)

    def groups(self, model: "nn.Module") -> list[dict[str, Any]]:
        """Parameter groups: those that decay, those that do not; an empty group is left out."""
        decaying = [p for p in model.parameters() if self.decay == "all" or p.ndim >= 2]
        spared = [p for p in model.parameters() if not (self.decay == "all" or p.ndim >= 2)]
        groups = [
            {"params": decaying, "weight_decay": self.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


def _narrow(state: str, groups: list[dict[str, Any]], common: dict[str, Any]) -> "Optimizer":
    """AdamW of torchao. It takes its learning rate as a tensor, so that its kernels need not be compiled anew."""
    import torch
    import torchao.optim

    kinds: Any = torchao.optim
    optimizer = {"8bit": kinds.AdamW8bit, "4bit": kinds.AdamW4bit, "fp8": kinds.AdamWFp8}[state](groups, **common)

    def rates_as_tensors(optimizer: "Optimizer", args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):  # the loop sets numbers, as every other optimizer wants them
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)

    optimizer.register_step_pre_hook(rates_as_tensors)
    return optimizer
