"""Parts of pieces, in the order of the pieces, into the files of a folder."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ....profiling.capture import publish
from ..errors import DataError
from .folder import SPLITS, Split, id_type, sha256_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_SAID = 20
"""Skipped documents that are told one by one."""


@dataclass(kw_only=True)
class Part:
    """What one piece has become; for each split ids, lengths and perhaps counts."""

    tokens: "dict[str, NDArray[np.unsignedinteger[Any]]]"
    lengths: "dict[str, NDArray[np.uint64]]"
    counts: "dict[str, NDArray[np.uint8]]" = field(default_factory=dict[str, Any])
    """Chats only."""
    num_empty: int = 0
    num_skipped: int = 0
    first_skipped: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """One file, whole or absent."""
        import numpy as np

        arrays: dict[str, Any] = {}
        for split in SPLITS:
            arrays |= {f"{split}.tokens": self.tokens[split], f"{split}.lengths": self.lengths[split]}
            if split in self.counts:
                arrays[f"{split}.counts"] = self.counts[split]
        said = {"num_empty": self.num_empty, "num_skipped": self.num_skipped, "first_skipped": self.first_skipped}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, said=np.frombuffer(json.dumps(said).encode(), dtype=np.uint8), **arrays)

        publish(path, write)

    @staticmethod
    def read(path: Path) -> "Part":
        """Raises: OSError, ValueError, KeyError if it is damaged."""
        import numpy as np

        with np.load(path, allow_pickle=False) as file:
            said = json.loads(file["said"].tobytes())
            return Part(
                tokens={split: file[f"{split}.tokens"] for split in SPLITS},
                lengths={split: file[f"{split}.lengths"] for split in SPLITS},
                counts={split: file[f"{split}.counts"] for split in SPLITS if f"{split}.counts" in file},
                num_empty=int(said["num_empty"]),
                num_skipped=int(said["num_skipped"]),
                first_skipped=tuple(map(str, said["first_skipped"])),
            )


@dataclass(kw_only=True)
class Assembled:
    """The files of a folder, and what was left out on the way."""

    splits: dict[str, Split]
    num_empty: int
    num_skipped: int
    first_skipped: tuple[str, ...]


def assemble(folder: Path, paths: Iterable[Path], *, width: int, held_out: float) -> Assembled:
    """Write the files of every split from the parts. Raises: DataError if there is no document in any."""
    import numpy as np

    lengths: dict[str, list[Any]] = {split: [] for split in SPLITS}
    num_empty = num_skipped = 0
    said: list[str] = []
    with_counts = False
    files: dict[str, BinaryIO] = {}
    try:
        for split in SPLITS:
            for kind in ("tokens", "counts"):
                files[f"{split}.{kind}"] = (folder / f"{split}.{kind}").open("wb")
        for path in paths:
            part = Part.read(path)
            num_empty, num_skipped = num_empty + part.num_empty, num_skipped + part.num_skipped
            said += part.first_skipped[: MOST_SAID - len(said)]
            with_counts = with_counts or bool(part.counts)
            for split in SPLITS:
                files[f"{split}.tokens"].write(np.ascontiguousarray(part.tokens[split]).data)
                lengths[split].append(part.lengths[split])
                if split in part.counts:
                    files[f"{split}.counts"].write(np.ascontiguousarray(part.counts[split]).data)
    finally:
        for file in files.values():
            file.close()
    offsets = {split: _offsets(lengths[split]) for split in SPLITS}
    kinds = ("tokens", "counts") if with_counts else ("tokens",)
    widths = {"tokens": width, "counts": 1}
    _share_out(folder, offsets, held_out, {kind: widths[kind] for kind in kinds})
    for split in SPLITS:
        (folder / f"{split}.offsets").write_bytes(offsets[split].astype("<u8").tobytes())
        if not with_counts:
            (folder / f"{split}.counts").unlink()
    return Assembled(
        splits={split: _described(folder, split, (*kinds, "offsets")) for split in SPLITS if len(offsets[split]) > 1},
        num_empty=num_empty,
        num_skipped=num_skipped,
        first_skipped=tuple(said),
    )


def _offsets(lengths: list[Any]) -> "NDArray[np.uint64]":
    import numpy as np

    every = np.concatenate([np.zeros(1, np.uint64), *lengths])
    return np.cumsum(every, dtype=np.uint64)


def _share_out(folder: Path, offsets: "dict[str, NDArray[np.uint64]]", part: float, widths: dict[str, int]) -> None:
    """Where every document fell into one split, a single file say, hold out the last tokens instead.

    Whole documents if there are several, the end of a lone one otherwise. Raises: DataError if there is no document.
    """
    import numpy as np

    if not any(len(each) > 1 for each in offsets.values()):
        raise DataError("there is no text in the sources; give documents that are not empty")
    if len(offsets["train"]) == 1:
        for kind in widths:
            (folder / f"held_out.{kind}").replace(folder / f"train.{kind}")
            (folder / f"held_out.{kind}").touch()
        offsets["train"], offsets["held_out"] = offsets["held_out"], offsets["train"]
    every = offsets["train"]
    if len(offsets["held_out"]) > 1 or part == 0 or every[-1] < 4:
        return
    wanted = every[-1] * (1 - part)
    if len(every) > 2:
        last = min(max(1, int(np.searchsorted(every, wanted))), len(every) - 2)
        cut = int(every[last])
        offsets["train"], offsets["held_out"] = every[: last + 1], every[last:] - every[last]
    else:
        cut = min(max(2, int(wanted)), int(every[-1]) - 2)
        offsets["train"] = np.array([0, cut], np.uint64)
        offsets["held_out"] = np.array([0, int(every[-1]) - cut], np.uint64)
    for kind, width in widths.items():
        with (folder / f"train.{kind}").open("r+b") as file, (folder / f"held_out.{kind}").open("wb") as held:
            file.seek(cut * width)
            while block := file.read(1 << 22):
                held.write(block)
            file.truncate(cut * width)


def _described(folder: Path, split: str, kinds: tuple[str, ...]) -> Split:
    import numpy as np

    paths = [folder / f"{split}.{kind}" for kind in kinds]
    offsets = np.frombuffer((folder / f"{split}.offsets").read_bytes(), dtype="<u8")
    num_tokens = int(offsets[-1])
    counted = num_tokens
    if "counts" in kinds:
        counted = sum(int(np.frombuffer(block, np.uint8).sum()) for block in _blocks(folder / f"{split}.counts"))
    return Split(
        num_documents=len(offsets) - 1,
        num_tokens=num_tokens,
        num_counted=counted,
        files={path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths},
    )


def _blocks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            yield block


def empty_part(width: int) -> Part:
    """A part without documents."""
    import numpy as np

    return Part(
        tokens={split: np.empty(0, dtype=id_type(width)) for split in SPLITS},
        lengths={split: np.empty(0, dtype=np.uint64) for split in SPLITS},
    )


def fingerprint_of(value: Any) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
