"""What is seen of an image: against Pillow without our shortcuts, and bounds against hostile ones."""

import io
import math

import numpy as np
import pytest
from image_shards import picture, smooth
from PIL import Image

from stepladder.trainer.data.shards.images import (
    SampleDamageError,
    decode_into,
    middle_view,
    random_view,
    uniform_numbers,
)


def seen(raw: bytes, size: int, **how: object) -> np.ndarray:
    out = np.zeros((size, size, 3), dtype=np.uint8)
    decode_into(out, raw, **({"draws": None} | how))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height", "size"), [(640, 480, 32), (100, 300, 64), (33, 31, 48)])
@pytest.mark.parametrize("number", [None, 0, 1, 2, 3, 4])
def test_views_are_those_of_the_whole_decoded_image(
    format: str, width: int, height: int, size: int, number: int | None
) -> None:
    raw = smooth(width, height, format)
    draws = None if number is None else uniform_numbers(7, 0, number)
    found = seen(raw, size, draws=draws, smallest=0.08, flip=True)

    view = middle_view(width, height) if draws is None else random_view(width, height, draws, smallest=0.08, flip=True)
    whole = Image.open(io.BytesIO(raw)).convert("RGB")
    plain = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=view[:4]))
    plain = plain[:, ::-1] if view.mirrored else plain
    assert np.abs(found.astype(int) - plain.astype(int)).mean() < (3 if format == "JPEG" else 1e-9)


def test_random_views_lie_in_the_image_and_have_the_area_and_shape_that_was_asked_for() -> None:
    mirrored = 0
    for number in range(500):
        view = random_view(400, 300, uniform_numbers(1, 0, number), smallest=0.1, flip=True)
        across, down = view.right - view.left, view.bottom - view.top
        assert 0 <= view.left < view.right <= 400 + 1e-9
        assert 0 <= view.top < view.bottom <= 300 + 1e-9
        if across < 399 and down < 299:
            assert 0.1 - 1e-9 <= across * down / 120_000 <= 1
            assert 3 / 4 - 1e-9 <= across / down <= 4 / 3 + 1e-9
        mirrored += view.mirrored
    assert abs(mirrored - 250) < 4 * math.sqrt(125)


def test_draws_depend_on_seed_epoch_and_sample_alone_and_are_uniform() -> None:
    assert uniform_numbers(3, 1, 4) == uniform_numbers(3, 1, 4)
    assert len({uniform_numbers(*each) for each in ((3, 1, 4), (4, 1, 4), (3, 2, 4), (3, 1, 5))}) == 4
    draws = np.array([uniform_numbers(0, 0, n) for n in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 4 * math.sqrt(1 / 12 / 4000)
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.08


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_kinds_of_pixels_become_red_green_and_blue(mode: str) -> None:
    raw = smooth(40, 40, "JPEG" if mode in ("L", "CMYK") else "PNG", mode)
    plain = (
        Image.open(io.BytesIO(raw)).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, (2.5, 2.5, 37.5, 37.5))
    )
    assert np.abs(seen(raw, 16).astype(int) - np.asarray(plain).astype(int)).mean() < 3


def test_damaged_and_hostile_images_are_a_sentence() -> None:
    whole = picture(5, width=200, height=200)
    noise = np.random.default_rng(0).integers(0, 255, 300, dtype=np.uint8).tobytes()
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    for raw in (whole[:-40], b"", noise, whole[:100], gif.getvalue()):
        with pytest.raises(SampleDamageError, match="cannot be decoded"):
            seen(raw, 16)
    with pytest.raises(SampleDamageError, match="200 x 200 pixels, more than"):
        seen(whole, 16, max_pixels=39_999)
