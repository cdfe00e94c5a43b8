"""Writes shards from a folder with a folder of images for each class: for users, for tests."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ....profiling.capture import publish
from ..errors import DataError
from ..wanted import Say, silent
from .prepare import IMAGE_ENDINGS


def write_shards(folder: Path, out: Path, *, shard_mib: float = 256.0, say: Say = silent) -> list[Path]:
    """Pack `folder/<class>/<image>` into `out/shard-00000.tar`, ..., and the classes' names into `out/classes.json`.

    The same folder gives the same bytes. Samples are mixed, by a hash of their path, so that whoever reads the shards
    one after the other does not see class after class. Raises: DataError.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    images = [
        (number, path)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.suffix.lower().lstrip(".") in IMAGE_ENDINGS
    ]
    if not images:
        raise DataError(f"{folder}: has no images in folders of classes; lay them out as {folder}/<class>/<image>.jpg")
    images.sort(key=lambda each: hashlib.sha256(each[1].relative_to(folder).as_posix().encode()).digest())
    try:
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for part in _parts(images, shard_mib * 2**20):
            path = out / f"shard-{len(written):05d}.tar"
            publish(path, partial(_write, part))
            written.append(path)
            say(f"data        {path}: {len(part):,} samples")
        (out / "classes.json").write_text(json.dumps(classes) + "\n")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from error
    return written


def _parts(images: list[tuple[int, Path]], max_bytes: float) -> Iterator[list[tuple[str, int, Path]]]:
    """Samples of each shard: (key, class, image)."""
    part: list[tuple[str, int, Path]] = []
    num_bytes = 0
    for number, (label, path) in enumerate(images):
        part.append((f"{number:08d}", label, path))
        num_bytes += path.stat().st_size
        if num_bytes >= max_bytes:
            yield part
            part, num_bytes = [], 0
    if part:
        yield part


def _write(samples: list[tuple[str, int, Path]], target: Path) -> None:
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, label, path in samples:
            for ending, raw in ((path.suffix.lower(), path.read_bytes()), (".cls", str(label).encode())):
                member = tarfile.TarInfo(key + ending)
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
