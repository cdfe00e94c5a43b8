"""The process-wide switch is set to what the recipe says."""

from collections.abc import Callable, Iterator

import pytest
import torch

from stepladder.strategies.base import Program, Run
from stepladder.strategies.matmul_precision import MatmulPrecision


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_switch_is_set(precision: str, make_program: Callable[..., Program], make_run: Callable[..., Run]) -> None:
    torch.set_float32_matmul_precision("highest" if precision != "highest" else "medium")
    MatmulPrecision(precision=precision).apply(make_program(device="meta"), make_run())  # pyright: ignore
    assert torch.get_float32_matmul_precision() == precision
