"""Windows of a flat file are slices of it."""

import random
from pathlib import Path

import pytest
import torch

from stepladder.trainer.data.config import DataConfig, FilesCorpus, SyntheticTokens
from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.source import PackedBytes, SyntheticSource, open_source


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 8, 9, 10, 25, 257])
def test_packed_bytes_are_slices(size: int, length: int) -> None:
    raw = random.Random(size).randbytes(size)
    source = PackedBytes(torch.tensor(list(raw), dtype=torch.uint8), length, "x")
    expected = [raw[at : at + length + 1] for at in range(0, size, length) if at + length < size]
    assert len(source) == len(expected)
    if not expected:
        return
    order = [*range(len(expected))][::-1]
    batch = source.__getitems__(order)
    assert batch.inputs.tolist() == [list(expected[i][:-1]) for i in order]
    assert batch.labels.tolist() == [list(expected[i][1:]) for i in order]
    assert batch.inputs.dtype == batch.labels.dtype == torch.int64


def test_synthetic_tokens_are_fixed_by_their_seed_and_labels_follow_inputs() -> None:
    keys = {"num_samples": 5, "sequence_length": 6, "vocab_size": 11, "device": torch.device("cpu")}
    one, same, other = (SyntheticSource(seed=seed, **keys) for seed in (1, 1, 2))  # type: ignore[arg-type]
    batch = one.__getitems__([3, 0])
    assert torch.equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    assert torch.equal(batch.inputs, same.__getitems__([3, 0]).inputs)
    assert not torch.equal(batch.inputs, other.__getitems__([3, 0]).inputs)
    assert int(one.tokens.max()) < 11
    assert len(one) == 5


def test_train_and_held_out_differ_also_where_tokens_are_made_up() -> None:
    config = DataConfig(synthetic=SyntheticTokens(num_samples=4))
    cpu = torch.device("cpu")
    train, held_out = (
        open_source(config, split, sequence_length=16, vocab_size=50, seed=0, device=cpu)
        for split in ("train", "held_out")
    )
    assert not torch.equal(train.__getitems__([0]).inputs, held_out.__getitems__([0]).inputs)
    assert train.fingerprint != held_out.fingerprint


def test_a_split_shorter_than_a_sequence_is_a_sentence(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    config = DataConfig(files=FilesCorpus(paths=(str(tmp_path / "*.txt"),), held_out=0.5))
    with pytest.raises(DataError, match=r"sequence_length = 1000: the train part has \d+ bytes"):
        open_source(config, "train", sequence_length=1000, vocab_size=256, seed=0, device=torch.device("cpu"))
