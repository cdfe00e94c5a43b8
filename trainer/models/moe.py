"""A mixture of experts, without dropped tokens.

Shapes: B batch, T tokens of a sequence, N tokens of a microbatch, K experts a token, M = N K rows, E experts, D model
width, F width of an expert. A rank may hold a part of the experts, of their width, or of both.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...strategies.names import canonical
from .feedforward import SwiGLU
from .moe_config import GROUPED_MULTIPLE, MoEConfig

if TYPE_CHECKING:
    from ...strategies.facts import ComputeExperts, SumOverRanks


def local(parameter: Tensor) -> Tensor:
    """What this rank holds of a weight; the gradient of a whole one is a part of the sum over tensor-parallel ranks."""
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(parameter, DTensor):
        return parameter
    placements = parameter.placements
    return parameter.to_local(grad_placements=[Partial() if each.is_replicate() else each for each in placements])


def through(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)`, of a weight of which this rank may hold a part."""
    weight = local(linear.weight)
    return linear(x) if weight is linear.weight else F.linear(x, weight)


def _grouped_dtype(x: Tensor) -> torch.dtype | None:
    """In what grouped products can be computed; None where there is no kernel for them."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return dtype if device == "cuda" and dtype == torch.bfloat16 else None


def _grouped_swiglu(x_MD: Tensor, weights: tuple[Tensor, Tensor, Tensor], ends_E: Tensor) -> Tensor:
    """All experts in three products; the counts stay on the device."""
    gate_EDF, up_EDF, down_EFD = (weight.to(x_MD.dtype).transpose(1, 2) for weight in weights)
    inner_MF = F.silu(F.grouped_mm(x_MD, gate_EDF, offs=ends_E)) * F.grouped_mm(x_MD, up_EDF, offs=ends_E)
    return F.grouped_mm(inner_MF, down_EFD, offs=ends_E)


@torch.compiler.disable(reason="the host must know how many rows each expert gets")  # pyright: ignore[reportUntypedFunctionDecorator]
def _swiglu_by_expert(x_MD: Tensor, weights: tuple[Tensor, Tensor, Tensor], counts_E: Tensor) -> Tensor:
    """One expert after the other, for every device and dtype."""
    each = zip(x_MD.split(counts_E.tolist()), *(weight.unbind() for weight in weights), strict=True)
    return torch.cat([F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down) for x, gate, up, down in each])


class Dispatch(nn.Module):
    """Takes rows to their experts and back; without parameters, so that ranks can exchange them instead."""

    def forward(self, x_MD: Tensor, counts_E: Tensor, compute: "ComputeExperts") -> Tensor:
        """Rows sorted by expert [M, D] -> what the experts make of them, in the same order."""
        return compute(x_MD, counts_E)


class Experts(nn.Module):
    """Many SwiGLUs, their weights in three tensors."""

    def __init__(self, num_experts: int, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Parameter(torch.empty(num_experts, ffn_dim, dim))
        self.up = nn.Parameter(torch.empty(num_experts, ffn_dim, dim))
        self.down = nn.Parameter(torch.empty(num_experts, dim, ffn_dim))
        self.dispatch = Dispatch()
        for weight in self.parameters():  # as nn.Linear does it
            nn.init.uniform_(weight, -(weight.shape[2] ** -0.5), weight.shape[2] ** -0.5)

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor, counts_E: Tensor) -> Tensor:
        """Weighted sum over each token's experts, [N, D]; `counts_E` are the tokens of each expert."""
        order_M = chosen_NK.flatten().argsort(stable=True)
        rows_MD = self.dispatch(x_ND[order_M // chosen_NK.shape[1]], counts_E, self.compute)
        place_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        out_NKD = rows_MD[place_M].unflatten(0, chosen_NK.shape)
        return (out_NKD * weights_NK[:, :, None]).sum(1).to(x_ND.dtype)  # the weights are float32, and so the sum

    def compute(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """The experts that this rank holds, each on its rows."""
        weights = (local(self.gate), local(self.up), local(self.down))
        dtype = _grouped_dtype(x_MD)
        aligned = all(size % GROUPED_MULTIPLE == 0 for size in weights[0].shape[1:])
        if dtype is None or not aligned or x_MD.shape[0] == 0:
            return _swiglu_by_expert(x_MD, weights, counts_E)
        return _grouped_swiglu(x_MD.to(dtype), weights, counts_E.cumsum(0, dtype=torch.int32))


class SharedExperts(SwiGLU):
    """The experts that every token goes through, as one SwiGLU."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; a part of the sum, where this rank holds a part of the width."""
        return through(self.down, F.silu(through(self.gate, x_BTD)) * through(self.up, x_BTD))


class MixtureOfExperts(nn.Module):
    """A router, experts of which each token goes through a few, and experts that all go through.

    [Note: balancing without a loss]
    A bias is added to the scores for the choice only; after each step it moves up for experts that got fewer tokens
    than the mean of all ranks and microbatches, and down for the others. No gradient is disturbed. A layer that is
    recomputed in backward counts its tokens twice, each expert's alike: neither the direction nor a share changes.
    Source: Wang et al. 2024, arXiv:2408.15664; DeepSeek-AI 2024 (DeepSeek-V3), arXiv:2412.19437 (section 2.1.2).
    """

    bias: Tensor
    load: Tensor
    total: Tensor

    def __init__(self, config: MoEConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(dim, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, dim, config.ffn_dim)
        self.shared = SharedExperts(dim, config.shared_dim) if config.num_shared_experts else None
        # On the CPU even while the parameters are on the meta device: buffers keep the values they are made with.
        self.register_buffer("bias", torch.zeros(config.num_experts, device="cpu"))
        for name in ("load", "total"):  # tokens of each expert: this rank's in this step, all ranks' since the start
            counts_E = torch.zeros(config.num_experts, dtype=torch.int64, device="cpu")
            self.register_buffer(name, counts_E, persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_ND = x_BTD.flatten(0, 1)
        chosen_NK, weights_NK = self.route(x_ND)
        counts_E = torch.zeros_like(self.load).scatter_add_(
            0, chosen_NK.flatten(), torch.ones_like(chosen_NK).flatten()
        )
        if torch.is_grad_enabled():  # an evaluation does not count
            self.load.add_(counts_E)
        out_BTD = self.experts(x_ND, chosen_NK, weights_NK, counts_E).view_as(x_BTD)
        return out_BTD if self.shared is None else out_BTD + self.shared(x_BTD)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of each token and their weights, [N, K] each.

        The product and what follows it are float32, for half precision flips close choices; the numbers that go into it
        have the rounding of the compute dtype.
        """
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), local(self.router.weight).float())
            scores_NE = logits_NE.softmax(-1) if self.config.router == "softmax" else logits_NE.sigmoid()
            chosen_NK = (scores_NE.detach() + self.bias).topk(self.config.top_k, dim=-1).indices
            weights_NK = scores_NE.gather(1, chosen_NK)
            total_N1 = weights_NK.sum(-1, keepdim=True) if self.config.normalise_weights else 1.0
            return chosen_NK, weights_NK / total_N1


def layers_of(model: nn.Module) -> dict[str, MixtureOfExperts]:
    """The layers with experts that this rank holds, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}


@torch.no_grad()
def balance(model: nn.Module, sum_over_ranks: "SumOverRanks") -> None:
    """Move each layer's bias by the tokens of the step, of all ranks; one reduction for all layers."""
    layers = list(layers_of(model).values())
    if not layers:
        return
    loads_LE = torch.stack([layer.load for layer in layers])
    sum_over_ranks(loads_LE)
    too_few_LE = loads_LE.sum(1, keepdim=True) - loads_LE.shape[1] * loads_LE  # exact, in whole numbers
    for layer, load_E, sign_E in zip(layers, loads_LE, too_few_LE.sign(), strict=True):
        layer.bias.add_(sign_E, alpha=layer.config.rate)
        layer.total.add_(load_E)
        layer.load.zero_()


def load_report(model: nn.Module, sum_over_ranks: "SumOverRanks") -> list[str]:
    """One line a layer: how evenly its tokens were spread over its experts. Every rank calls it.

    Counted since this process was started: a resumed run begins anew.
    """
    layers = layers_of(model)
    if not layers:
        return []
    loads_LE = torch.stack([layer.load for layer in layers.values()])
    sum_over_ranks(loads_LE)
    loads_LE += torch.stack([layer.total for layer in layers.values()])  # has been summed already
    lines: list[str] = []
    for path, load_E in zip(layers, loads_LE.double(), strict=True):
        name, mean = canonical(path).removeprefix("module."), float(load_E.mean())  # DDP puts itself in front
        idle = int((load_E == 0).sum())
        without = f"{idle} of {len(load_E)} got no token" if idle else "none went without tokens"
        if mean > 0:
            lines.append(f"experts: {name}: the busiest got {float(load_E.max()) / mean:.2f}x the mean, {without}")
    return lines
