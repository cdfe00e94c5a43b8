"""What a run asks of its data, and what every table of a source can do; without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

    from .source import Source

Gives: TypeAlias = Literal["tokens", "images", "anything"]
"""What samples are: token ids, images with a class each, or what only the user's own model understands."""
Say = Callable[[str], None]
"""Where a long build tells how far it is."""


def silent(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """How much data a run needs at least, known before there is a device."""

    sequence_length: int
    held_out_samples: int = 0
    """0 if nothing is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a rank asks of a source."""

    sequence_length: int
    vocab_size: int
    """Ids that the model knows; 0 for a model that takes none."""
    seed: int
    device: "torch.device"


class DataTable(Protocol):
    """A recipe's table of a source.

    One whose samples hold several documents, which attention must keep apart, says so: `documents` is true.
    """

    @property
    def gives(self) -> Gives:
        """What its samples are."""
        ...

    @property
    def num_ids(self) -> int:
        """Token ids that it can give, so that the model must know as many; 0 if it keeps to what the model knows."""
        ...

    def prepare(self, need: Need, say: Say) -> None:
        """Do once, before the ranks start, what takes long; see that all is there. Raises: DataError."""
        ...

    def open(self, split: str, wanted: Wanted) -> "Source":
        """The samples of a split (`train` or `held_out`). Raises: DataError."""
        ...
