"""A vision transformer. Shapes: B batch, T patches, P numbers of a patch, D width, H heads, K head width, C classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vit_config import VisionTransformerConfig


class PatchEmbedding(nn.Linear):
    """Projects each patch of an image and adds its learned position."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config.patch_features, config.dim)
        self.patch_size = config.patch_size
        self.position = nn.Parameter(torch.zeros(config.num_patches, config.dim))

    def forward(self, images_BcHW: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, c, H, W] -> [B, T, D], row by row; the product is that of a convolution with stride `patch_size`."""
        b, c, height, width = images_BcHW.shape
        size = self.patch_size
        grid = images_BcHW.reshape(b, c, height // size, size, width // size, size)
        patches_BTP = grid.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * size * size)
        return super().forward(patches_BTP) + self.position


class SelfAttention(nn.Module):
    """Attention of every patch to every patch."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.dim // config.num_heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)
        self.value = nn.Linear(config.dim, config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; the number of heads follows from the weights, of which a rank may hold a part."""
        b, t, _ = x_BTD.shape
        q, k, v = (
            project(x_BTD).view(b, t, -1, self.head_dim).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        out_BHTK = F.scaled_dot_product_attention(q, k, v)
        return self.out(out_BHTK.transpose(1, 2).reshape(b, t, -1))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ffn_dim)
        self.down = nn.Linear(ffn_dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.gelu(self.up(x_BTD)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attention = SelfAttention(config)
        self.ffn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Head(nn.Linear):
    """Classifies the mean of the patches.

    The mean is taken inside, so that whoever slices the head has gathered the patches before.
    """

    def forward(self, x_BTD: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, T, D] -> [B, C]."""
        return super().forward(x_BTD.mean(1))


class VisionTransformer(nn.Module):
    """Images to logits of their classes."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.head = Head(config.dim, config.num_classes)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, c, H, W] images -> [B, C] logits. Positions are learned, so none are taken."""
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
