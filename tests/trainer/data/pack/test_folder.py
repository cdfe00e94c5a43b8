"""A packed folder that cannot be what was packed is a sentence, not a wrong sample."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.pack import job
from stepladder.trainer.data.pack.folder import INDEX, read_index
from stepladder.trainer.data.pack.parts import Packing
from stepladder.trainer.data.token_source import open_folder
from stepladder.trainer.data.token_tables import Layout


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": "word " * (1 + i % 20)}) + "\n" for i in range(200)))
    job.pack(Packing(sources=(str(texts),)), tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({"end_id": 99_999}, {}),
        ({"end_id": -1}, {}),
        ({"end_id": 1}, {}),
        ({"num_ids": 100}, {}),
        ({"num_ids": "256"}, {}),
        ({"num_ids": 257}, {}),
        ({"width": 2}, {}),
        ({}, {"num_tokens": 7}),
        ({}, {"num_documents": 7}),
    ],
)
def test_an_index_that_disagrees_with_its_files_or_itself_is_damaged(
    change: dict[str, Any], split: dict[str, Any], packed: Path
) -> None:
    said = json.loads((packed / INDEX).read_text()) | change
    said["splits"]["train"] |= split
    (packed / INDEX).write_text(json.dumps(said))
    with pytest.raises(DataError, match=r"index\.json: is damaged; pack the folder again"):
        read_index(packed)


@pytest.mark.parametrize("layout", ["best_fit", "truncate"])
@pytest.mark.parametrize("damage", ["shifted", "backwards", "short", "far"])
def test_documents_that_do_not_lie_in_the_tokens_are_a_sentence(damage: str, layout: Layout, packed: Path) -> None:
    path = packed / "train.offsets"
    offsets = np.fromfile(path, dtype="<u8")
    if damage == "shifted":
        offsets += np.uint64(5)
    elif damage == "backwards":
        offsets[[3, 4]] = offsets[[4, 3]]
    elif damage == "short":
        offsets[-1] -= np.uint64(1)
    else:
        offsets[5] = 2**64 - 1
    offsets.tofile(path)
    with pytest.raises(DataError, match=r"train\.offsets: is damaged: documents do not lie"):
        open_folder(packed, "train", 32, layout)


@pytest.mark.parametrize("layout", ["best_fit", "truncate", "split"])
def test_an_id_that_the_index_does_not_know_names_its_file(layout: Layout, packed: Path) -> None:
    index = dataclasses.replace(read_index(packed), num_ids=200, end_id=0)
    index.write(packed)
    whole = open_folder(packed, "train", 32, layout)
    assert int(whole.__getitems__(range(len(whole))).inputs.max()) == ord("w")
    tokens = np.fromfile(packed / "train.tokens", dtype="u1")
    tokens[2] = 200
    tokens.tofile(packed / "train.tokens")
    damaged = open_folder(packed, "train", 32, layout)
    with pytest.raises(DataError, match=r"train\.tokens: is damaged: it holds the id 200, but its index knows 200"):
        damaged.__getitems__(range(len(damaged)))


def test_a_second_packing_into_a_folder_keeps_away_from_the_first(tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "out"
    texts.write_text("some words\n" * 100)
    packing = Packing(sources=(str(texts),))
    said: list[str] = []

    def second(progress: job.Progress) -> None:
        with pytest.raises(DataError) as caught:
            job.pack(packing, out)
        said.append(str(caught.value))

    first = job.pack(packing, out, look=second)
    assert said == [f"--out {out}: another packing is at work there; wait until it is done, or choose another folder"]
    assert job.pack(packing, out) == first == job.pack(packing, tmp_path / "alone")
    names = [sorted(path.name for path in each.iterdir()) for each in (out, tmp_path / "alone")]
    assert names[0] == names[1]
    assert [(out / name).read_bytes() for name in names[0]] == [(tmp_path / "alone" / n).read_bytes() for n in names[1]]
