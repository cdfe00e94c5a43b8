"""Matrix products of float32 tensors in TF32 or BF16x: tensor cores without changing a dtype.

Problem: float32 matrix products bypass the fast path of the tensor cores.
Mechanism: inputs of each product are rounded to 10 (TF32) or fewer mantissa bits; sums stay float32.
Saves: up to 8x on float32 matrix products on Ampere and newer; what AMP leaves in float32 gains too.
Costs: about three decimal digits in each product.
When: training in float32 on an NVIDIA GPU since Ampere, or beside AMP.
When not: parity checks in float32 (the highest setting is torch's default).
Measure: ms/step and the loss against "highest".
Source: torch.set_float32_matmul_precision; NVIDIA A100 whitepaper (TF32).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .refusal import Refusal
from .wins import Part, Try, Wins


@dataclass(frozen=True, kw_only=True)
class MatmulPrecision:
    """Sets the internal precision of float32 matrix products for the process."""

    precision: Literal["highest", "high", "medium"] = "high"
    """`highest` float32, `high` TF32 or three BF16 products, `medium` one BF16 product."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.PRECISION)
    wins: ClassVar[Wins] = Wins(
        on=frozenset({Part.MATRICES}), keys={"precision": Try(values=("medium",), parts=frozenset({Part.MATRICES}))}
    )
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: tensors keep their dtype."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Nothing beyond the values of its key."""
        return iter(())

    def apply(self, program: Program, run: Run) -> Program:
        """Set torch's process-wide switch."""
        import torch

        torch.set_float32_matmul_precision(self.precision)
        return program
