"""Looks at a recipe's data before anything is started or written; without torch."""

from .config import DataConfig, FilesCorpus, StdlibCorpus
from .errors import DataError
from .tokens import SPLITS, open_corpus
from .wanted import Need, Say, silent


def check_data(config: DataConfig, sequence_length: int, held_out_samples: int = 0, say: Say = silent) -> None:
    """Build what the cache lacks, and see that each split holds what the run needs at least. Raises: DataError."""
    config.chosen.prepare(Need(sequence_length=sequence_length, held_out_samples=held_out_samples), say)


def check_corpus(config: StdlibCorpus | FilesCorpus, need: Need, say: Say) -> None:
    """See that both parts of a corpus hold a sequence, or as many as an evaluation takes. Raises: DataError."""
    corpus = open_corpus(config, say)
    for split, needed in zip(SPLITS, (1, need.held_out_samples), strict=True):
        num_tokens = (corpus.folder / f"{split}.u8").stat().st_size
        if needed and (num_tokens - 1) // need.sequence_length < needed:
            wanted = "one sequence" if needed == 1 else f"the {needed} sequences of a microbatch on each rank"
            raise DataError(
                f"batch.sequence_length = {need.sequence_length}: the {split} part has {num_tokens} bytes, not "
                f"{wanted}; give more data or shorter sequences"
            )
