"""Samples of packed tokens: windows of the whole stream, or documents side by side."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...strategies.base import Batch
from .errors import DataError
from .pack.best_fit import Plan, best_fit, truncated
from .pack.folder import counts_of, offsets_of, read_index, split_of, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .token_tables import Layout

_NOTHING = -100


class TokenWindows:
    """Consecutive windows of all tokens, whatever document they belong to: none is left but the last."""

    on_device = False

    def __init__(self, tokens: Any, counts: Any, sequence_length: int, fingerprint: str, known: int = 0) -> None:
        """`tokens` and `counts` (None if all count) are arrays that may be memory-mapped, [N].

        `known`: ids from this one on are damage; 0 if any is an id.
        """
        self._known = known
        self._tokens, self._counts, self._length = tokens, counts, sequence_length
        self.fingerprint = fingerprint
        self.all_valid = counts is None

    def __len__(self) -> int:
        """Whole windows."""
        return max(0, (len(self._tokens) - 1) // self._length)

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """[B, T] inputs and labels, each label one token further."""
        numbers = torch.as_tensor(indices).tolist()
        inputs = np.empty((len(numbers), self._length), dtype=np.int64)
        labels = np.empty_like(inputs)
        for row, number in enumerate(numbers):
            begin = number * self._length
            end = begin + self._length
            inputs[row], labels[row] = self._tokens[begin:end], self._tokens[begin + 1 : end + 1]
            if self._counts is not None:
                labels[row][self._counts[begin + 1 : end + 1] == 0] = _NOTHING
        _see_ids(inputs, labels, self._tokens, self._known)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(labels))

    def describe(self) -> str:
        """For whoever inspects."""
        return f"{len(self._tokens):,} tokens end to end, cut every {self._length}"


class TokenDocuments:
    """Samples in which pieces of documents stand side by side, each with positions of its own.

    What is left of a sample holds the end token, counts nothing, and is a document of its own.
    """

    on_device = False
    all_valid = False

    def __init__(
        self, tokens: Any, counts: Any, plan: Plan, *, alone: bool, end_id: int, fingerprint: str, known: int = 0
    ) -> None:
        """`alone`: there is one document in each sample, so that a causal attention needs no mask.

        `known`: ids from this one on are damage; 0 if any is an id.
        """
        self._known = known
        self._tokens, self._counts, self._plan = tokens, counts, plan
        self._alone, self._end_id = alone, end_id
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        """Samples that hold documents."""
        return self._plan.num_samples

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """[B, T] inputs, labels, positions and documents."""
        numbers = torch.as_tensor(indices).tolist()
        plan, length = self._plan, self._plan.capacity
        inputs = np.full((len(numbers), length), self._end_id, dtype=np.int64)
        labels = np.full_like(inputs, _NOTHING)
        positions = np.empty_like(inputs)
        documents = np.empty((len(numbers), length), dtype=np.int32)
        count = np.arange(length)
        for row, number in enumerate(numbers):
            first, last = int(plan.samples[number]), int(plan.samples[number + 1])
            at = 0
            for piece in range(first, last):
                begin, size = int(plan.starts[piece]), int(plan.lengths[piece])
                to, end = at + size, begin + size
                inputs[row, at:to], labels[row, at:to] = self._tokens[begin:end], self._tokens[begin + 1 : end + 1]
                if self._counts is not None:
                    labels[row, at:to][self._counts[begin + 1 : end + 1] == 0] = _NOTHING
                positions[row, at:to], documents[row, at:to] = count[:size], piece - first
                at = to
            positions[row, at:], documents[row, at:] = count[: length - at], last - first
        _see_ids(inputs, labels, self._tokens, self._known)
        if self._alone:
            return Batch(torch.from_numpy(inputs), torch.from_numpy(labels))
        made = (inputs, labels, positions, documents)
        return Batch(*map(torch.from_numpy, made))

    def describe(self) -> str:
        """For whoever inspects."""
        plan = self._plan
        left_out = f", {plan.num_left_out:,} left out with nothing to learn in them" if plan.num_left_out else ""
        return f"{len(plan.starts):,} pieces of documents, {100 * plan.waste:.2f} % of the positions empty{left_out}"


def _see_ids(inputs: Any, labels: Any, tokens: Any, known: int) -> None:
    """A look at each batch costs next to nothing, a look at the whole file minutes. Raises: DataError."""
    largest = max(inputs.max(initial=0), labels.max(initial=0))
    if known and largest >= known:
        raise DataError(
            f"{getattr(tokens, 'filename', 'tokens')}: is damaged: it holds the id {largest:,}, but its index knows "
            f"{known:,}; pack the folder again"
        )


def open_folder(folder: "Path", split: str, sequence_length: int, layout: "Layout") -> TokenWindows | TokenDocuments:
    """A split of a packed folder as samples. Raises: DataError if it is damaged, or holds not one sample."""
    index = read_index(folder)
    part = split_of(index, folder, split)
    tokens, counts = tokens_of(folder, index, split), counts_of(folder, index, split)
    fingerprint = f"{index.fingerprint}-{layout}-{sequence_length}"
    known = index.num_ids if index.num_ids < 256**index.width else 0
    if layout == "split":
        source = TokenWindows(tokens, counts, sequence_length, fingerprint, known)
    else:
        lay_out = best_fit if layout == "best_fit" else truncated
        plan = lay_out(offsets_of(folder, index, split), sequence_length, counts)
        fingerprint += f"-{plan.num_left_out}" if plan.num_left_out else ""
        alone = layout == "truncate"
        source = TokenDocuments(
            tokens, counts, plan, alone=alone, end_id=index.end_id, fingerprint=fingerprint, known=known
        )
    if len(source) == 0:
        raise DataError(
            f"batch.sequence_length = {sequence_length}: the {split} part of {folder} has {part.num_tokens:,} tokens, "
            f"not one sequence; give more data or shorter sequences"
        )
    return source
