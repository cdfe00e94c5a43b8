"""An index of the cache is believed only if it is what was written, and could be of the shard."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_shards import numbered_shards

from stepladder.trainer.data.shards.index import ShardIndex, _index_file, _write, indexed, scan

CHANGES: dict[str, Callable[[ShardIndex], dict[str, Any]]] = {
    "too few samples": lambda index: {"first_member": index.first_member[:3]},
    "samples backwards": lambda index: {"first_member": index.first_member[::-1].copy()},
    "a sample without members": lambda index: {"first_member": np.sort(index.first_member // 4 * 4)},
    "unknown endings": lambda index: {"member_ending": index.member_ending + np.uint16(7)},
    "a column for a row": lambda index: {"offset": index.offset.reshape(-1, 1)},
    "other numbers": lambda index: {"size": index.size - 0.5},
    "before the shard": lambda index: {"offset": -index.offset - 5},
    "far before the shard": lambda index: {"offset": np.where(index.offset > 2000, -(2**63) + 3, index.offset)},
    "behind the shard": lambda index: {"offset": index.offset + 2**40},
    "larger than the shard": lambda index: {"size": index.size * 0 + 60 * 2**20},
    "another sample's member": lambda index: {"offset": index.offset[[0, 3, *range(2, len(index.offset))]]},
    "keys that are numbers": lambda index: {"keys": tuple(range(len(index.keys)))},
    "keys that are none": lambda index: {"keys": (None,) * len(index.keys)},
    "no hash": lambda index: {"sha256": "x"},
}


def told(index: ShardIndex) -> list[Any]:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in vars(index).values()]


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_that_no_shard_has_is_made_anew(change: str, tmp_path: Path) -> None:
    (path,) = numbered_shards(tmp_path / "s", [6])
    true, file = scan(path), _index_file(path, tmp_path)
    wrong = dataclasses.replace(true, **CHANGES[change](true))
    assert told(wrong) != told(true)
    _write(wrong, file)
    assert told(indexed(path, tmp_path)) == told(true)


def test_an_index_that_was_changed_after_it_was_written_is_made_anew(tmp_path: Path) -> None:
    (path,) = numbered_shards(tmp_path / "s", [6])
    true, file = indexed(path, tmp_path), _index_file(path, tmp_path)
    with np.load(file) as kept:
        arrays = dict(kept)
    swapped = arrays | {"size": arrays["size"] - 1}  # sound in itself
    np.savez(file, **swapped)
    assert told(indexed(path, tmp_path)) == told(true)
    with np.load(file) as kept:
        assert {name: each.tolist() for name, each in kept.items()} == {
            name: each.tolist() for name, each in arrays.items()
        }


def test_an_index_that_is_whole_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepladder.trainer.data.shards import index

    paths = numbered_shards(tmp_path / "s", [6, 0, 1])
    paths[0].write_bytes(paths[0].read_bytes()[:-20_000])  # cut in its end or in a member
    true = [told(indexed(path, tmp_path)) for path in paths]
    monkeypatch.setattr(index, "scan", lambda path: pytest.fail(f"{path} was read again"))
    assert [told(indexed(path, tmp_path)) for path in paths] == true
