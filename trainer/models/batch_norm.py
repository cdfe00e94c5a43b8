"""Batch norm whose statistics survive recomputation, sharding and several ranks.

[Note: statistics are taken after the step]
A layer notes the mean and variance of its batch; when the step is over, they are averaged over the ranks and folded
into the running ones. So a layer that activation checkpointing computes twice counts once, all ranks evaluate and
save the same numbers, and nothing is sent while the model computes. Of several microbatches the last one counts.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

if TYPE_CHECKING:
    from ...strategies.facts import SumOverRanks


class BatchNorm(nn.Module):
    """Normalises each channel over batch and pixels, then scales and shifts it."""

    running_mean: Tensor
    running_variance: Tensor
    batch_mean: Tensor
    batch_variance: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps
        for name in ("running", "batch"):
            kept = name == "running"
            self.register_buffer(f"{name}_mean", torch.zeros(channels), persistent=kept)
            self.register_buffer(f"{name}_variance", torch.ones(channels), persistent=kept)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        weight, bias = self.weight.float(), self.bias.float()
        if not self.training:
            return F.batch_norm(x_BCHW, self.running_mean, self.running_variance, weight, bias, False, 0.0, self.eps)
        # A momentum of one leaves in the two buffers what this batch has, however often it is computed.
        return F.batch_norm(x_BCHW, self.batch_mean, self.batch_variance, weight, bias, True, 1.0, self.eps)


class SyncBatchNorm(BatchNorm):
    """The same with the batches of all ranks taken together, which must be equally large."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, in the input's dtype; the arithmetic is float32."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x_BCHW)
        x = x_BCHW.float()
        num_ranks = dist.get_world_size()
        mean = _SumOverRanks.apply(x.mean((0, 2, 3))) / num_ranks  # pyright: ignore[reportOperatorIssue]
        centred = x - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().mean((0, 2, 3))) / num_ranks  # pyright: ignore[reportOperatorIssue]
        with torch.no_grad():
            count = x.numel() // x.shape[1] * num_ranks
            self.batch_mean.copy_(mean)
            self.batch_variance.copy_(variance * count / max(count - 1, 1))
        scale = self.weight.float() * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias.float()[:, None, None]).to(x_BCHW.dtype)


class _SumOverRanks(Function):
    """Sum over all ranks; each rank's loss depends on it, so the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _sum(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _sum(gradient)


def _sum(part: Tensor) -> Tensor:
    world: Any = dist.group.WORLD
    return collectives.wait_tensor(collectives.all_reduce(part.contiguous(), "sum", world))


def take_statistics(model: nn.Module, sum_over_ranks: "SumOverRanks", momentum: float) -> None:
    """Fold the ranks' mean batch statistics into the running ones, with one exchange for all layers."""
    layers = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not layers:
        return
    seen = torch.cat([each for layer in layers for each in (layer.batch_mean, layer.batch_variance)])
    told = torch.cat((seen, seen.new_ones(1)))  # the last number becomes that of the ranks
    sum_over_ranks(told)
    means = (told[:-1] / told[-1]).split([len(layer.batch_mean) for layer in layers for _ in range(2)])
    for layer, mean, variance in zip(layers, means[::2], means[1::2], strict=True):
        layer.running_mean.lerp_(mean, momentum)
        layer.running_variance.lerp_(variance, momentum)
