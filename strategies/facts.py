"""What a model tells strategies about itself. A strategy never knows a model; a model never knows a strategy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    SumOverRanks = Callable[[Tensor], None]
    """Sums a tensor in place over all ranks that see other tokens through the same layers."""
    ComputeExperts = Callable[[Tensor, Tensor], Tensor]
    """(rows [M, D] sorted by expert, rows of each of the experts that are here) -> [M, D]."""


class Slicing(StrEnum):
    """How tensor parallelism cuts a module. The words are the field's; the model hands them in by module name."""

    COLUMN = "column"
    """A linear layer whose output features are split: whole input, split output."""
    ROW = "row"
    """A linear layer whose input features are split: split input; the outputs are summed over the ranks."""
    REGION = "region"
    """A module that needs its first input whole and ends in a ROW: attention, feed-forward."""
    POSITIONWISE = "positionwise"
    """A module that treats each position by itself: with sequence parallelism it sees its part only (norms)."""
    EMBEDDING = "embedding"
    """The input embedding: rows of the vocabulary are split, or output features, if it is a linear layer."""
    HEAD = "head"
    """The output projection: columns of the vocabulary are split, and the loss is taken of the parts."""
    EXPERTS = "experts"
    """Grouped weights of experts: `gate` and `up` [E, F, D] and `down` [E, D, F] are split along F."""
    HEADWISE = "headwise"
    """A module inside a REGION that treats each head by itself (norms of queries and keys): each rank gives it its
    heads, so its gradient is a part of the sum."""
    ROUTER = "router"
    """A whole linear layer inside a REGION, each rank's gradient of which is a part of the sum."""


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where a pipeline may cut: between blocks. What lies before the first and after the last goes with them."""

    before: tuple[str, ...] = ()
    """Modules of the first stage: the embedding."""
    after: tuple[str, ...] = ()
    """Modules of the last stage: norm and output projection."""
    block_costs: tuple[float, ...] = ()
    """FLOPs a token of each block, forward."""
    before_cost: float = 0.0
    after_cost: float = 0.0
    width: int = 0
    """Features of an activation that goes from stage to stage: [B, T, width]."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The mixture-of-experts layers."""

    modules: tuple[str, ...] = ()
    """Modules that hold `gate` and `up` [E, F, D] and `down` [E, D, F] and a `dispatch` that ep may replace."""
    num_experts: int = 0
    dim: int = 0
    """D: width of the hidden states."""
    ffn_dim: int = 0
    """F: width of an expert."""
    grouped_multiple: int = 1
    """All experts of a layer are computed together if D and F, as a rank holds them, are multiples of this; else one
    by one, for which the host must know how many rows each gets."""

    def can_be_grouped(self, tp_degree: int) -> bool:
        """Whether the sizes allow for computing all experts together."""
        return self.dim % self.grouped_multiple == 0 and self.ffn_dim // tp_degree % self.grouped_multiple == 0


def regions_with_experts(slicing: Mapping[str, Slicing]) -> tuple[str, ...]:
    """The regions that contain experts: sliced, they compute with their parts of the weights, past their layers."""
    experts = [name for name, how in slicing.items() if how is Slicing.EXPERTS]
    regions = (name for name, how in slicing.items() if how is Slicing.REGION)
    return tuple(name for name in regions if any(each.startswith(f"{name}.") for each in experts))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What strategies may know of a model. Names are module paths as in `get_submodule`."""

    parts: tuple[str, ...] = ("",)
    """Modules that are called from outside: the whole model, or this rank's stages of a pipeline."""
    blocks: tuple[str, ...] = ()
    """Names of the repeated blocks, in the order of the forward pass."""
    units: tuple[tuple[str, ...], ...] = ()
    """Groups of modules outside the blocks whose parameters are needed together (tied ones share a group)."""
    num_parameters: int = 0
    """All parameters, each tied tensor once."""
    flops_per_token: float = 0.0
    """Model FLOPs of forward and backward for each token; the model's docstring states the convention."""
    unit: str = "token"
    """What is meant by a token, of which rates are told: an image, a sample, for models that read no text."""
    sequence_length: int = 0
    """T: positions of a sample, before anything is split."""
    initialise: "Callable[[str, Tensor, torch.Generator], None] | None" = None
    """Fills a whole parameter, given its name. Needed for meta-device initialisation; None for a model made whole."""
    fill_buffer: "Callable[[str, Tensor], None] | None" = None
    """Fills a buffer, given its name, for models that keep some (batch norm); beside `initialise`."""
    has_modes: bool = False
    """It evaluates otherwise than it trains: batch norm, dropout. Then it is told which of the two goes on."""
    slicing: Mapping[str, Slicing] = field(default_factory=dict[str, Slicing])
    """How tensor parallelism cuts modules; every module with parameters is in it, or inside one that is."""
    splits_positions: bool = True
    """Hidden states between blocks may be a part of the positions; false if the model asks them for their length."""
    sliced_sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Sizes that the tensor-parallel degree must divide, by recipe key: `model.decoder.num_heads`."""
    attentions: tuple[str, ...] = ()
    """Causal attentions without parameters, `forward(q, k, v)`: [B, H, T, K], [B, G, T, K] twice -> [B, H, T, K]."""
    head: str = ""
    """The output projection; empty if there is none of its own (tied)."""
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Linear layers: input and output features of each, so that a recipe can be judged before there is a model."""
    precise: tuple[str, ...] = ()
    """Linear layers that must keep their precision: output projection, routers."""
    tied: bool = False
    """The output projection is the embedding."""
    cuts: Cuts | None = None
    """Where a pipeline may cut; None for a model that cannot be."""
    experts: Experts | None = None
    """The mixture-of-experts layers, if there are any."""
    after_step: "Callable[[nn.Module, SumOverRanks], None] | None" = None
    """What the model itself does, given the model, when the optimizer has moved the weights."""
    report: "Callable[[nn.Module, SumOverRanks], list[str]] | None" = None
    """What the model has to say when the run is over; every rank calls it."""

    @property
    def one_unit(self) -> str:
        """What rates are told of, with its article: a token, an image."""
        return f"{'an' if self.unit[0] in 'aeiou' else 'a'} {self.unit}"
