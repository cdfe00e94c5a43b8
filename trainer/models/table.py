"""What the table of any model can do."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ...strategies.base import Batch
from ...strategies.facts import Facts
from ..data.wanted import Gives

if TYPE_CHECKING:
    from torch import Tensor, nn


class ModelTable(Protocol):
    """A recipe's table of a model.

    One that keeps documents apart if it is called with inputs, positions and documents says so: `takes_documents`.
    """

    @property
    def takes(self) -> Gives:
        """What its samples must be."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids that it knows; 0 for a model that takes none."""
        ...

    def facts(self, sequence_length: int) -> Facts:
        """What strategies may know about it; without torch where it can be known without."""
        ...

    def build(self) -> "nn.Module":
        """The module, with weights as `torch.nn` makes them; built on the meta device if the facts can initialise."""
        ...

    def loss(self) -> "Callable[[Tensor, Batch], Tensor]":
        """Function of the model's output and the batch: the sum of the losses of what counts."""
        ...
