"""Gradient clipping: bound the length of a step's gradient.

Problem: a rare batch with a huge gradient throws the weights off.
Mechanism: the norm over all parameters of all ranks; if it exceeds the bound, all gradients shrink by the same factor.
Saves: runs that would diverge.
Costs: one pass over the gradients and, with shards, one small all-reduce a step.
When: training transformers, practically always (1.0 is customary).
When not: nothing speaks against it but its few microseconds.
Measure: grad norm in the log line; clip in the breakdown.
Source: Pascanu et al. 2013, arXiv:1211.5063.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .limits import PositiveFloat
from .norms import by_layout, total_norm
from .refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Clips the global norm of the gradients."""

    max_norm: PositiveFloat = 1.0
    """Largest norm that passes unchanged."""
    norm_type: Literal[2, "inf"] = 2
    """The Euclidean norm, or the largest element."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.ALGORITHM)
    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing that another strategy could want."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Nothing beyond the ranges of its keys."""
        return iter(())

    def apply(self, program: Program, run: Run) -> Program:
        """Replace the mere measuring of the norm by clipping."""
        from torch.nn.utils import clip_grads_with_norm_

        norm_type = float(self.norm_type)

        def clip_gradients(program: Program, parameters: "Sequence[nn.Parameter]", *, want_norm: bool) -> "Tensor":
            held = [p for p in parameters if p.grad is not None]
            norm = total_norm([p.grad for p in held if p.grad is not None], norm_type, program.norm_group, run.device)
            for same_layout in by_layout(held, lambda each: each.grad):
                clip_grads_with_norm_(same_layout, self.max_norm, norm)
            return norm

        return replace(program, clip_gradients=clip_gradients)


def measure_norm(program: Program, parameters: "Sequence[nn.Parameter]", *, want_norm: bool) -> "Tensor | None":
    """2-norm of all gradients if somebody wants it; the default when nothing clips."""
    if not want_norm:
        return None
    gradients = [p.grad for p in parameters if p.grad is not None]
    return total_norm(gradients, 2.0, program.norm_group, parameters[0].device if parameters else None)
