"""Sources that a recipe names are packed once, into the cache, by whoever comes first."""

import fcntl
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..wanted import Say, silent
from .assemble import fingerprint_of
from .folder import INDEX, read_index
from .job import Progress, default_workers, pack
from .parts import BEARABLE, Packing

_TOLD_EVERY_S = 10.0


def packed_in_cache(packing: Packing, say: Say = silent) -> Path:
    """The folder of packed tokens, made now if the cache lacks it. Raises: DataError."""
    from ..tokens import cache_folder

    folder = cache_folder() / f"tokens-{_key(packing)}"
    if (folder / INDEX).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # all ranks of a machine come at once; one packs and the others wait
            if not (folder / INDEX).is_file():
                _pack(packing, folder, say)
    except OSError as error:
        raise DataError(
            f"{folder.parent}: the cache cannot be written ({error.strerror}); set STEPLADDER_CACHE to a folder that "
            f"can"
        ) from error
    return folder


def _pack(packing: Packing, folder: Path, say: Say) -> None:
    say(f"data        packing {', '.join(packing.sources)} once, into {folder}")
    told_s = time.monotonic()

    def look(progress: Progress) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > _TOLD_EVERY_S:
            told_s = time.monotonic()
            say(f"data        {progress.done_bytes / 1e6:,.1f} of {progress.of_bytes / 1e6:,.1f} MB so far")

    # A small source is packed before another process has started.
    small = sum(size for _, size, _ in _files(packing)) < 4 << 20 and not any(map(_is_named, packing.sources))
    index = pack(packing, folder, workers=1 if small else default_workers(), look=look)
    for name, split in read_index(folder).splits.items():
        say(f"data        {name}: {split.num_documents:,} documents, {split.num_tokens:,} tokens")
    if index.num_skipped:
        say(f"data        {index.num_skipped:,} documents could not be read, first: {index.first_skipped[0]}")


def _key(packing: Packing) -> str:
    """What the folder in the cache is called: by settings, and by names, sizes and times of what is local."""
    return fingerprint_of([asdict(packing) | BEARABLE, _files(packing), sys.version])


def _files(packing: Packing) -> list[tuple[str, int, int]]:
    from ..config import matching

    found: list[tuple[str, int, int]] = []
    for source in (*packing.sources, packing.tokenizer):
        path = Path(source)
        inside = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else matching(source)
        for each in inside:
            at: Any = each.stat()
            found.append((str(each.resolve()), at.st_size, at.st_mtime_ns))
    return found


def _is_named(source: str) -> bool:
    """Whether a source is no file here but a name."""
    return source == "stdlib" or source.startswith("hub:")
