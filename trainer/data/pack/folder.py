"""A folder of packed tokens: for each split a flat file of ids, one of where documents begin, and an index of it all.

index.json             what is in the folder, from what, with the SHA-256 of every file
tokenizer.json         what made the ids, unless they are bytes
train.tokens           ids, little-endian, in 1, 2 or 4 bytes each
train.offsets          [documents + 1] uint64: where each document begins, and the end of the last
train.counts           [tokens] uint8, chats only: 1 for what is to be learnt
held_out.*             the same
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ....profiling.capture import publish
from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
SPLITS = ("train", "held_out")
INDEX = "index.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a folder."""

    num_documents: int
    num_tokens: int
    num_counted: int
    """Tokens that are to be learnt: all of them, or the assistant's words of chats."""
    files: Mapping[str, Mapping[str, Any]]
    """Bytes and SHA-256 of each file, by name."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `index.json` says."""

    width: int
    """Bytes of an id."""
    num_ids: int
    end_id: int
    tokenizer: str
    """Fingerprint of what made the ids."""
    made_from: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Sources and settings, for people."""
    num_empty: int = 0
    """Documents without text, which were left out."""
    num_skipped: int = 0
    """Documents that could not be read."""
    first_skipped: tuple[str, ...] = ()
    splits: Mapping[str, Split]

    @property
    def fingerprint(self) -> str:
        """Of the content, wherever it lies."""
        hashes = sorted((name, each["sha256"]) for split in self.splits.values() for name, each in split.files.items())
        return hashlib.sha256(json.dumps([self.num_ids, self.end_id, hashes]).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Leave it, whole or not at all: a folder with an index is complete."""
        said = {"format": FORMAT, "fingerprint": self.fingerprint} | vars(self)
        said["splits"] = {name: vars(split) for name, split in self.splits.items()}
        publish(folder / INDEX, lambda partial: partial.write_text(json.dumps(said, indent=1) + "\n"))


def read_index(folder: Path) -> Index:
    """What is in a folder. Raises: DataError if it is none, or files are missing or have another size."""
    try:
        said: dict[str, Any] = json.loads((folder / INDEX).read_text())
        if said.get("format") != FORMAT:
            raise DataError(f"{folder}: format {said.get('format')}, but this version reads {FORMAT}; pack it again")
        splits = {name: Split(**split) for name, split in dict(said["splits"]).items()}
        known = {key: said[key] for key in Index.__dataclass_fields__ if key != "splits"}
        known["first_skipped"] = tuple(map(str, said["first_skipped"]))
        index = Index(**known, splits=splits)
        for name, each in (item for split in splits.values() for item in split.files.items()):
            if Path(name).name != name or (folder / name).stat().st_size != each["bytes"]:
                raise DataError(f"{folder / name}: is not as it was written; pack the folder again")
        if not _is_sound(index) or said["fingerprint"] != index.fingerprint:
            raise DataError(f"{folder / INDEX}: is damaged; pack the folder again")
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: {Path(error.filename).name} is not there, so this is no folder of packed tokens; make one with "
            f"stepladder data pack"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / INDEX}: cannot be read ({error}); pack the folder again") from error
    return index


def _is_sound(index: Index) -> bool:
    """Whether ids fit their width, and files hold as many documents and tokens as are stated. Raises: KeyError."""
    if not all(type(each) is int for each in (index.width, index.num_ids, index.end_id)):
        return False
    if index.width not in (1, 2, 4) or not 0 <= index.end_id < index.num_ids <= 256**index.width:
        return False
    for name, split in index.splits.items():
        sizes = {"tokens": split.num_tokens * index.width, "offsets": (split.num_documents + 1) * 8}
        if f"{name}.counts" in split.files:
            sizes["counts"] = split.num_tokens
        if any(split.files[f"{name}.{kind}"]["bytes"] != size for kind, size in sizes.items()):
            return False
    return set(index.splits) <= set(SPLITS)


def check_hashes(folder: Path, index: Index) -> list[str]:
    """Files whose content is not what was written, each with what to do; all of them are read."""
    return [
        f"{folder / name}: its SHA-256 is not the index's; pack the folder again"
        for split in index.splits.values()
        for name, each in split.files.items()
        if sha256_of(folder / name) != each["sha256"]
    ]


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def id_type(width: int) -> str:
    """NumPy's name for ids of so many bytes."""
    return f"<u{width}"


def width_of(num_ids: int) -> int:
    """Bytes that an id needs."""
    return next(width for width in (1, 2, 4) if num_ids <= 256**width)


def tokens_of(folder: Path, index: Index, split: str) -> "NDArray[np.unsignedinteger[Any]]":
    """All ids of a split, [tokens], memory-mapped."""
    return _mapped(folder / f"{split}.tokens", id_type(index.width))


def offsets_of(folder: Path, index: Index, split: str) -> "NDArray[np.uint64]":
    """Where documents begin, [documents + 1], memory-mapped. Raises: DataError if they cannot lie there."""
    path = folder / f"{split}.offsets"
    offsets = cast("NDArray[np.uint64]", _mapped(path, "<u8"))
    num_tokens = index.splits[split].num_tokens
    if int(offsets[0]) != 0 or int(offsets[-1]) != num_tokens or (offsets[1:] < offsets[:-1]).any():
        raise DataError(
            f"{path}: is damaged: documents do not lie one behind the other in {num_tokens:,} tokens; pack the folder "
            f"again"
        )
    return offsets


def counts_of(folder: Path, index: Index, split: str) -> "NDArray[np.uint8] | None":
    """1 for what is to be learnt, [tokens], memory-mapped; None where all of it is."""
    name = f"{split}.counts"
    return _mapped(folder / name, "u1") if name in index.splits[split].files else None


def _mapped(path: Path, kind: str) -> Any:
    import numpy as np

    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


def split_of(index: Index, folder: Path, name: str) -> Split:
    """A split that must be there. Raises: DataError."""
    split = index.splits.get(name)
    if split is None or split.num_tokens == 0:
        what = "was packed with nothing held out" if name == "held_out" else "holds no documents"
        raise DataError(f"{folder}: has no {name} part: it {what}; pack it again, or evaluate on nothing")
    return split
