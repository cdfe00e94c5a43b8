"""A causal language model of `transformers`, called as our own are."""

from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError


def make(config: Any, attention: str) -> Any:
    """The model of a configuration, in float32, with its own initial weights. Raises: ModelError."""
    from .transformers_config import library

    kernels = None if attention == "auto" else attention
    try:
        return library().AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=kernels, trust_remote_code=False
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(f"model.transformers: {type(error).__name__}: {lines[0][:300]}") from error


class CausalLM(nn.Module):
    """Token ids to logits, without caches and without anything but the logits."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids_BT: Tensor, positions: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, V] logits; positions [T] or [B, T] are 0 .. T-1 if left out."""
        given: dict[str, Tensor] = {}
        if positions is not None:
            given["position_ids"] = positions if positions.ndim == 2 else positions[None]
        if documents_BT is not None:
            same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
            given["attention_mask"] = _as_kernels_want(same_BTT.tril().unsqueeze(1), self.inner.config)
        return self.inner(input_ids=ids_BT, use_cache=False, return_dict=True, **given).logits


def _as_kernels_want(sees_B1TT: Tensor, config: Any) -> Tensor:
    """True where a position sees another; plain products add numbers instead."""
    if config._attn_implementation == "sdpa":  # pyright: ignore[reportPrivateUsage]
        return sees_B1TT
    return torch.where(sees_B1TT, 0.0, torch.finfo(torch.float32).min)
