"""The mixture-of-experts table of a decoder and what follows from it, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...strategies.facts import Slicing
from ...strategies.limits import Count, PositiveFloat, PositiveInt

GROUPED_MULTIPLE = 8
"""Sizes of grouped products in BF16: the kernel reads 16 bytes at a time."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Feed-forward layers of many experts, of which each token goes through a few; no token is ever dropped.

    Source: Shazeer et al. 2017, arXiv:1701.06538; Dai et al. 2024 (DeepSeekMoE), arXiv:2401.06066.
    """

    num_experts: PositiveInt = 8
    """Experts of a layer."""
    top_k: PositiveInt = 2
    """Experts that each token goes through."""
    ffn_dim: PositiveInt = 352
    """Width of an expert's SwiGLU."""
    num_shared_experts: Count = 0
    """Experts of the same width that every token goes through besides."""
    first_dense_layers: Count = 0
    """Leading layers that keep the dense feed-forward."""
    every: PositiveInt = 1
    """Every n-th of the layers after them has experts: 1 all, 2 every other."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    """How scores are made of the router's outputs: against each other, or each by itself."""
    normalise_weights: bool = True
    """Divide the scores of the chosen experts by their sum."""
    balance: Literal["none", "bias"] = "bias"
    """`bias` adds to each score, for the choice only, what raises the share of experts that get too few tokens."""
    bias_rate: PositiveFloat | None = None
    """By how much a bias moves in a step (0.001)."""

    @property
    def rate(self) -> float:
        """By how much a bias moves in a step; 0 without balancing."""
        return 0.0 if self.balance == "none" else 0.001 if self.bias_rate is None else self.bias_rate

    @property
    def shared_dim(self) -> int:
        """Width of the shared experts, which are one SwiGLU together."""
        return self.num_shared_experts * self.ffn_dim

    def problems(self) -> Iterator[str]:
        """Choices that cannot be made, and settings without effect."""
        if self.top_k > self.num_experts:
            yield f"top_k = {self.top_k}: there are num_experts = {self.num_experts}; use fewer"
        if self.top_k == self.num_experts and self.balance == "bias":
            yield f"balance = 'bias': has no effect if all {self.num_experts} experts are chosen; use 'none'"
        if self.top_k == 1 and self.normalise_weights:
            yield "normalise_weights = true: makes the one weight 1, so that the router cannot learn; set it to false"
        if self.bias_rate is not None and self.balance == "none":
            yield f"bias_rate = {self.bias_rate:g}: has no effect with balance = 'none'; remove one of the two"

    def layer_problems(self, num_layers: int) -> Iterator[str]:
        """Placements that leave no layer with experts."""
        rest = num_layers - self.first_dense_layers
        if rest <= 0:
            yield f"first_dense_layers = {self.first_dense_layers}: leaves none of {num_layers} layers; use fewer"
        elif self.every > rest:
            yield f"every = {self.every}: only {rest} layers may have experts, so none would; use at most {rest}"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Which layers have experts."""
        return tuple(range(num_layers))[self.first_dense_layers :][self.every - 1 :: self.every]

    def num_parameters(self, dim: int) -> int:
        """Router, experts and shared experts of one layer."""
        return dim * self.num_experts + 3 * dim * (self.num_experts * self.ffn_dim + self.shared_dim)

    def active_parameters(self, dim: int) -> int:
        """Those that a token is multiplied with."""
        return dim * self.num_experts + 3 * dim * (self.top_k * self.ffn_dim + self.shared_dim)

    def slicing(self) -> dict[str, Slicing]:
        """How tensor parallelism cuts the layer, by the name below it."""
        shared = {
            "ffn.shared.gate": Slicing.COLUMN,
            "ffn.shared.up": Slicing.COLUMN,
            "ffn.shared.down": Slicing.ROW,
        }
        return {
            "ffn": Slicing.REGION,
            "ffn.router": Slicing.ROUTER,
            "ffn.experts": Slicing.EXPERTS,
            **(shared if self.num_shared_experts else {}),
        }
