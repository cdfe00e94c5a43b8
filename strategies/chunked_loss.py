"""The output projection and the loss a chunk of the tokens at a time: whole logits never exist.

Problem: logits in float32 are the largest tensor of a step: 4 bytes x tokens x vocabulary, twice with their gradient.
Mechanism: the output projection hands its input on; the loss multiplies, normalises and differentiates one chunk of the
tokens after the other, in the forward pass, and keeps the two gradients that are small.
Saves: memory, all but 1/num_chunks of the logits and of their gradient: at 128k ids, about a megabyte a token.
Costs: smaller matrix products and more launches, and the gradient of the projection in float32: a few percent of time.
When: a large vocabulary beside a small model; out of memory at the very end of the forward pass.
When not: memory is to spare; with tp the logits are divided by the degree already.
Measure: peak memory and ms/step with and without; then tokens/s at the microbatch that the memory now allows.
Source: Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989; Wijmans et al. 2024, arXiv:2411.09009.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Batch, Owns, Program, Run
from .changes import Changes, MayChange
from .errors import StrategyError
from .limits import PositiveInt
from .mesh import Axis
from .refusal import Refusal
from .wins import COMPUTE, WAITING, Wins

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ChunkedLoss:
    """Takes the output projection into the loss."""

    num_chunks: PositiveInt = 8
    """Parts into which the tokens of a microbatch are cut: more of them, less memory and smaller products."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER)
    wins: ClassVar[Wins] = Wins(off=COMPUTE | WAITING)
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="pp",
            setting="a schedule that splits backward",
            holds=lambda loss, run: Owns.SPLIT_BACKWARD in run.owners,
            why="it passes the loss backwards twice, which would scale its gradients twice",
            instead="use a schedule that leaves backward whole: '1f1b' or 'interleaved_1f1b'",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: the same mathematics in another order."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse models without an output projection of their own, and chunks that are none."""
        if not run.facts.head:
            yield "the model has no output projection of its own (tied to the embedding?); untie it, or remove this"
        num_tokens = run.microbatch_size * run.facts.sequence_length // run.degrees[Axis.CP]
        if self.num_chunks == 1:
            yield "num_chunks = 1: one chunk holds all the logits; use 2 or more"
        elif num_tokens and self.num_chunks > num_tokens:
            yield f"num_chunks = {self.num_chunks}: a microbatch has {num_tokens} tokens on each rank; use fewer"

    def apply(self, program: Program, run: Run) -> Program:
        """Let the head hand on what it is given, and the loss do its work; a stage without a head stays as it is."""
        from torch import nn

        from .vocab_parallel import linear_cross_entropy

        if not program.facts.head:
            return program
        head: Any = program.model.get_submodule(program.facts.head)
        if not isinstance(head, nn.Linear) or "bias" in dict(head.named_parameters()):
            raise StrategyError(f"strategies.chunked_loss: {program.facts.head} is no linear layer without bias")
        _hand_on(head)
        mesh: Any = getattr(head.weight, "device_mesh", None)  # the vocabulary is sliced, if tp has been here
        num_chunks = self.num_chunks

        def chunked_loss(hidden_BTD: "Tensor", batch: Batch) -> "Tensor":
            # FSDP2 and DDP see the weight's gradient arrive as from any layer: it is used once a microbatch.
            weight: Any = head.weight
            weight_VD = weight if mesh is None else weight.to_local()
            return linear_cross_entropy(hidden_BTD.flatten(0, 1), weight_VD, batch.labels.flatten(), mesh, num_chunks)

        return replace(program, loss=chunked_loss)


def _hand_on(head: Any) -> None:
    """Let a linear layer return its input, in place: its parameter, its name and its hooks stay."""

    def forward(self: Any, hidden_BTD: "Tensor") -> "Tensor":
        return hidden_BTD

    head.__class__ = type("HandedOn", (type(head),), {"forward": forward})
