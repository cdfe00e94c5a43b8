"""The decoder's dimensions and what follows from them, without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from ...strategies.facts import Cuts, Experts, Facts, Slicing
from ...strategies.limits import Above, PositiveFloat, PositiveInt
from ..data.wanted import Gives
from .moe_config import GROUPED_MULTIPLE, MoEConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...strategies.base import Batch
    from ...strategies.facts import SumOverRanks
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
    moe: MoEConfig | None = None
    """Experts in place of the dense feed-forward, in some layers or all."""

    takes: ClassVar[Gives] = "tokens"
    takes_documents: ClassVar[bool] = True

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
        for problem in self.moe.layer_problems(self.num_layers) if self.moe else ():
            yield f"moe.{problem}"

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Which layers have experts."""
        return self.moe.layers(self.num_layers) if self.moe else ()

    def _attention_parameters(self) -> int:
        return 2 * self.dim * self.dim + 2 * self.dim * self.kv_heads * self.head_dim

    def _multiplying(self) -> tuple[int, ...]:
        """Parameters of each block that one token is multiplied with: no norms, of the experts only the chosen."""
        dense = 3 * self.dim * self.ffn_dim
        of_experts = self.moe.active_parameters(self.dim) if self.moe else 0
        attention = self._attention_parameters()
        return tuple(attention + (of_experts if i in self.expert_layers else dense) for i in range(self.num_layers))

    def num_parameters(self) -> int:
        """All parameters, a tied embedding once."""
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.dim
        of_experts = self.moe.num_parameters(self.dim) if self.moe else 0
        feed_forward = len(self.expert_layers) * of_experts
        feed_forward += (self.num_layers - len(self.expert_layers)) * 3 * self.dim * self.ffn_dim
        return self.num_layers * (self._attention_parameters() + 2 * self.dim) + feed_forward + embeddings + self.dim

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs for each token, forward and backward: 6 N + 12 L H Q T.

        Convention: N counts the parameters that multiply: no norms, no input embedding, of the experts only those that
        a token goes through; the output projection counts, tied or not. Attention is counted in full, without the
        discount for its causal half; recomputation counts nothing. L layers, H heads, Q head width, T sequence length.
        Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B; nanoGPT `estimate_mfu`.
        """
        multiplying = sum(self._multiplying()) + self.vocab_size * self.dim
        return 6.0 * multiplying + 12.0 * self.num_layers * self.dim * sequence_length

    def facts(self, sequence_length: int) -> Facts:
        """What strategies may know about this decoder."""
        # A tied embedding is used at both ends of the forward pass, so it stays with the root, which is never freed.
        units = () if self.tie_embeddings else (("embedding",), ("norm", "head"))
        blocks = tuple(f"layers.{i}" for i in range(self.num_layers))
        with_experts = tuple(blocks[i] for i in self.expert_layers)
        head = () if self.tie_embeddings else ("head",)
        return Facts(
            blocks=blocks,
            units=units,
            num_parameters=self.num_parameters(),
            flops_per_token=self.flops_per_token(sequence_length),
            sequence_length=sequence_length,
            initialise=self._initialise,
            slicing=self._slicing(blocks),
            sliced_sizes=self._sliced_sizes(),
            attentions=tuple(f"{block}.attention.core" for block in blocks),
            head="" if self.tie_embeddings else "head",
            linears=self._linears(blocks),
            precise=(*(f"{block}.ffn.router" for block in with_experts), *head),
            tied=self.tie_embeddings,
            cuts=self._cuts(sequence_length),
            experts=self.moe
            and Experts(
                modules=tuple(f"{block}.ffn.experts" for block in with_experts),
                num_experts=self.moe.num_experts,
                dim=self.dim,
                ffn_dim=self.moe.ffn_dim,
                grouped_multiple=GROUPED_MULTIPLE,
            ),
            after_step=_balance if self.moe and self.moe.balance == "bias" else None,
            report=_load_report if self.moe else None,
        )

    def _linears(self, blocks: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Every linear layer; the experts' weights are none."""
        heads, kv = self.num_heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {
            "query": (self.dim, heads),
            "key": (self.dim, kv),
            "value": (self.dim, kv),
            "out": (heads, self.dim),
        }
        found: dict[str, tuple[int, int]] = {}
        for i, block in enumerate(blocks):
            found |= {f"{block}.attention.{name}": size for name, size in attention.items()}
            width, where = self.ffn_dim, f"{block}.ffn"
            if self.moe and i in self.expert_layers:
                found[f"{where}.router"] = (self.dim, self.moe.num_experts)
                width, where = self.moe.shared_dim if self.moe.num_shared_experts else 0, f"{where}.shared"
            if width:
                found |= {f"{where}.{name}": (self.dim, width) for name in ("gate", "up")}
                found[f"{where}.down"] = (width, self.dim)
        return found if self.tie_embeddings else found | {"head": (self.dim, self.vocab_size)}

    def _sliced_sizes(self) -> dict[str, int]:
        sizes = {
            "model.decoder.num_heads": self.num_heads,
            "model.decoder.num_kv_heads": self.kv_heads,
            "model.decoder.vocab_size": self.vocab_size,
        }
        if len(self.expert_layers) < self.num_layers:
            sizes["model.decoder.ffn_dim"] = self.ffn_dim
        if self.moe:
            sizes["model.decoder.moe.ffn_dim"] = self.moe.ffn_dim
        return sizes

    def _slicing(self, blocks: tuple[str, ...]) -> dict[str, Slicing]:
        """Attention by heads, feed-forward by its width, embedding and output projection by the vocabulary.

        Source: Shoeybi et al. 2019, arXiv:1909.08053 (section 3); Korthikanti et al. 2022, arXiv:2205.05198 (4.2).
        """
        every = {
            "attention_norm": Slicing.POSITIONWISE,
            "attention": Slicing.REGION,
            "attention.query": Slicing.COLUMN,
            "attention.key": Slicing.COLUMN,
            "attention.value": Slicing.COLUMN,
            "attention.out": Slicing.ROW,
            "ffn_norm": Slicing.POSITIONWISE,
        }
        dense = {
            "ffn": Slicing.REGION,
            "ffn.gate": Slicing.COLUMN,
            "ffn.up": Slicing.COLUMN,
            "ffn.down": Slicing.ROW,
        }
        of_experts = self.moe.slicing() if self.moe else {}
        outside = {"embedding": Slicing.EMBEDDING, "norm": Slicing.POSITIONWISE, "head": Slicing.HEAD}
        return outside | {
            f"{block}.{name}": how
            for i, block in enumerate(blocks)
            for name, how in (every | (of_experts if i in self.expert_layers else dense)).items()
        }

    def _cuts(self, sequence_length: int) -> Cuts:
        """Forward FLOPs a token of each piece: 2 for each parameter that multiplies, and 4 T D for the attention."""
        attention = 4.0 * sequence_length * self.dim
        return Cuts(
            before=("embedding",),
            after=("norm", "head"),
            block_costs=tuple(2.0 * multiplying + attention for multiplying in self._multiplying()),
            before_cost=0.0,  # a lookup
            after_cost=2.0 * self.vocab_size * self.dim,
            width=self.dim,
        )

    def _initialise(self, name: str, weight: "torch.Tensor", generator: "torch.Generator") -> None:
        """Norms to one, the rest normal with deviation 0.02; what writes to the residual stream smaller by sqrt(2 L).

        Source: Radford et al. 2019 (GPT-2), section 2.3.
        """
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
            return
        writes_residual = name.endswith(
            ("attention.out.weight", "ffn.down.weight", "ffn.experts.down", "ffn.shared.down.weight")
        )
        std = 0.02 / (2 * self.num_layers) ** 0.5 if writes_residual else 0.02
        weight.normal_(0.0, std, generator=generator)

    def build(self) -> "Decoder":
        """The module, with weights as `torch.nn` makes them; build it on the meta device."""
        from .decoder import Decoder

        return Decoder(self)

    def loss(self) -> "Callable[[torch.Tensor, Batch], torch.Tensor]":
        """Cross entropy of the next token."""
        from .decoder import next_token_loss

        return next_token_loss


def _balance(model: "nn.Module", sum_over_ranks: "SumOverRanks") -> None:
    from .moe import balance

    balance(model, sum_over_ranks)


def _load_report(model: "nn.Module", sum_over_ranks: "SumOverRanks") -> list[str]:
    from .moe import load_report

    return load_report(model, sum_over_ranks)
