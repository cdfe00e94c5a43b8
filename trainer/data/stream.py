"""A dataset that is read while the run trains: no length, no samples by number, and so an approximate order."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...strategies.base import Batch
from .errors import DataError
from .pack.tokenizer import open_tokenizer
from .stages import Made, Stage, StageClock
from .wanted import Wanted

if TYPE_CHECKING:
    from .order import Share
    from .token_tables import HubDataset

_TEXTS = 64
"""In one call of the tokenizer."""


class TokenStream:
    """Rows as they come, tokenised, end to end, cut into windows; each rank has rows of its own."""

    all_valid = True
    on_device = False

    def __init__(self, table: "HubDataset", wanted: Wanted) -> None:
        """Open the stream. Raises: DataError."""
        self._table, self._length, self._seed = table, wanted.sequence_length, wanted.seed
        self._tokenizer = open_tokenizer(table.tokenizer)
        self._rows = _streamed(table)
        self.num_shards: int = self._rows.num_shards
        self.num_skipped = 0
        self.fingerprint = (
            f"stream-{table.path}-{table.config}-{table.split}-{self._tokenizer.fingerprint}-{self._length}"
        )

    def __len__(self) -> int:
        """Nobody knows; more than a run takes."""
        return 1 << 40

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """A stream has no samples by number. Raises: DataError."""
        raise DataError("data.hub.streaming: a stream has no samples by number; set streaming = false to look at them")

    def approximate(self, num_ranks: int) -> str:
        """Why the order of the samples is not exact."""
        rows = f" of {self._table.shuffle_rows} rows" if self._table.shuffle_rows else ""
        few = (
            f"; {self.num_shards} files for {num_ranks} ranks: each reads all and keeps one row in {num_ranks}"
            if self.num_shards % num_ranks
            else ""
        )
        return (
            f"approximate: data.hub is streamed{f', shuffled in a buffer{rows}' if rows else ''}. A resume reads again "
            f"and passes over what each rank has had, so on another number of ranks samples are seen twice or not at "
            f"all{few}. streaming = false is exact"
        )

    def stream(self, share: "Share", first_step: int) -> Iterator[Made]:
        """The rank's microbatches from a step on, without end. Raises: DataError."""
        from datasets.distributed import split_dataset_by_node

        rows: Any = self._rows
        if self._table.shuffle_rows:
            rows = rows.shuffle(seed=self._seed, buffer_size=self._table.shuffle_rows)
        rows = split_dataset_by_node(rows, rank=share.rank, world_size=share.num_ranks)
        windows = self._windows(rows)
        done = first_step * share.num_microbatches * share.microbatch_size
        next(islice(windows, done, done), None)
        while True:
            clock = StageClock()
            whole = torch.from_numpy(np.stack(list(islice(windows, share.microbatch_size))))
            clock.lap(Stage.READ)
            batch = Batch(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())
            clock.lap(Stage.COLLATE)
            yield Made(batch, clock.making())

    def _windows(self, rows: Any) -> Iterator[Any]:
        """[T + 1] tokens each; the next window begins with the last token of this one."""
        left = np.empty(0, dtype=np.int64)
        end = np.array([self._tokenizer.end_id], dtype=np.int64)
        epoch = 0
        while True:
            rows.set_epoch(epoch)
            texts = self._texts(rows)
            begun = False
            while some := list(islice(texts, _TEXTS)):
                begun = True
                ids = [part for each in self._tokenizer.encode(some) for part in (each.astype(np.int64), end)]
                left = np.concatenate([left, *ids])
                count = (len(left) - 1) // self._length
                for i in range(count):
                    yield left[i * self._length : (i + 1) * self._length + 1]
                left = left[count * self._length :]
            if not begun:
                raise DataError(f"data.hub.path = {self._table.path!r}: this rank gets no row of it; use fewer ranks")
            epoch += 1

    def _texts(self, rows: Any) -> Iterator[str]:
        column = self._table.column
        for number, row in enumerate(rows, start=1):
            text = row.get(column)
            if isinstance(text, str):
                if text:
                    yield text
                continue
            said = f"data.hub.column = {column!r}: row {number} of this rank has {', '.join(row)}, but no text there"
            self.num_skipped += 1
            if self._table.on_error == "stop":
                raise DataError(f"{said}; name a column of strings, or set on_error = 'skip'")
            if self.num_skipped > self._table.error_budget:
                raise DataError(f"{said}; that is more than error_budget = {self._table.error_budget}")


def _streamed(table: "HubDataset") -> Any:
    """The rows of a dataset as they come. Raises: DataError."""
    try:
        import datasets

        library: Any = datasets
        library.disable_progress_bars()
        folder = Path(table.path)
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = library.load_from_disk(table.path)
            found = found[table.split] if isinstance(found, dict) else found
            return found.to_iterable_dataset(num_shards=max(1, len(found.cache_files)))
        # A folder's full path: a bare word like `parquet` would be taken for the name of a format.
        name = str(folder.resolve()) if folder.is_dir() else table.path
        return library.load_dataset(name, table.config or None, split=table.split, streaming=True)
    except Exception as error:  # a folder that is none, no network, no such split: many kinds, one meaning
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data.hub.path = {table.path!r}: cannot be opened ({first_line}); check its name") from error
