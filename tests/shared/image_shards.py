"""Small shards of images for tests, written by the standard library's tarfile."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, *, width: int = 24, height: int = 18, format: str = "JPEG") -> bytes:
    """An image whose colour says its number: red = number mod 256, green = 16 * (number // 256)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = number % 256, 16 * (number // 256)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, quality=95)
    return out.getvalue()


def smooth(width: int, height: int, format: str, mode: str = "RGB") -> bytes:
    """A colour gradient: where it was cropped and mirrored can be read off."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format, **({"quality": 98} if format == "JPEG" else {}))
    return out.getvalue()


def tar_of(members: Sequence[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, raw in members:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return out.getvalue()


def numbered_shards(folder: Path, counts: Sequence[int], *, ending: str = "jpg", **how: int) -> list[Path]:
    """Shards of so many samples each; the label of a sample is its number, counted over all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    number, paths = 0, []
    format = {"jpg": "JPEG", "png": "PNG"}[ending]
    for shard, count in enumerate(counts):
        members: list[tuple[str, bytes]] = []
        for _ in range(count):
            image = picture(number, format=format, **how)
            members += [(f"{number:06d}.{ending}", image), (f"{number:06d}.cls", str(number).encode())]
            number += 1
        paths.append(folder / f"shard-{shard:03d}.tar")
        paths[-1].write_bytes(tar_of(members))
    return paths


def replaced(path: Path, changes: Mapping[str, bytes]) -> None:
    """Write a shard again with other contents of some members."""
    with tarfile.open(path) as archive:
        members = [(each.name, archive.extractfile(each).read()) for each in archive]  # type: ignore[union-attr]
    path.write_bytes(tar_of([(name, changes.get(name, raw)) for name, raw in members]))
