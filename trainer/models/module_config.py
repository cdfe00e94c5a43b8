"""A user's own `nn.Module`, from a Python file that the recipe names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...strategies.facts import Facts
from ...strategies.limits import Count
from ..data.wanted import Gives
from ..own_file import OwnFileError, call, load, problem_with

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...strategies.base import Batch

_UNITS: dict[Gives, str] = {"tokens": "token", "images": "image", "anything": "sample"}


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """Any `nn.Module` that a Python file of yours builds; the file is run, like any script.

    `build()` returns the module, which is called with a batch's inputs. `loss(output, batch)`, if there is one, returns
    the loss of the batch; else the output is the loss. `facts()`, if there is one, returns `Facts`; else blocks are
    detected: DDP, FSDP2, checkpointing and compile need no more.
    """

    file: str
    """The Python file, relative to the working directory."""
    takes: Gives = "anything"
    """What samples it is called with: `tokens`, `images`, or `anything` that data.module gives."""
    vocab_size: Count = 0
    """Token ids that it knows, if it takes tokens."""
    reduction: Literal["sum", "mean"] = "sum"
    """What the file's loss is over the labels of a batch that are not -100: their `sum`, or their `mean`."""

    def problems(self) -> Iterator[str]:
        """A file that is none, and settings without effect."""
        if problem := problem_with(self.file):
            yield problem
        if self.takes == "tokens" and not self.vocab_size:
            yield "vocab_size = 0: a model of tokens knows some; say how many ids"
        if self.takes != "tokens" and self.vocab_size:
            yield f"vocab_size = {self.vocab_size}: has no effect with takes = {self.takes!r}; remove it"

    def facts(self, sequence_length: int) -> Facts:
        """What the file says, or else what its module shows. Raises: OwnFileError."""
        if hasattr(load(self.file), "facts"):
            facts: Any = call(self.file, "facts")
            if not isinstance(facts, Facts):
                raise OwnFileError(f"{self.file}: facts() returns {type(facts).__name__}; return a Facts")
            return facts
        from .detect import find_blocks

        model = self._outline()
        return Facts(
            blocks=find_blocks(model),
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            unit=_UNITS[self.takes],
            sequence_length=sequence_length if self.takes == "tokens" else 1,
            has_modes=True,
        )

    def _outline(self) -> "nn.Module":
        """The module without storage, or with it if it insists."""
        import torch

        try:
            with torch.device("meta"):
                return self.build()
        except OwnFileError:  # it looks at numbers while it is built
            return self.build()

    def build(self) -> "nn.Module":
        """The file's module. Raises: OwnFileError."""
        from torch import nn

        model = call(self.file, "build")
        if not isinstance(model, nn.Module):
            raise OwnFileError(f"{self.file}: build() returns {type(model).__name__}; return an nn.Module")
        return model

    def loss(self) -> "Callable[[Tensor, Batch], Tensor]":
        """The file's loss, or what the model itself returns, as a sum."""
        import torch

        own: Callable[[Tensor, Batch], Tensor] | None = getattr(load(self.file), "loss", None)
        is_mean, file = self.reduction == "mean", self.file
        what = "loss() returns" if own else "there is no loss(), and the model returns"

        def summed(output: "Tensor", batch: "Batch") -> "Tensor":
            value = output if own is None else own(output, batch)
            if getattr(value, "ndim", None) != 0:
                raise OwnFileError(f"{file}: {what} no single number; return a tensor without dimensions")
            if torch.is_grad_enabled() and not value.requires_grad:
                raise OwnFileError(f"{file}: {what} a number without gradients; compute it from the model's output")
            return value * (batch.labels != -100).sum() if is_mean else value

        return summed
