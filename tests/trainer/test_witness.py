"""A witness tells equal tensors from different ones exactly, and how far they are apart well enough."""

import math
from pathlib import Path

import pytest
import torch

from stepladder.launch import testimony
from stepladder.trainer import witness


def test_the_distance_of_sketches_is_that_of_the_tensors_to_a_quarter_or_so() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = []
    for i in range(50):
        a, noise = (torch.randn(40, 50, generator=generator) for _ in range(2))
        b = a + 1e-3 * noise
        told = math.dist(witness.sketch(f"w{i}", a), witness.sketch(f"w{i}", b))
        errors.append(told / float((b.double() - a.double()).norm()) - 1)
    assert max(map(abs, errors)) < 0.5
    assert abs(sum(errors) / len(errors)) < 0.05


def test_one_element_that_differs_is_told_exactly_and_the_sign_of_an_error_does_not_cancel() -> None:
    a = torch.zeros(1000, dtype=torch.float64)
    b = a.clone()
    b[123] = 1.0
    assert math.dist(witness.sketch("w", a), witness.sketch("w", b)) == 1.0
    shifted = math.dist(witness.sketch("w", a), witness.sketch("w", a + 1))
    assert shifted == pytest.approx(math.sqrt(1000), rel=0.5)


def test_a_sketch_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(1000, dtype=torch.float64)
    whole = witness.sketch("w", tensor)
    monkeypatch.setattr(witness, "_PIECE", 2 * witness.NUM_SUMS)
    assert witness.sketch("w", tensor) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_fingerprint_tells_one_bit_of_any_format_and_scalars_and_empty_tensors_too(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 5, dtype=dtype).t()
    same = {"w": tensor, "scalar": tensor[0, 0], "none": tensor[:0]}
    first = witness.fingerprints(same.items())
    assert witness.fingerprints({name: each.clone() for name, each in same.items()}.items()) == first
    tensor.t().view(torch.uint8)[0, 0] ^= 1
    assert witness.fingerprints(same.items())["w"][0] != first["w"][0]


def test_a_testimony_comes_back_from_its_file_bit_by_bit(tmp_path: Path) -> None:
    prints = testimony.Fingerprints(digests={"w": "ab"}, sketches={"w": (0.1, -math.inf, 5e-324)})
    told = testimony.Testimony(
        losses=(0.1 + 0.2, 1 / 3),
        grad_norms=(None, 1e-300),
        initial=prints,
        gradients=testimony.Fingerprints(digests={}, sketches={}),
        final=prints,
        drifted=("w",),
    )
    told.write(tmp_path / "told.json")
    assert testimony.Testimony.read(tmp_path / "told.json") == told
