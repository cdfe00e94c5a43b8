"""Learning-rate schedules: warm-up, then stable-decay, cosine or linear; and the linear scaling rule.

Problem: a large learning rate at the start diverges, and at the end it keeps the loss from settling.
Mechanism: a pure function of the step multiplies the optimizer's learning rate.
Saves: steps to a given loss.
Costs: nothing.
When: always for pretraining; warmup-stable-decay when the end of the run is not fixed in advance.
When not: short speed measurements; without this strategy the rate is constant.
Measure: held-out loss at equal tokens.
Source: Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine); Hu et al. 2024, arXiv:2404.06395 (WSD);
    Goyal et al. 2017, arXiv:1706.02677 (linear scaling with the batch).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .limits import AtLeast, Count, PositiveInt
from .refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Multiplies the learning rate by warm-up, shape and the ratio of batch sizes."""

    kind: Literal["warmup-stable-decay", "cosine", "linear"] = "cosine"
    """Shape after the warm-up."""
    warmup_steps: Count = 0
    """Steps in which the rate rises linearly; step 0 already has 1/warmup_steps of it."""
    decay_steps: PositiveInt | None = None
    """warmup-stable-decay: the last steps, in which the rate falls linearly. Default: a tenth of the run."""
    final_fraction: Annotated[float, AtLeast(0)] = 0.1
    """The rate at the end, as a fraction of the peak."""
    reference_tokens_per_step: PositiveInt | None = None
    """Tokens per step for which the learning rate was chosen; the rate is scaled by actual / reference."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.ALGORITHM)
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: the optimizer stays its owner's."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse phases that do not fit into the run, and a decay length that nothing reads."""
        if self.warmup_steps >= run.num_steps:
            yield (
                f"warmup_steps = {self.warmup_steps}: not less than run.num_steps = {run.num_steps}, so the peak is "
                f"never reached; use fewer"
            )
        if self.decay_steps is not None and self.kind != "warmup-stable-decay":
            yield f"decay_steps: has no effect with kind = {self.kind!r}; remove it or use 'warmup-stable-decay'"
        elif self.kind == "warmup-stable-decay" and self.warmup_steps + self.decay(run.num_steps) > run.num_steps:
            yield (
                f"decay_steps = {self.decay(run.num_steps)}: with warmup_steps = {self.warmup_steps} more than "
                f"run.num_steps = {run.num_steps}; use fewer"
            )
        if self.final_fraction > 1:
            yield f"final_fraction = {self.final_fraction:g}: a decay ends at or below the peak; use at most 1"

    def decay(self, num_steps: int) -> int:
        """Steps of the final linear decay; only warmup-stable-decay has such a phase."""
        if self.kind != "warmup-stable-decay":
            return 0
        return self.decay_steps if self.decay_steps is not None else max(1, num_steps // 10)

    def multiplier(self, step: int, num_steps: int) -> float:
        """Multiplier of the learning rate in step 0 .. num_steps - 1, without batch scaling."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        start = num_steps - self.decay(num_steps) if self.kind == "warmup-stable-decay" else self.warmup_steps
        if step < start:
            return 1.0
        # 0 in the last step before the decay, 1 in the last step of the run.
        progress = min(1.0, (step - start + 1) / (num_steps - start))
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1 - (1 - self.final_fraction) * progress

    def apply(self, program: Program, run: Run) -> Program:
        """Set the program's multiplier of the learning rate."""
        scale = run.tokens_per_step / self.reference_tokens_per_step if self.reference_tokens_per_step else 1.0

        def learning_rate(step: int) -> float:
            return scale * self.multiplier(step, run.num_steps)

        return replace(program, learning_rate=learning_rate)
