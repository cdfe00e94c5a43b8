"""A Llama-style decoder. Shapes: B batch, T tokens, D model width, H heads, K head width, F ffn width, V vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...strategies.base import Batch
from .config import DecoderConfig
from .documents import Mask, attention_inside, documents_mask
from .feedforward import SwiGLU
from .moe import MixtureOfExperts
from .moe_config import MoEConfig


class RMSNorm(nn.Module):
    """Scales each vector to unit mean square, then by a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise over D; torch computes in float32 whatever the input is."""
        return F.rms_norm(x_BTD, self.weight.shape, self.weight.to(x_BTD.dtype), self.eps)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of positions [T] or [B, T]: [T, K/2] or [B, 1, T, K/2] each, float32.

    Computed in every forward pass from the positions: nothing to keep, nothing to cast, and a strategy that shards the
    sequence only has to shard the positions. Source: Su et al. 2021, arXiv:2104.09864.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None] * theta**-exponents
    if positions.ndim == 2:
        angles = angles.unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + K/2) of each head by its position's angles, in float32."""
    first, second = x_BHTK.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BHTK.dtype)


class CausalAttention(nn.Module):
    """Attention of each position to itself and those before it; without parameters, so that it can be replaced."""

    def forward(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask | None = None) -> Tensor:
        """[B, H, T, K], with G key and value heads, each for H/G query heads -> [B, H, T, K]."""
        if mask is not None:
            return attention_inside(q_BHTK, k_BGTK, v_BGTK, mask)
        groups = q_BHTK.shape[1] // k_BGTK.shape[1]
        if groups > 1:
            # Expanded here rather than by enable_gqa, which has no fused kernel on the CPU, nor in float32 on CUDA.
            k_BGTK, v_BGTK = k_BGTK.repeat_interleave(groups, dim=1), v_BGTK.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True)


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.dim, config.num_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.num_heads * config.head_dim, config.dim, bias=False)
        self.core = CausalAttention()

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Mask | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; the number of heads follows from the weights, of which a rank may hold a part."""
        b, t, _ = x_BTD.shape
        q = self.query(x_BTD).view(b, t, -1, self.head_dim).transpose(1, 2)
        k = self.key(x_BTD).view(b, t, -1, self.head_dim).transpose(1, 2)
        v = self.value(x_BTD).view(b, t, -1, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out_BHTK = self.core(q, k, v) if mask is None else self.core(q, k, v, mask)
        return self.out(out_BHTK.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, dense or of experts, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, moe: MoEConfig | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = SwiGLU(config.dim, config.ffn_dim) if moe is None else MixtureOfExperts(moe, config.dim)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Mask | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin, mask)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Decoder(nn.Module):
    """Token ids to logits over the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            Block(config, config.moe if i in config.expert_layers else None) for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        # Kept as a module only when it has weights of its own, so that no name stands for two tensors.
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, x: Tensor, positions: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, V] logits; `positions` [T] or [B, T] default to 0 .. T-1, for one document.

        A pipeline puts modules that hand on what they get in the places of those that another rank has; so a later
        stage takes, and an earlier one returns, [B, T, D].
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        mask = None if documents_BT is None else documents_mask(documents_BT, self.config.head_dim)
        cos, sin = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x_BTD = self.embedding(x)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos, sin) if mask is None else layer(x_BTD, cos, sin, mask)
        x_BTD = self.norm(x_BTD)
        return F.linear(x_BTD, self.embedding.weight) if self.head is None else self.head(x_BTD)


def next_token_loss(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Sum of the cross entropies of the valid tokens, in float32; labels of -100 do not count."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=-100, reduction="sum")
