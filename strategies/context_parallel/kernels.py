"""Attention of some queries to some keys, with the log-sum-exp by which such results are merged.

Shapes: B batch, H query heads, G key and value heads, Q queries, S keys, K head width. A kernel's `forward` returns the
output [B, H, Q, K] and the log-sum-exp [B, H, Q]; its `backward` takes those of *all* keys, so that the gradients of
the parts add up. Torch's fused kernels are called by their own names, because `scaled_dot_product_attention` keeps the
log-sum-exp to itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One implementation, forward and backward."""

    name: str
    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    """(q, k, v, causal) -> output, log-sum-exp."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
    """(gradient of the output, q, k, v, output, log-sum-exp, causal) -> gradients of q, k, v."""


def kernel_for(q: Tensor) -> Kernel:
    """The fastest kernel for these queries, by device, dtype and head width."""
    width, half = q.shape[-1], q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu":
        return FLASH_CPU
    if q.device.type == "cuda" and q.dtype != torch.float64:
        ampere = torch.cuda.get_device_capability(q.device) >= (8, 0)
        if half and ampere and width % 8 == 0 and width <= 256:
            return FLASH_CUDA
        if width % (8 if half else 4) == 0 and (ampere or q.dtype != torch.bfloat16):
            return EFFICIENT_CUDA
    return MATH


def _expanded(q: Tensor, *keys_or_values: Tensor) -> list[Tensor]:
    """Keys and values once for each query head, for kernels that know no groups."""
    groups = q.shape[1] // keys_or_values[0].shape[1]
    return [each.repeat_interleave(groups, dim=1) if groups > 1 else each for each in keys_or_values]


def _summed(like: Tensor, *gradients: Tensor) -> list[Tensor]:
    """The inverse of `_expanded`: gradients of query heads added up over each group."""
    heads = like.shape[1]
    if gradients[0].shape[1] == heads:
        return list(gradients)
    wide = torch.promote_types(like.dtype, torch.float32)
    return [each.unflatten(1, (heads, -1)).sum(2, dtype=wide).to(like.dtype) for each in gradients]


def _math_scores(q: Tensor, k: Tensor, causal: bool) -> tuple[Tensor, Tensor, float]:
    """Scaled scores [B, H, Q, S] and queries, at least in float32, and the scale."""
    wide, scale = torch.promote_types(q.dtype, torch.float32), q.shape[-1] ** -0.5
    q = q.to(wide)
    scores = q @ k.to(wide).transpose(-2, -1) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores, q, scale


def _math_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        k, v = _expanded(q, k, v)
        scores, _, _ = _math_scores(q, k, causal)
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp() @ v.to(scores.dtype)
        return out.to(q.dtype), lse


def _math_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        k_all, v_all = _expanded(q, k, v)
        scores, q_wide, scale = _math_scores(q, k_all, causal)
        weights = (scores - lse[..., None]).exp()
        grad, out = grad.to(scores.dtype), out.to(scores.dtype)
        grad_weights = grad @ v_all.to(scores.dtype).transpose(-2, -1)
        grad_scores = weights * (grad_weights - (grad * out).sum(-1, keepdim=True)) * scale
        grad_q = grad_scores @ k_all.to(scores.dtype)
        grad_k, grad_v = _summed(k, grad_scores.transpose(-2, -1) @ q_wide, weights.transpose(-2, -1) @ grad)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _flash_cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    k, v = _expanded(q, k, v)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)


def _flash_cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_q, *rest = backward(grad, q, *_expanded(q, k, v), out, lse, 0.0, causal)
    grad_k, grad_v = _summed(k, *rest)
    return grad_q, grad_k, grad_v


def _flash_cuda_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return out, lse


def _flash_cuda_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The random state is empty: without dropout the kernel does not read it. It knows groups of heads."""
    seed, unused = q.new_empty(2, dtype=torch.uint64), q.new_empty((), dtype=torch.uint64)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
    num_queries, num_keys = q.shape[2], k.shape[2]
    # The kernel reads the log-sum-exp as if it were contiguous, whatever its strides.
    lse = lse.contiguous()
    return backward(grad, q, k, v, out, lse, None, None, num_queries, num_keys, 0.0, causal, seed, unused)


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    k, v = _expanded(q, k, v)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
    return out, lse[..., : q.shape[2]]


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel wants whole tiles of 32 log-sum-exps; infinity in the rest makes their weights zero."""
    lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf")).contiguous()
    seed = offset = q.new_empty((), dtype=torch.int64)
    backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    wanted = [True, True, True, False]
    k_all, v_all = _expanded(q, k, v)
    grad_q, *rest, _ = backward(grad, q, k_all, v_all, None, out, lse, seed, offset, 0.0, wanted, causal)
    grad_k, grad_v = _summed(k, *rest)
    return grad_q, grad_k, grad_v


MATH = Kernel(name="math", forward=_math_forward, backward=_math_backward)
"""Written out, for any device, dtype and width; its scores take memory with the square of the length."""
FLASH_CPU = Kernel(name="flash, cpu", forward=_flash_cpu_forward, backward=_flash_cpu_backward)
FLASH_CUDA = Kernel(name="flash, cuda", forward=_flash_cuda_forward, backward=_flash_cuda_backward)
EFFICIENT_CUDA = Kernel(name="efficient, cuda", forward=_efficient_forward, backward=_efficient_backward)
