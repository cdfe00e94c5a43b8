"""Looks at a recipe's data before anything is started or written; without torch."""

from .config import DataConfig, SyntheticTokens
from .errors import DataError
from .tokens import SPLITS, Say, open_corpus, silent


def check_data(config: DataConfig, sequence_length: int, held_out_sequences: int = 0, say: Say = silent) -> None:
    """Build the corpus if the cache lacks it, and see that each split holds a sequence. Raises: DataError."""
    if isinstance(config.chosen, SyntheticTokens):
        return
    corpus = open_corpus(config.chosen, say)
    for split, needed in zip(SPLITS, (1, held_out_sequences), strict=True):
        num_tokens = (corpus.folder / f"{split}.u8").stat().st_size
        if needed and (num_tokens - 1) // sequence_length < needed:
            wanted = "one sequence" if needed == 1 else f"the {needed} sequences of a microbatch on each rank"
            raise DataError(
                f"batch.sequence_length = {sequence_length}: the {split} part has {num_tokens} bytes, not {wanted}; "
                f"give more data or shorter sequences"
            )
