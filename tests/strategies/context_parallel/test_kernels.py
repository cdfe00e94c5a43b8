"""Every kernel against attention written out and differentiated by autograd, in float64."""

import pytest
import torch

from stepladder.strategies.context_parallel.kernels import (
    EFFICIENT_CUDA,
    FLASH_CPU,
    FLASH_CUDA,
    MATH,
    Kernel,
    kernel_for,
)

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
KERNELS = [
    pytest.param(MATH, "cpu", torch.float64, 1e-12, id="math float64"),
    pytest.param(MATH, "cpu", torch.float32, 1e-5, id="math float32"),
    pytest.param(MATH, "cpu", torch.bfloat16, 2e-2, id="math bfloat16"),
    pytest.param(FLASH_CPU, "cpu", torch.float64, 1e-12, id="flash cpu float64"),
    pytest.param(FLASH_CPU, "cpu", torch.float32, 1e-5, id="flash cpu float32"),
    pytest.param(FLASH_CPU, "cpu", torch.bfloat16, 2e-2, id="flash cpu bfloat16"),
    pytest.param(FLASH_CUDA, "cuda", torch.bfloat16, 2e-2, id="flash cuda bfloat16", marks=ON_GPU),
    pytest.param(FLASH_CUDA, "cuda", torch.float16, 5e-3, id="flash cuda float16", marks=ON_GPU),
    pytest.param(EFFICIENT_CUDA, "cuda", torch.float32, 1e-4, id="efficient float32", marks=ON_GPU),
    pytest.param(EFFICIENT_CUDA, "cuda", torch.bfloat16, 2e-2, id="efficient bfloat16", marks=ON_GPU),
]
SHAPES = [(6, 6, True), (40, 40, True), (3, 6, False), (6, 3, False), (33, 40, False)]
"""Queries, keys, causal."""


def truth(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp by the formula."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~visible, float("-inf"))
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("num_queries", "num_keys", "causal"), SHAPES)
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 8), (4, 2, 16)])
@pytest.mark.parametrize(("kernel", "device", "dtype", "tolerance"), KERNELS)
def test_a_kernel_is_attention(
    kernel: Kernel,
    device: str,
    dtype: torch.dtype,
    tolerance: float,
    heads: int,
    groups: int,
    width: int,
    num_queries: int,
    num_keys: int,
    causal: bool,
) -> None:
    torch.manual_seed(0)
    shapes = [(2, heads, num_queries, width), (2, groups, num_keys, width), (2, groups, num_keys, width)]
    q, k, v = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    grad = torch.randn(shapes[0], device=device).to(dtype)
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    wide = [each.double().clone().requires_grad_() for each in (q, k, v)]
    expected, expected_lse = truth(*wide, visible.tril() if causal else visible)
    expected.backward(grad.double())

    out, lse = kernel.forward(q, k, v, causal)
    gradients = kernel.backward(grad, q, k, v, out, lse, causal)

    assert relative(out, expected.detach()) < tolerance
    assert relative(lse, expected_lse.detach()) < tolerance
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    for found, own in zip(gradients, wide, strict=True):
        assert own.grad is not None
        assert found.shape == own.shape
        assert found.dtype == dtype
        assert relative(found, own.grad) < tolerance


@pytest.mark.parametrize(("kernel", "device", "dtype", "tolerance"), KERNELS)
def test_gradients_of_parts_of_the_keys_add_up(
    kernel: Kernel, device: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Given output and log-sum-exp of all keys, and those of the second half of the queries, as the ring needs it."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, 2, 16, 8, device=device).to(dtype) for _ in range(4))
    out, lse = kernel.forward(q, k, v, False)
    whole = kernel.backward(grad, q, k, v, out, lse, False)
    rows = slice(8, None)

    def part(queries: slice, keys: slice) -> tuple[torch.Tensor, ...]:
        arguments = grad[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys]
        return kernel.backward(*arguments, out[:, :, queries], lse[:, :, queries], False)

    first, second = part(slice(None), slice(0, 4)), part(slice(None), slice(4, 16))
    halves = part(rows, slice(None)), part(slice(0, 8), slice(None))

    assert relative(first[0].double() + second[0].double(), whole[0].double()) < tolerance
    for i in (1, 2):
        assert relative(torch.cat((first[i], second[i]), 2), whole[i].double()) < tolerance
        assert relative(halves[0][i].double() + halves[1][i].double(), whole[i].double()) < 2 * tolerance
    assert relative(halves[0][0], whole[0][:, :, rows].double()) < tolerance


def test_autocast_does_not_round_the_written_out_kernel() -> None:
    q = torch.randn(1, 2, 8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = MATH.forward(q, q, q, True)

    assert torch.equal(inside, MATH.forward(q, q, q, True)[0])


def test_every_device_has_a_kernel() -> None:
    assert kernel_for(torch.empty(1, 1, 1, 7)) is FLASH_CPU
    assert kernel_for(torch.empty(1, 1, 1, 8, device="meta")) is MATH


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_on_a_gpu_follows_dtype_and_width() -> None:
    def chosen(width: int, dtype: torch.dtype) -> Kernel:
        return kernel_for(torch.empty(1, 1, 1, width, device="cuda", dtype=dtype))

    assert chosen(8, torch.float32) is EFFICIENT_CUDA
    assert chosen(5, torch.float32) is MATH
    assert chosen(8, torch.float64) is MATH
    if torch.cuda.get_device_capability() >= (8, 0):
        assert chosen(64, torch.bfloat16) is FLASH_CUDA
