"""The decoder's dimensions and what follows from them, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ...strategies.facts import Cuts, Facts, Slicing
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
        blocks = tuple(f"layers.{i}" for i in range(self.num_layers))
        return Facts(
            blocks=blocks,
            units=units,
            num_parameters=self.num_parameters(),
            flops_per_token=self.flops_per_token(sequence_length),
            sequence_length=sequence_length,
            initialise=self._initialise,
            slicing=self._slicing(blocks),
            sliced_sizes={
                "model.decoder.num_heads": self.num_heads,
                "model.decoder.num_kv_heads": self.kv_heads,
                "model.decoder.ffn_dim": self.ffn_dim,
                "model.decoder.vocab_size": self.vocab_size,
            },
            attentions=tuple(f"{block}.attention.core" for block in blocks),
            head="" if self.tie_embeddings else "head",
            precise=() if self.tie_embeddings else ("head",),
            tied=self.tie_embeddings,
            cuts=self._cuts(sequence_length),
        )

    def _slicing(self, blocks: tuple[str, ...]) -> dict[str, Slicing]:
        """Attention by heads, feed-forward by its width, embedding and output projection by the vocabulary.

        Source: Shoeybi et al. 2019, arXiv:1909.08053 (section 3); Korthikanti et al. 2022, arXiv:2205.05198 (4.2).
        """
        in_block = {
            "attention_norm": Slicing.POSITIONWISE,
            "attention": Slicing.REGION,
            "attention.query": Slicing.COLUMN,
            "attention.key": Slicing.COLUMN,
            "attention.value": Slicing.COLUMN,
            "attention.out": Slicing.ROW,
            "ffn_norm": Slicing.POSITIONWISE,
            "ffn": Slicing.REGION,
            "ffn.gate": Slicing.COLUMN,
            "ffn.up": Slicing.COLUMN,
            "ffn.down": Slicing.ROW,
        }
        outside = {"embedding": Slicing.EMBEDDING, "norm": Slicing.POSITIONWISE, "head": Slicing.HEAD}
        return outside | {f"{block}.{name}": how for block in blocks for name, how in in_block.items()}

    def _cuts(self, sequence_length: int) -> Cuts:
        """Forward FLOPs a token of each piece: 2 for each parameter that multiplies, and 4 T D for the attention."""
        block = 2.0 * (self.parameters_per_block() - 2 * self.dim) + 4.0 * sequence_length * self.dim
        return Cuts(
            before=("embedding",),
            after=("norm", "head"),
            block_costs=(block,) * self.num_layers,
            before_cost=0.0,  # a lookup
            after_cost=2.0 * self.vocab_size * self.dim,
            width=self.dim,
            vocab_size=self.vocab_size,
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
