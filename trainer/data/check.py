"""Looks at a recipe's data before anything is started or written; without torch."""

from .config import DataConfig, SyntheticTokens
from .errors import DataError
from .tokens import SPLITS, open_corpus


def check_data(config: DataConfig, sequence_length: int) -> None:
    """Build the corpus if the cache lacks it, and see that each split holds a sequence. Raises: DataError."""
    if isinstance(config.chosen, SyntheticTokens):
        return
    corpus = open_corpus(config.chosen)
    for split in SPLITS:
        num_tokens = (corpus.folder / f"{split}.u8").stat().st_size
        if num_tokens <= sequence_length:
            raise DataError(
                f"batch.sequence_length = {sequence_length}: the {split} part has {num_tokens} bytes, not one "
                f"sequence; give more data or shorter sequences"
            )
