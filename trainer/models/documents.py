"""Attention that stays inside documents: which positions see which, as the device's kernel wants to be told.

B batch, H query heads, G key and value heads, T positions, K head width.
"""

from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Mask: TypeAlias = Tensor | BlockMask

_LEAST_WIDTH = 16
"""Of heads, for FlexAttention."""


def documents_mask(documents_BT: Tensor, head_dim: int) -> Mask:
    """What each position may see: itself and what stands before it in its own document.

    On CUDA a mask of blocks, so that FlexAttention passes over those in which nothing is seen; elsewhere, and for heads
    that it does not take, all T x T of them.
    """
    b, t = documents_BT.shape
    if not documents_BT.is_cuda or head_dim < _LEAST_WIDTH:
        same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
        return same_BTT.tril().unsqueeze(1)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents_BT[batch, query] == documents_BT[batch, key])

    return create_block_mask(sees, b, None, t, t, device=documents_BT.device)


def attention_inside(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask) -> Tensor:
    """[B, H, T, K], with G key and value heads, each for H/G query heads -> [B, H, T, K]."""
    groups = q_BHTK.shape[1] // k_BGTK.shape[1]
    if isinstance(mask, BlockMask):
        return _flex()(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=groups > 1)
    if groups > 1:
        k_BGTK, v_BGTK = k_BGTK.repeat_interleave(groups, dim=1), v_BGTK.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, attn_mask=mask)


@cache
def _flex() -> Any:
    """Compiled in any case: the operator by itself writes out all scores. A compiled block takes it into its graph."""
    return torch.compile(flex_attention)
