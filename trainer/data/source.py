"""Map-style sources: a whole microbatch from a list of sample indices."""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...strategies.base import Batch
from .config import DataConfig, FilesCorpus, StdlibCorpus, SyntheticTokens
from .errors import DataError
from .tokens import open_corpus
from .wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence


class Source(Protocol):
    """Samples by index. T sequence length, B length of the index list.

    A sample's index says which one it is for good, so `order` decides alone who sees it when: ranks, workers and
    resumes have nothing to remember. One that can only be read from front to back has a `stream` of microbatches as
    well, which is then used, and says why its order is `approximate`.
    """

    fingerprint: str
    """Changes when the samples change."""
    all_valid: bool
    """Every label counts, so the number of valid tokens is known without looking."""
    on_device: bool
    """Batches are already where the model is."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """[B, T] inputs and labels of the samples with these indices, [B]."""
        ...


class PackedBytes:
    """Consecutive windows of a flat file of bytes: inputs [i*T, i*T+T), labels one further."""

    all_valid = True
    on_device = False

    def __init__(self, tokens: Tensor, sequence_length: int, fingerprint: str) -> None:
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.fingerprint = fingerprint
        # Rows that overlap by one token, gathered by copying: an index of each token takes 2.7 times as long.
        self._windows = tokens.as_strided((len(self), sequence_length + 1), (sequence_length, 1))

    def __len__(self) -> int:
        """Whole windows; the remainder is left out."""
        return max(0, (len(self.tokens) - 1) // self.sequence_length)

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """Gather the windows in one indexing operation."""
        windows = self._windows.index_select(0, torch.as_tensor(indices)).long()
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


class SyntheticSource:
    """Random tokens that live on the device; a microbatch is a gather there."""

    all_valid = True
    on_device = True

    def __init__(
        self, *, num_samples: int, sequence_length: int, vocab_size: int, seed: int, device: torch.device
    ) -> None:
        generator = torch.Generator(device=device).manual_seed(seed)
        shape = (num_samples, sequence_length + 1)
        self.tokens = torch.randint(vocab_size, shape, generator=generator, device=device)
        self.fingerprint = f"synthetic-{num_samples}-{sequence_length}-{vocab_size}-{seed}"

    def __len__(self) -> int:
        """Distinct samples."""
        return len(self.tokens)

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """Gather on the device."""
        windows = self.tokens.index_select(0, on_the_device_of(self.tokens, indices))
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def on_the_device_of(samples: Tensor, indices: "Tensor | Sequence[int]") -> Tensor:
    """Sample indices where the samples are."""
    rows = torch.as_tensor(indices)
    if samples.is_cuda:  # from pageable memory the copy would wait for the device, in every step
        rows = rows.pin_memory().to(samples.device, non_blocking=True)
    return rows


def synthetic(config: SyntheticTokens, split: str, wanted: Wanted) -> SyntheticSource:
    """Random tokens of a split."""
    return SyntheticSource(
        num_samples=config.num_samples,
        sequence_length=wanted.sequence_length,
        vocab_size=wanted.vocab_size,
        seed=wanted.seed + (0 if split == "train" else 1),
        device=wanted.device,
    )


def packed_bytes(config: StdlibCorpus | FilesCorpus, split: str, wanted: Wanted) -> PackedBytes:
    """A split of a corpus. Raises: DataError if it cannot be read, or is shorter than one sequence."""
    corpus, length = open_corpus(config), wanted.sequence_length
    source = PackedBytes(corpus.tokens(split), length, f"{corpus.fingerprint}-{length}")
    if len(source) == 0:
        raise DataError(
            f"batch.sequence_length = {length}: the {split} part has {len(source.tokens)} bytes, not one "
            f"sequence; give more data or shorter sequences"
        )
    return source


def open_source(
    config: DataConfig, split: str, *, sequence_length: int, vocab_size: int, seed: int, device: torch.device
) -> Source:
    """The samples of a recipe's split (`train` or `held_out`).

    Raises: DataError if the source cannot be read, or the split is shorter than one sequence.
    """
    wanted = Wanted(sequence_length=sequence_length, vocab_size=vocab_size, seed=seed, device=device)
    return config.chosen.open(split, wanted)
