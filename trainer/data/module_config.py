"""A user's own dataset, from a Python file that the recipe names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..own_file import problem_with
from .wanted import Gives, Need, Say, Wanted

if TYPE_CHECKING:
    from .source import Source


@dataclass(frozen=True, kw_only=True)
class ModuleData:
    """A map-style dataset that a Python file of yours makes; the file is run, like any script.

    `data(split)` returns it, for "train" and, if the recipe evaluates, "held_out". `collate(samples)`, if there is one,
    makes a batch: a pair (inputs, labels), or anything else that the model then takes whole.
    """

    file: str
    """The Python file, relative to the working directory."""
    gives: Gives = "anything"
    """What its samples are: `tokens` or `images` go with models that take them, `anything` with model.module."""
    num_ids: ClassVar[int] = 0

    def problems(self) -> Iterator[str]:
        """A file that is none."""
        if problem := problem_with(self.file):
            yield problem

    def prepare(self, need: Need, say: Say) -> None:
        """Make the datasets once, so that what they fetch is there, and see that they hold enough."""
        from .module_source import check

        check(self, need)

    def open(self, split: str, wanted: Wanted) -> "Source":
        """The dataset of a split."""
        from .module_source import ModuleSource

        return ModuleSource(self.file, split)
