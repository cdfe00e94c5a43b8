"""Held-out evaluation: the mean loss of tokens that no step trains on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..strategies.base import Batch, Program
from ..strategies.limits import PositiveInt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When the held-out part is evaluated; also before the first step and after the last."""

    every: PositiveInt = 500
    """Steps between evaluations."""
    num_microbatches: PositiveInt = 16
    """Microbatches that each rank evaluates, or as many as there are: always the same ones, so that values compare."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation in `metrics.jsonl`."""

    step: int
    held_out_loss: float
    """Nats a token."""
    num_tokens: int
    kind: str = "evaluation"


def evaluate(
    program: Program, batches: Iterable[Batch], reduce: "Callable[[torch.Tensor], torch.Tensor]"
) -> tuple[float, int]:
    """Mean loss in nats a token over all ranks, and the number of tokens it is a mean of."""
    import torch

    sums: torch.Tensor | None = None
    with torch.no_grad(), program.forward_context():
        for batch in batches:
            loss = program.loss(program.model(batch.inputs), batch).detach().double()
            counted = torch.stack([loss, (batch.labels != -100).sum().to(loss)])
            sums = counted if sums is None else sums + counted
    program.after_evaluation()
    assert sums is not None, "an evaluation needs at least one microbatch"
    loss_sum, num_tokens = reduce(sums).tolist()
    return (loss_sum / num_tokens if num_tokens else float("nan")), int(num_tokens)
