"""AdamW, fused: the optimizer step as a few kernels instead of a dozen for each parameter.

Problem: an optimizer step of many small kernels; on a large model its memory traffic, on a small one its launches.
Mechanism: one kernel updates many parameters at once (fused), or one kernel per operation over all of them (foreach).
Saves: 5-15% of a step where the optimizer shows in the breakdown; nothing where it does not.
Costs: nothing known; fused arithmetic differs from the for-loop in the last bit.
When: always; the other implementations are here for an A/B.
When not: a parameter type without fused kernels.
Measure: optimizer in the breakdown.
Source: Loshchilov and Hutter 2019, arXiv:1711.05101; torch.optim.AdamW.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from .base import Owns, Program, Run
from .limits import AtLeast, Fraction, PositiveFloat
from .refusal import Refusal

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


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

    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """The optimizer."""
        return frozenset({Owns.OPTIMIZER})

    def check(self, run: Run) -> Iterator[str]:
        """Nothing beyond the ranges of its keys."""
        return iter(())

    def apply(self, program: Program, run: Run) -> Program:
        """Hand the program its optimizer, to be made when the weights exist."""

        def make_optimizer(model: "nn.Module") -> "Optimizer":
            import torch

            return torch.optim.AdamW(
                self.groups(model),
                lr=self.learning_rate,
                betas=(self.beta1, self.beta2),
                eps=self.eps,
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
