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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from .base import Owns, Program, Run
from .limits import PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Clips the global norm of the gradients."""

    max_norm: PositiveFloat = 1.0
    """Largest norm that passes unchanged."""
    norm_type: Literal[2, "inf"] = 2
    """The Euclidean norm, or the largest element."""

    conflicts: ClassVar[Mapping[str, str]] = {}

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing that another strategy could want."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Nothing beyond the ranges of its keys."""
        return iter(())

    def apply(self, program: Program, run: Run) -> Program:
        """Replace the mere measuring of the norm by clipping."""
        from torch.nn.utils import clip_grad_norm_

        norm_type = float(self.norm_type)

        def clip_gradients(parameters: "Sequence[nn.Parameter]", *, want_norm: bool) -> "Tensor":
            return clip_grad_norm_(parameters, self.max_norm, norm_type=norm_type)

        return replace(program, clip_gradients=clip_gradients)


def measure_norm(parameters: "Sequence[nn.Parameter]", *, want_norm: bool) -> "Tensor | None":
    """2-norm of all gradients if somebody wants it; the default when nothing clips."""
    if not want_norm:
        return None
    from torch.nn.utils import get_total_norm

    return get_total_norm([p.grad for p in parameters if p.grad is not None])
