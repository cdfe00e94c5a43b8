"""The index of a shard: where each member of each sample lies. Built once, kept, found by the file's state.

A shard's index is a few flat arrays, so that a million samples cost tens of megabytes, which forked workers share.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....profiling.capture import publish
from ..errors import DataError
from .tar import Member, TarDamageError, members

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_VERSION = 2
_MANIFEST_VERSION = 1
_ARRAYS = {"first_member": "int64", "member_ending": "uint16", "offset": "int64", "size": "int64"}
_SAMPLE = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)  # WebDataset: the key ends at the name's first dot


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What is in one shard. N samples, M members, in the order of the archive."""

    path: Path
    sha256: str
    damage: str
    """Why the shard's end cannot be read; empty for a whole one."""
    keys: tuple[str, ...]
    """[N] of the samples; need not be unique."""
    first_member: "Array"
    """[N + 1] int64: sample n has the members first_member[n] .. first_member[n + 1] - 1."""
    endings: tuple[str, ...]
    """Different endings of members, lower case: `jpg`, `cls`, `seg.png`."""
    member_ending: "Array"
    """[M] uint16, numbers of `endings`."""
    offset: "Array"
    """[M] int64: first byte in the shard."""
    size: "Array"
    """[M] int64: bytes."""

    def __len__(self) -> int:
        """Samples."""
        return len(self.keys)


def scan(path: Path) -> ShardIndex:
    """Read the headers of a shard, and its content once for the hash. Raises: DataError if it cannot be read at all."""
    import numpy as np

    keys, first = list[str](), list[int]()
    found = list[tuple[int, int, int]]()
    endings = dict[str, int]()
    damage = ""
    try:
        with path.open("rb") as file:
            descriptor = file.fileno()
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                for key, ending, member in _named(descriptor):
                    if not keys or keys[-1] != key:
                        keys.append(key)
                        first.append(len(found))
                    found.append((endings.setdefault(ending, len(endings)), member.offset, member.size))
            except TarDamageError as error:
                damage = str(error)
                if keys:  # its last members may lie behind the cut
                    keys.pop()
                    del found[first.pop() :]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return ShardIndex(
        path=path,
        sha256=sha256,
        damage=damage,
        keys=tuple(keys),
        first_member=np.array([*first, len(found)], dtype=np.int64),
        endings=tuple(endings),
        member_ending=table[:, 0].astype(np.uint16),
        offset=table[:, 1].copy(),
        size=table[:, 2].copy(),
    )


def _named(descriptor: int) -> Iterator[tuple[str, str, Member]]:
    """Key, ending and place of each member that belongs to a sample."""

    def read(size: int, offset: int) -> bytes:
        return os.pread(descriptor, size, offset)

    for member in members(read, os.fstat(descriptor).st_size):
        if matched := _SAMPLE.fullmatch(member.name):
            yield matched[1], matched[2].lower(), member


def _index_file(path: Path, cache: Path) -> Path:
    """Where the index of a shard is kept; another one when the file is another. Raises: OSError."""
    state = path.stat()
    identity = f"v{_VERSION} {path.resolve()} {state.st_size} {state.st_mtime_ns}"
    return cache / f"{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"


def indexed(path: Path, cache: Path) -> ShardIndex:
    """The index of a shard, from the cache or built now. Raises: DataError."""
    try:
        file = _index_file(path, cache)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    kept = _load(file, path)
    if kept is not None:
        return kept
    index = scan(path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        publish(file, lambda partial: _write(index, partial))
    except OSError as error:
        raise DataError(f"{cache}: cannot be written ({error.strerror}); set STEPLADDER_CACHE") from error
    return index


def is_indexed(path: Path, cache: Path) -> bool:
    """Whether the cache knows the shard as it is now."""
    try:
        return _index_file(path, cache).exists()
    except OSError:
        return False


def _write(index: ShardIndex, file: Path) -> None:
    import numpy as np

    told = {"sha256": index.sha256, "damage": index.damage, "endings": index.endings, "keys": index.keys}
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    arrays["words"] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
    with file.open("wb") as out:
        np.savez(out, **arrays, seal=np.frombuffer(_seal(arrays), dtype=np.uint8))


def _load(file: Path, path: Path) -> ShardIndex | None:
    """What the cache has kept; None if it has not, or what it has is not what was written for this shard."""
    import zipfile
    import zlib

    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in ("words", *_ARRAYS)}
            if _seal(arrays) != kept["seal"].tobytes():
                return None
        told = json.loads(arrays.pop("words").tobytes())
        index = ShardIndex(
            path=path,
            sha256=told["sha256"],
            damage=told["damage"],
            keys=tuple(told["keys"]),
            endings=tuple(told["endings"]),
            **arrays,
        )
        return index if _is_sound(index, path.stat().st_size) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError):
        return None
    except (zipfile.BadZipFile, zlib.error):
        return None


def _seal(arrays: "Mapping[str, Array]") -> bytes:
    """What tells that arrays are those that were written."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.digest()


def _is_sound(index: ShardIndex, shard_size: int) -> bool:
    """Whether members lie one behind the other inside the shard, and every sample has its own."""
    words: list[Any] = [index.sha256, index.damage, *index.keys, *index.endings]
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    if not all(isinstance(each, str) for each in words) or re.fullmatch("[0-9a-f]{64}", index.sha256) is None:
        return False
    if any(array.ndim != 1 or array.dtype.name != _ARRAYS[name] for name, array in arrays.items()):
        return False
    first, ending, offset, size = arrays.values()
    num_members = len(offset)
    if not (len(size) == len(ending) == num_members and len(first) == len(index.keys) + 1):
        return False
    if first[0] != 0 or first[-1] != num_members or (first[1:] <= first[:-1]).any():
        return False
    if num_members == 0:
        return True
    inside = min(offset.min(), size.min()) >= 0 and size[-1] <= shard_size - offset[-1]
    return bool(inside and (size[:-1] <= offset[1:] - offset[:-1]).all() and ending.max() < len(index.endings))


def write_manifest(indexes: Sequence[ShardIndex], path: Path) -> None:
    """Leave names, hashes, sizes and counts of shards as JSON: what a copy of them must agree with."""
    shards = {
        index.path.name: {"sha256": index.sha256, "bytes": index.path.stat().st_size, "samples": len(index)}
        for index in indexes
    }
    text = json.dumps({"stepladder_shards": _MANIFEST_VERSION, "shards": shards}, indent=1)
    publish(path, lambda partial: partial.write_text(text + "\n"))


def check_manifest(indexes: Sequence[ShardIndex], path: Path) -> None:
    """See that shards are those that a manifest lists. Raises: DataError with the first that is not."""
    try:
        listed = json.loads(path.read_text())["shards"]
        hashes = {str(name): str(each["sha256"]) for name, each in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"data.shards.manifest = {str(path)!r}: cannot be read ({error!r}); make it anew") from error
    for index in indexes:
        stated = hashes.get(index.path.name)
        if stated is None:
            raise DataError(f"{index.path}: is not in {path}; make the manifest anew with `stepladder data index`")
        if stated != index.sha256:
            raise DataError(
                f"{index.path}: its SHA-256 is {index.sha256[:16]}..., {path} says {stated[:16]}...; copy it again"
            )
