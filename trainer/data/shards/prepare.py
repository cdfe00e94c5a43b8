"""From the recipe's table to indexed shards: fetched, locked, checked; without torch."""

import fcntl
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..tokens import cache_folder, is_held_out
from ..wanted import Need, Say, silent
from .config import ShardsConfig
from .index import ShardIndex, check_manifest, indexed, is_indexed
from .names import local_shards

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "ppm")
"""What is decoded as an image; nothing else of a shard is."""
UNSAFE_ENDINGS = ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "mp")
"""What WebDataset may unpickle: reading it can run a program, so it is never opened."""
_TELL_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a split: N of them, each with an image and a label."""

    shards: tuple[Path, ...]
    hashes: tuple[str, ...]
    """SHA-256 of each shard."""
    keys: tuple[str, ...]
    shard: "Array"
    """[N] int32: number of the sample's shard."""
    image: "Array"
    """[N, 2] int64: first byte and size of the image."""
    label: "Array"
    """[N, 2] int64: the same of the member with the label."""
    missing: tuple[str, ...]
    """A sentence for each sample that lacks one of the two, and for each damaged shard."""

    def __len__(self) -> int:
        """Samples of the split."""
        return len(self.keys)


def shards_cache() -> Path:
    """Where indexes and fetched shards are kept."""
    return cache_folder() / "shards"


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Let one process of the machine fetch and index while the others wait. Raises: DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); set STEPLADDER_CACHE to one that can"
        ) from error


def index_all(patterns: Sequence[str], say: Say = silent) -> list[ShardIndex]:
    """Indexes of the shards that the patterns name, those that are new built now. Raises: DataError."""
    cache = shards_cache()
    with _alone(cache):
        paths = local_shards(patterns, cache, say)
        new = sum(not is_indexed(path, cache) for path in paths)
        if new:
            say(f"data        indexing {new:,} of {len(paths):,} shards once, into {cache}")
        told_s = time.monotonic()
        indexes: list[ShardIndex] = []
        for path in paths:
            indexes.append(indexed(path, cache))
            if new and time.monotonic() - told_s > _TELL_EVERY_S:
                told_s = time.monotonic()
                say(f"data        {len(indexes):,} of {len(paths):,} shards")
    return indexes


def samples_of(config: ShardsConfig, split: str, say: Say = silent) -> Samples:
    """The samples of a split (`train` or `held_out`). Raises: DataError for what `on_error` does not let pass."""
    apart = bool(config.held_out_paths)
    indexes = index_all(config.held_out_paths if apart and split == "held_out" else config.paths, say)
    if config.manifest is not None:
        check_manifest(indexes, Path(config.manifest))
    samples = _collected(indexes, config, None if apart else split == "held_out")
    if samples.missing and config.on_error == "stop":
        raise DataError(f"{samples.missing[0]}; mend it, or set data.shards.on_error = 'skip'")
    if len(samples.missing) > config.max_skipped:
        raise DataError(
            f"data.shards.max_skipped = {config.max_skipped}: {len(samples.missing)} samples and shards are unusable, "
            f"the first: {samples.missing[0]}"
        )
    if not len(samples):
        raise DataError(
            f"data.shards: {len(indexes)} shards hold no {split} sample; "
            + ("give more, or data.shards.held_out_paths" if any(map(len, indexes)) else "they are empty")
        )
    return samples


def prepare(config: ShardsConfig, need: Need, say: Say) -> None:
    """Fetch and index, and see that each split holds enough. Raises: DataError."""
    train = samples_of(config, "train", say)
    for sentence in train.missing[:5]:
        say(f"warning: {sentence}; skipped")
    if need.held_out_samples and (found := len(samples_of(config, "held_out", say))) < need.held_out_samples:
        raise DataError(
            f"data.shards: the held_out part has {found} samples, not the {need.held_out_samples} of a microbatch on "
            f"each rank; give more data, a larger data.shards.held_out or smaller batches"
        )


def _collected(indexes: Sequence[ShardIndex], config: ShardsConfig, held: bool | None) -> Samples:
    """Samples of all shards that belong to the split; every one where `held` is None."""
    import numpy as np

    keys, missing = list[str](), list[str]()
    shard, image, label = list["Array"](), list["Array"](), list["Array"]()
    for number, index in enumerate(indexes):
        if index.damage:
            missing.append(f"{index.path}: {index.damage}")
        own = np.array([held is None or is_held_out(key, config.held_out) == held for key in index.keys], dtype=bool)
        images, labels = _first(index, IMAGE_ENDINGS), _first(index, (config.label,))
        lacking = own & ((images < 0) | (labels < 0))
        for at in np.flatnonzero(lacking).tolist():
            missing.append(f"{index.path}: sample {index.keys[at]!r} {_lack(index, at, config.label)}")
        kept = np.flatnonzero(own & ~lacking)
        keys += [index.keys[at] for at in kept.tolist()]
        shard.append(np.full(len(kept), number, dtype=np.int32))
        for found, all_of_them in ((images, image), (labels, label)):
            chosen = found[kept]
            all_of_them.append(np.stack([index.offset[chosen], index.size[chosen]], axis=1))
    empty = np.zeros((0, 2), dtype=np.int64)
    return Samples(
        shards=tuple(index.path for index in indexes),
        hashes=tuple(index.sha256 for index in indexes),
        keys=tuple(keys),
        shard=np.concatenate([np.zeros(0, dtype=np.int32), *shard]),
        image=np.concatenate([empty, *image]),
        label=np.concatenate([empty, *label]),
        missing=tuple(missing),
    )


def _first(index: ShardIndex, endings: Sequence[str]) -> "Array":
    """[N] number of each sample's first member with one of the endings; -1 where there is none."""
    import numpy as np

    wanted = [number for number, ending in enumerate(index.endings) if ending in endings]
    fits = np.flatnonzero(np.isin(index.member_ending, wanted))
    found = np.full(len(index), -1, dtype=np.int64)
    samples = np.searchsorted(index.first_member, fits, side="right") - 1
    found[samples[::-1]] = fits[::-1]  # backwards, so that the first one stays
    return found


def _lack(index: ShardIndex, at: int, label: str) -> str:
    members = range(int(index.first_member[at]), int(index.first_member[at + 1]))
    there = [index.endings[int(index.member_ending[each])] for each in members]
    unsafe = [each for each in there if each in UNSAFE_ENDINGS]
    what = "image" if not set(there) & set(IMAGE_ENDINGS) else f"label (.{label})"
    why = f"; .{unsafe[0]} is not read, since unpickling can run a program" if unsafe else ""
    return f"has no {what}, only {', '.join('.' + each for each in there)}{why}"
