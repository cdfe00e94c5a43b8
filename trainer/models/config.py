"""The decoder's dimensions and what follows from them, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ...strategies.base import Facts
from ...strategies.limits import Above, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    import torch

    from .decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Source: Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783 (Table 3).
    """

    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 4
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Query heads."""
    num_kv_heads: PositiveInt | None = None
    """Key and value heads (GQA); as many as query heads if left out."""
    ffn_dim: PositiveInt = 704
    """Width of the SwiGLU."""
    vocab_size: PositiveInt = 256
    """Number of token ids."""
    rope_theta: Annotated[float, Above(1)] = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = False
    """Use the embedding as the output projection."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    def problems(self) -> Iterator[str]:
        """Dimensions that do not divide."""
        if self.dim % self.num_heads:
            yield f"dim = {self.dim}: not divisible by num_heads = {self.num_heads}; change one of the two"
        elif self.head_dim % 2:
            yield (
                f"dim = {self.dim}: heads of width {self.head_dim} are odd, and rotary positions turn pairs; "
                f"change dim or num_heads"
            )
        if self.num_heads % self.kv_heads:
            yield f"num_kv_heads = {self.num_kv_heads}: does not divide num_heads = {self.num_heads}; use a divisor"

    def parameters_per_block(self) -> int:
        """Attention, SwiGLU and the two norms of one block."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_heads * self.head_dim
        return attention + 3 * self.dim * self.ffn_dim + 2 * self.dim

    def num_parameters(self) -> int:
        """All parameters, a tied embedding once."""
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.dim
        return self.num_layers * self.parameters_per_block() + embeddings + self.dim

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs for each token, forward and backward: 6 N + 12 L H Q T.

        Convention: N counts the parameters that multiply (no norms, no input embedding; the output projection counts,
        tied or not); attention is counted in full, without the discount for its causal half; recomputation counts
        nothing. L layers, H heads, Q head width, T sequence length.
        Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B; nanoGPT `estimate_mfu`.
        """
        blocks = self.num_layers * (self.parameters_per_block() - 2 * self.dim)
        multiplying = blocks + self.vocab_size * self.dim
        return 6.0 * multiplying + 12.0 * self.num_layers * self.dim * sequence_length

    def facts(self, sequence_length: int) -> Facts:
        """What strategies may know about this decoder."""
        # A tied embedding is used at both ends of the forward pass, so it stays with the root, which is never freed.
        units = () if self.tie_embeddings else (("embedding",), ("norm", "head"))
        return Facts(
            blocks=tuple(f"layers.{i}" for i in range(self.num_layers)),
            units=units,
            num_parameters=self.num_parameters(),
            flops_per_token=self.flops_per_token(sequence_length),
            initialise=self._initialise,
        )

    def _initialise(self, name: str, weight: "torch.Tensor", generator: "torch.Generator") -> None:
        """Norms to one, the rest normal with deviation 0.02; what writes to the residual stream smaller by sqrt(2 L).

        Source: Radford et al. 2019 (GPT-2), section 2.3.
        """
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
            return
        writes_residual = name.endswith(("attention.out.weight", "ffn.down.weight"))
        std = 0.02 / (2 * self.num_layers) ** 0.5 if writes_residual else 0.02
        weight.normal_(0.0, std, generator=generator)

    def build(self) -> "Decoder":
        """The module, with weights as `torch.nn` makes them; build it on the meta device."""
        from .decoder import Decoder

        return Decoder(self)
