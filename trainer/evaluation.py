"""Held-out evaluation: the mean loss of tokens that no step trains on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
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
    program: Program, batches: Iterable[Batch], reduce: "Callable[[torch.Tensor, torch.Tensor], list[float]]"
) -> tuple[float, int]:
    """Mean loss in nats a token over all ranks, and the number of tokens it is a mean of.

    `reduce` adds this rank's sum of losses and number of tokens to those of the others.
    """
    import torch

    sums: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    waiting = iter(batches)
    if program.facts.has_modes:
        program.model.eval()
    with torch.no_grad():
        while microbatches := list(islice(waiting, program.num_microbatches)):
            counted = torch.stack([(batch.labels != -100).sum() for batch in microbatches]).sum()
            loss = program.forward_only(program, microbatches)
            sums = loss if sums is None else sums + loss
            num_tokens = counted if num_tokens is None else num_tokens + counted
    if program.facts.has_modes:
        program.model.train()
    program.after_evaluation()
    assert sums is not None, "an evaluation needs at least one microbatch"
    assert num_tokens is not None
    loss_sum, total = reduce(sums, num_tokens.to(sums))
    return (loss_sum / total if total else float("nan")), int(total)
