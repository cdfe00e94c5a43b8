"""Gradient accumulation: several microbatches make one optimizer step.

Problem: the batch that the optimizer wants does not fit in memory, or steps are so short that the reduction shows.
Mechanism: forward and backward for each microbatch add to the same gradients; one reduction and one step at the end.
Saves: memory against one large batch; communication against several small steps.
Costs: no time in itself; small microbatches use a device badly.
When: the microbatch is already as large as memory allows and the batch must be larger.
When not: the whole batch fits; one large microbatch is faster.
Measure: tokens/s at equal tokens per step.
Source: Ott et al. 2018, arXiv:1806.00187 (section 3.2, large batches).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .limits import PositiveInt
from .refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """Splits each step into microbatches; tokens per step = microbatch x this x data ranks."""

    num_microbatches: PositiveInt = 2
    """Microbatches in one step on each rank."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER)
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: gradients add up to the same sum."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse an accumulation that accumulates nothing."""
        if self.num_microbatches == 1:
            yield "num_microbatches = 1: has no effect; remove strategies.accumulation or use 2 or more"

    def apply(self, program: Program, run: Run) -> Program:
        """Tell the loop how many microbatches to take."""
        return replace(program, num_microbatches=self.num_microbatches)
