"""What `stepladder data inspect` says of a packed folder, and of the samples that a recipe trains on."""

import statistics
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..trainer.data.errors import DataError
from .data_command import counts

if TYPE_CHECKING:
    from ..strategies.base import Batch

_SHOWN_CHARACTERS = 300


def of_folder(folder: Path, num_samples: int, *, with_hashes: bool) -> Iterator[str]:
    """Counts, lengths, some documents; then the hashes. Raises: DataError if a file is not what was written."""
    from ..trainer.data.pack.folder import TOKENIZER, check_hashes, offsets_of, read_index, tokens_of
    from ..trainer.data.pack.tokenizer import open_tokenizer

    index = read_index(folder)
    yield from counts(folder, index)
    tokenizer: Any = open_tokenizer("bytes")
    if index.tokenizer != tokenizer.fingerprint:
        tokenizer = open_tokenizer(str(folder / TOKENIZER))
    for split in index.splits:
        offsets = offsets_of(folder, index, split)
        lengths = sorted((offsets[1:] - offsets[:-1]).tolist())
        yield (
            f"lengths     {split}: {lengths[0]:,} to {lengths[-1]:,} tokens, half have up to "
            f"{statistics.median_high(lengths):,}, mean {statistics.mean(lengths):,.0f}"
        )
        tokens = tokens_of(folder, index, split)
        for number in _spread(num_samples, len(lengths)):
            begin, end = int(offsets[number]), int(offsets[number + 1])
            text = tokenizer.decode(tokens[begin : min(end, begin + 4 * _SHOWN_CHARACTERS)].tolist())
            yield f"{split} document {number}, {end - begin:,} tokens: {_shown(text)}"
    if with_hashes:
        if damaged := check_hashes(folder, index):
            raise DataError("; ".join(damaged))
        yield f"hashes      {sum(len(split.files) for split in index.splits.values())} files are as they were written"


def of_recipe(name: str, overrides: Sequence[str], num_samples: int) -> Iterator[str]:
    """The samples of a recipe's source, as a step would see them. Raises: DataError, UsageError."""
    import torch

    from ..trainer.data.check import check_data
    from ..trainer.data.order import Share
    from ..trainer.data.source import open_source
    from . import recipe as recipes

    recipe = recipes.read(name, overrides)
    check_data(recipe.data, recipe.batch.sequence_length)
    source = open_source(
        recipe.data,
        "train",
        sequence_length=recipe.batch.sequence_length,
        vocab_size=recipe.model.chosen.vocab_size,
        seed=recipe.run.seed,
        device=torch.device("cpu"),
    )
    if hasattr(source, "stream"):
        yield f"source      data.{recipe.data.name}: a stream, fingerprint {source.fingerprint}"
        yield f"order       {cast(Any, source).approximate(1)}"
        one = Share(num_samples=1, microbatch_size=1, num_microbatches=1, rank=0, num_ranks=1, seed=recipe.run.seed)
        for number, made in enumerate(islice(cast(Any, source).stream(one, 0), max(0, num_samples))):
            yield _described(number, made.batch)
        return
    yield f"source      data.{recipe.data.name}: {len(source):,} samples, fingerprint {source.fingerprint}"
    if hasattr(source, "describe"):
        yield f"samples     {cast(Any, source).describe()}"
    for number in _spread(num_samples, len(source)):
        yield _described(number, source.__getitems__([number]))


def _described(number: int, batch: "Batch") -> str:
    """Shape, labels, documents and the beginning of a sample."""
    valid = int((batch.labels != -100).sum())
    documents = "" if batch.documents is None else f", {len(batch.documents.unique())} documents"
    inputs: Any = batch.inputs
    shown = inputs[0].flatten()[:16].tolist() if hasattr(inputs, "shape") else "(a nest of tensors)"
    shape = list(inputs.shape[1:]) if hasattr(inputs, "shape") else ""
    return f"sample {number}: {shape}, {valid} of {batch.labels.numel()} labels count{documents}: {shown} ..."


def _spread(wanted: int, there: int) -> list[int]:
    """Numbers from all over, the first and the last among them."""
    wanted = min(max(0, wanted), there)
    return sorted({round(i * (there - 1) / max(1, wanted - 1)) for i in range(wanted)})


def _shown(text: str) -> str:
    """A text in one line, cut where it is long."""
    shown = repr(text[:_SHOWN_CHARACTERS])
    return f"{shown} ..." if len(text) > _SHOWN_CHARACTERS else shown
