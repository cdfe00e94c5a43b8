"""The dense feed-forward. Shapes: B batch, T tokens, D model width, F ffn width."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Gated feed-forward: down(silu(gate(x)) * up(x)). Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, ffn_dim, bias=False)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
