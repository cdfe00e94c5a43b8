"""Recipe tables of tokens that were packed: a folder that is there, chats and datasets that become one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from ...strategies.limits import AtLeast, Below, Count
from .errors import DataError
from .pack.chat import Template
from .pack.documents import Reading
from .pack.folder import Index, read_index, split_of
from .pack.parts import Packing
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


class _Packed:
    """What tables have in common whose source is packed into the cache first."""

    gives: ClassVar[Gives] = "tokens"

    @property
    def num_ids(self) -> int:
        """Of the tokenizer; 0 if that cannot be read, which is a problem of its own."""
        from .pack.tokenizer import open_tokenizer, vocabulary_to_train

        named = self.as_packing().tokenizer
        try:
            return vocabulary_to_train(named) or open_tokenizer(named).num_ids
        except DataError:
            return 0

    def as_packing(self) -> Packing:
        """What is to be packed, and how."""
        raise NotImplementedError

    def _layout(self) -> Layout:
        raise NotImplementedError

    @property
    def documents(self) -> bool:
        """Whether samples say which document a position belongs to."""
        return self._layout() == "best_fit"

    def prepare(self, need: Need, say: Say) -> None:
        """Pack what the cache lacks, and see that both parts hold enough."""
        from .pack.cache import packed_in_cache

        check_folder(packed_in_cache(self.as_packing(), say), need, self._layout())

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Samples of the packed folder."""
        from .pack.cache import packed_in_cache
        from .token_source import open_folder

        return open_folder(packed_in_cache(self.as_packing()), split, wanted.sequence_length, self._layout())


def _tokenizer_problems(named: str) -> Iterator[str]:
    from .pack.tokenizer import open_tokenizer, vocabulary_to_train

    try:
        if vocabulary_to_train(named) is None:
            open_tokenizer(named)
    except DataError as error:
        yield f"tokenizer = {named!r}: {error}"


@dataclass(frozen=True, kw_only=True)
class ChatFiles(_Packed):
    """Conversations in JSONL files, for supervised fine-tuning: only the assistant's words count in the loss.

    Each line is an object with a list of messages, each of them with `role` and `content`.
    """

    paths: tuple[str, ...]
    """Files or glob patterns, relative to the working directory."""
    column: str = "messages"
    """Where the list of messages is."""
    tokenizer: str = "bytes"
    """A tokenizer.json or a folder with one, `train:VOCAB` to learn one from the conversations, or bytes."""
    before: str = Template.before
    """Stands before each message, special tokens by name; the default template is ChatML."""
    after: str = Template.after
    """Stands after each message; the assistant learns to write it."""
    packing: Literal["best_fit", "truncate"] = "best_fit"
    """`best_fit`: conversations side by side, attention inside each. `truncate`: a sample for each, cut at its end."""
    held_out: Annotated[float, AtLeast(0), Below(1)] = 0.05
    """Part of the conversations that is only evaluated on, chosen by a hash of their text."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a line that is damaged."""
    error_budget: Count = 100
    """Lines that may be skipped."""

    def problems(self) -> Iterator[str]:
        """Paths that match nothing, and a tokenizer that is none."""
        from .config import path_problems

        yield from path_problems(self.paths)
        if "{role}" not in self.before:
            yield f"before = {self.before!r}: does not say whose message it is; put {{role}} into it"
        yield from _tokenizer_problems(self.tokenizer)

    def as_packing(self) -> Packing:
        """The conversations by the template."""
        return Packing(
            sources=self.paths,
            tokenizer=self.tokenizer,
            format="chat",
            reading=Reading(column=self.column),
            template=Template(before=self.before, after=self.after),
            held_out=self.held_out,
            on_error=self.on_error,
            error_budget=self.error_budget,
        )

    def _layout(self) -> Layout:
        return self.packing


@dataclass(frozen=True, kw_only=True)
class HubDataset(_Packed):
    """A dataset of Hugging Face: by its name on the hub, or a folder that holds one."""

    path: str
    """Name on the hub, or a folder: what `save_to_disk` wrote, or Parquet or JSONL files."""
    config: str = ""
    """Which of its configurations."""
    split: str = "train"
    """Which of its splits; a part of it is held out."""
    column: str = "text"
    """Where the text is."""
    tokenizer: str = "bytes"
    """A tokenizer.json or a folder with one, `train:VOCAB` to learn one from the texts, or bytes."""
    packing: Literal["split", "best_fit"] = "split"
    """As in data.tokens: documents end to end, or side by side with attention inside each."""
    streaming: bool = False
    """Read while training instead of packing first: for what is larger than the disk. Its order is approximate."""
    shuffle_rows: Count = 1000
    """Rows among which a stream is shuffled; 0 leaves the order as it is."""
    held_out: Annotated[float, AtLeast(0), Below(1)] = 0.05
    """Part of the documents that is only evaluated on, chosen by a hash of their text."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a row that holds no text."""
    error_budget: Count = 100
    """Rows that may be skipped."""

    def problems(self) -> Iterator[str]:
        """A library or tokenizer that is not there, and keys that a stream or a packed dataset has no use for."""
        import importlib.util

        if importlib.util.find_spec("datasets") is None:
            yield "path: needs the `datasets` library, which is not installed; pip install 'stepladder[data]'"
        yield from _tokenizer_problems(self.tokenizer)
        if self.streaming and self.packing != "split":
            yield f"packing = {self.packing!r}: a stream does not know its documents beforehand; use 'split'"
        if self.streaming and self.tokenizer.startswith("train:"):
            yield f"tokenizer = {self.tokenizer!r}: there is nothing to learn it from before a stream; give a file"

    @property
    def streams(self) -> bool:
        """Whether samples come in an order that only the stream knows."""
        return self.streaming

    def prepare(self, need: Need, say: Say) -> None:
        """Pack what the cache lacks; of a stream nothing is needed but that it opens."""
        if not self.streaming:
            super().prepare(need, say)
        elif need.held_out_samples:
            raise DataError("data.hub.streaming: a stream has no held-out part; remove [evaluation], or do not stream")

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Samples of the packed folder, or of the stream."""
        if not self.streaming:
            return super().open(split, wanted)
        from .stream import TokenStream

        return TokenStream(self, wanted)

    def as_packing(self) -> Packing:
        """The rows in their order."""
        return Packing(
            sources=(f"hub:{self.path}",),
            tokenizer=self.tokenizer,
            format="hub",
            reading=Reading(column=self.column, config=self.config, split=self.split),
            held_out=self.held_out,
            on_error=self.on_error,
            error_budget=self.error_budget,
        )

    def _layout(self) -> Layout:
        return self.packing


def check_folder(folder: Path, need: Need, layout: Layout) -> Index:
    """See that a folder holds a sample, or as many as an evaluation takes. Raises: DataError."""
    from .pack.best_fit import best_fit, truncated
    from .pack.folder import counts_of, offsets_of

    index = read_index(folder)
    for name, needed in (("train", 1), ("held_out", need.held_out_samples)):
        if not needed:
            continue
        split = split_of(index, folder, name)
        if layout == "split":
            there = (split.num_tokens - 1) // need.sequence_length
        elif (counts := counts_of(folder, index, name)) is not None or needed > 1:
            lay_out = best_fit if layout == "best_fit" else truncated
            plan = lay_out(offsets_of(folder, index, name), need.sequence_length, counts)
            there = plan.num_samples
            if there < needed and plan.num_left_out and layout == "truncate":
                raise DataError(
                    f"batch.sequence_length = {need.sequence_length}: of {plan.num_left_out:,} conversations in the "
                    f"{name} part the assistant's words lie behind the cut, {there:,} are left of {needed:,} needed; "
                    f"use longer sequences or packing = 'best_fit'"
                )
        else:
            there = int(split.num_tokens > split.num_documents)
        if there < needed:
            wanted = "one sequence" if needed == 1 else f"the {needed} sequences of a microbatch on each rank"
            raise DataError(
                f"batch.sequence_length = {need.sequence_length}: the {name} part of {folder} has {split.num_tokens:,} "
                f"tokens in {split.num_documents:,} documents, not {wanted}; give more data or shorter sequences"
            )
    return index
