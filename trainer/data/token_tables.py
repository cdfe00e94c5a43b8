"""Recipe tables of tokens that were packed: a folder that is there, chats and datasets that become one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from .errors import DataError
from .pack.folder import Index, read_index, split_of
from .wanted import Gives, Need, Say, Wanted

if TYPE_CHECKING:
    from .source import Source

Layout: TypeAlias = Literal["split", "best_fit", "truncate"]
"""How documents become samples of equal length."""


@dataclass(frozen=True, kw_only=True)
class TokensFolder:
    """A folder that `stepladder data pack` has made, mapped into memory."""

    folder: str
    """Where it is, relative to the working directory."""
    packing: Literal["split", "best_fit"] = "split"
    """`split`: all documents end to end, cut into samples; attention sees what stood before, of whatever document.
    `best_fit`: documents side by side, cut only if longer than a sample, and attention stays inside each."""

    gives: ClassVar[Gives] = "tokens"

    @property
    def documents(self) -> bool:
        """Whether samples say which document a position belongs to."""
        return self.packing == "best_fit"

    @property
    def num_ids(self) -> int:
        """Of the tokenizer; 0 if the folder cannot be read, which is a problem of its own."""
        try:
            return read_index(Path(self.folder)).num_ids
        except DataError:
            return 0

    def problems(self) -> Iterator[str]:
        """A folder that is none."""
        try:
            read_index(Path(self.folder))
        except DataError as error:
            yield f"folder = {self.folder!r}: {error}"

    def prepare(self, need: Need, say: Say) -> None:
        """See that both parts hold enough."""
        check_folder(Path(self.folder), need, self.packing)

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Windows, or documents side by side."""
        from .token_source import open_folder

        return open_folder(Path(self.folder), split, wanted.sequence_length, self.packing)


def check_folder(folder: Path, need: Need, layout: Layout) -> Index:
    """See that a folder holds a sample, or as many as an evaluation takes. Raises: DataError."""
    from .pack.best_fit import best_fit, truncated
    from .pack.folder import offsets_of

    index = read_index(folder)
    for name, needed in (("train", 1), ("held_out", need.held_out_samples)):
        if not needed:
            continue
        split = split_of(index, folder, name)
        if layout == "split":
            there = (split.num_tokens - 1) // need.sequence_length
        elif needed > 1:
            plan = (best_fit if layout == "best_fit" else truncated)(offsets_of(folder, name), need.sequence_length)
            there = plan.num_samples
        else:
            there = int(split.num_tokens > split.num_documents)
        if there < needed:
            wanted = "one sequence" if needed == 1 else f"the {needed} sequences of a microbatch on each rank"
            raise DataError(
                f"batch.sequence_length = {need.sequence_length}: the {name} part of {folder} has {split.num_tokens:,} "
                f"tokens in {split.num_documents:,} documents, not {wanted}; give more data or shorter sequences"
            )
    return index
