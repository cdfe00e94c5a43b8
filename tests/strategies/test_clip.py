"""Clipping scales all gradients by one factor, computed here by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stepladder.strategies.base import Program, Run
from stepladder.strategies.clip import Clip, measure_norm


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.append(nn.Parameter(torch.zeros(7)))  # without a gradient
    return made


def gradients(of: list[nn.Parameter]) -> list[float]:
    return [float(value) for p in of if p.grad is not None for value in p.grad.flatten()]


NORMS: dict[float, Callable[[list[float]], float]] = {
    2.0: lambda values: math.sqrt(sum(v * v for v in values)),
    1.0: lambda values: sum(map(abs, values)),
    3.0: lambda values: sum(abs(v) ** 3 for v in values) ** (1 / 3),
    math.inf: lambda values: max(map(abs, values)),
}


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("part", [0.5, 2.0], ids=["above the bound", "below it"])
def test_gradients_shrink_to_the_bound_and_no_further(
    norm_type: float, part: float, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    made = parameters()
    before = gradients(made)
    norm = NORMS[norm_type](before)
    clip = Clip(max_norm=part * norm, norm_type=norm_type).apply(make_program(device="meta"), make_run())

    told = clip.clip_gradients(clip, made, want_norm=False)

    assert told is not None
    assert float(told) == pytest.approx(norm, rel=1e-6)
    expected = [min(1.0, part) * value for value in before]
    assert gradients(made) == pytest.approx(expected, rel=1e-5)
    assert NORMS[norm_type](gradients(made)) == pytest.approx(min(1.0, part) * norm, rel=1e-5)


def test_the_norm_is_measured_only_for_those_who_want_it_and_changes_nothing(
    make_program: Callable[..., Program],
) -> None:
    made, program = parameters(), make_program(device="meta")
    before = gradients(made)
    assert measure_norm(program, made, want_norm=False) is None
    told = measure_norm(program, made, want_norm=True)
    assert told is not None
    assert float(told) == pytest.approx(NORMS[2.0](before), rel=1e-6)
    assert gradients(made) == before
