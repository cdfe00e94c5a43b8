"""A stream gives every rank rows of its own, and goes on where a rank was."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.stream import TokenStream
from stepladder.trainer.data.token_tables import HubDataset
from stepladder.trainer.data.wanted import Need, Wanted, silent

datasets = pytest.importorskip("datasets")
LENGTH = 8
WANTED = Wanted(sequence_length=LENGTH, vocab_size=256, seed=0, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library sleeps five seconds at the end of files, for the sake of threads that end with the process."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """120 rows of 7 letters in two files, so that a row and its end make a window."""
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": [f"{i:07d}" for i in range(120)]})
    for i in range(2):
        rows.shard(2, i).to_parquet(str(tmp_path / f"{i}.parquet"))
    return str(tmp_path)


def share(rank: int, num_ranks: int) -> Share:
    return Share(num_samples=1 << 40, microbatch_size=3, num_microbatches=2, rank=rank, num_ranks=num_ranks, seed=0)


def texts(stream: TokenStream, rank: int, num_ranks: int, *, first_step: int, steps: int) -> list[str]:
    made = islice(stream.stream(share(rank, num_ranks), first_step), 2 * steps)
    return [bytes(row[:7].tolist()).decode() for each in made for row in each.batch.inputs]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_share_an_epoch_of_a_stream(num_ranks: int, folder: str) -> None:
    stream = TokenStream(HubDataset(path=folder, streaming=True), WANTED)
    steps = 120 // (6 * num_ranks) - 1  # the last window of an epoch waits for the first token of the next
    seen = [texts(stream, rank, num_ranks, first_step=0, steps=steps) for rank in range(num_ranks)]
    every = [text for each in seen for text in each]
    assert len(every) == len(set(every)) == 6 * steps * num_ranks
    assert ("2 files for 4 ranks" in stream.approximate(num_ranks)) == (num_ranks == 4)
    assert seen[0] != sorted(seen[0])  # shuffled


def test_a_stream_goes_on_where_the_rank_was_also_in_a_later_epoch(folder: str) -> None:
    stream = TokenStream(HubDataset(path=folder, streaming=True), WANTED)
    whole = texts(stream, 1, 2, first_step=0, steps=14)
    assert texts(stream, 1, 2, first_step=11, steps=3) == whole[11 * 6 :]
    assert whole[:60] != whole[60:][:24]
    assert set(whole[60:]) <= set(whole[:60])


def test_rows_without_text_stop_a_stream_or_are_counted(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": [None, "abcdefg"] * 50})
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    stops, skips = (
        TokenStream(HubDataset(path=str(tmp_path), streaming=True, on_error=how, error_budget=50), WANTED)
        for how in ("stop", "skip")
    )
    with pytest.raises(DataError, match="row 1 of this rank has text, but no text there"):
        texts(stops, 0, 1, first_step=0, steps=1)
    assert set(texts(skips, 0, 1, first_step=0, steps=2)) == {"abcdefg"}
    assert skips.num_skipped > 0


def test_a_stream_has_nothing_to_evaluate_on(folder: str) -> None:
    table = HubDataset(path=folder, streaming=True)
    with pytest.raises(DataError, match="has no held-out part"):
        table.prepare(Need(sequence_length=LENGTH, held_out_samples=4), silent)


def test_a_dataset_is_packed_once_and_read_by_number(folder: str, tmp_path: Path) -> None:
    table = HubDataset(path=folder, held_out=0.0, packing="best_fit")
    said: list[str] = []
    for _ in range(2):
        table.prepare(Need(sequence_length=7), said.append)
    assert sum("packing" in line for line in said) == 1
    source = table.open("train", Wanted(sequence_length=7, vocab_size=256, seed=0, device=torch.device("cpu")))
    batch = source.__getitems__(list(range(len(source))))
    assert {bytes(row.tolist()).decode() for row in batch.inputs} == {f"{i:07d}" for i in range(120)}
    assert table.num_ids == 256
