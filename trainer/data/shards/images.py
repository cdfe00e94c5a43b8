"""From the bytes of an image to S x S pixels: bounded, cropped at random as a pure function of the sample's number.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop still has S pixels: the coefficients that a smaller
image does not need are never transformed. Source: Szegedy et al. 2015, arXiv:1409.4842 (section 6: crops of random
area and shape); libjpeg's scaled decoding, `scale_denom`.
"""

import hashlib
import io
import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_FORMATS = ("JPEG", "PNG", "WEBP", "PPM")
_MIDDLE = 0.875  # of the shorter side: 224 of 256, the usual middle crop of an evaluation


class SampleDamageError(Exception):
    """A sample cannot be used; the text says why."""


class View(NamedTuple):
    """What of an image is seen."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False


def uniform_numbers(seed: int, epoch: int, sample: int) -> tuple[float, ...]:
    """Five numbers in [0, 1) that depend on nothing else: the same on every rank, worker and resume."""
    raw = hashlib.blake2b(struct.pack("<QQQ", seed, epoch, sample), digest_size=40).digest()
    return tuple(each / 2.0**64 for each in struct.unpack("<5Q", raw))


def middle_view(width: int, height: int) -> View:
    """The middle square."""
    side = _MIDDLE * min(width, height)
    return View((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)


def random_view(width: int, height: int, draws: tuple[float, ...], *, smallest: float, flip: bool) -> View:
    """A crop of `smallest` to all of the area and 3:4 to 4:3 in shape, cut to the image where it is larger."""
    area = width * height * (smallest + (1 - smallest) * draws[0])
    shape = math.exp((2 * draws[1] - 1) * math.log(4 / 3))
    across, down = min(float(width), math.sqrt(area * shape)), min(float(height), math.sqrt(area / shape))
    left, top = (width - across) * draws[2], (height - down) * draws[3]
    return View(left, top, left + across, top + down, flip and draws[4] < 0.5)


def decode_into(
    out: "Array",
    raw: bytes,
    *,
    draws: tuple[float, ...] | None,
    smallest: float = 1.0,
    flip: bool = False,
    max_pixels: float = math.inf,
) -> None:
    """Fill `out` [S, S, 3] uint8 with a view of the image: a random one by `draws`, or the middle without them.

    Raises: SampleDamageError.
    """
    import numpy as np
    from PIL import Image

    try:
        image: Any = Image.open(io.BytesIO(raw), formats=_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise SampleDamageError(f"has {width} x {height} pixels, more than data.shards.max_megapixels")
        if draws is None or smallest == 1:
            view = middle_view(width, height)
            view = view._replace(mirrored=draws is not None and flip and draws[4] < 0.5)
        else:
            view = random_view(width, height, draws, smallest=smallest, flip=flip)
        size = out.shape[0]
        if image.format == "JPEG":
            needed = (width * size / (view.right - view.left), height * size / (view.bottom - view.top))
            image.draft(None, (math.ceil(needed[0]), math.ceil(needed[1])))
        if image.mode != "RGB":
            image = image.convert("RGB")
        across, down = image.size[0] / width, image.size[1] / height
        box = (view.left * across, view.top * down, view.right * across, view.bottom * down)
        small = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    except SampleDamageError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file; each means the same to a user
        raise SampleDamageError(
            f"cannot be decoded ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from error
    pixels = np.asarray(small)
    out[:] = pixels[:, ::-1] if view.mirrored else pixels
