"""Causal attention whose keys and values lie on several ranks, as an operator that torch.compile leaves whole.

[Note: one operator]
Forward and backward are custom operators: `torch.compile` puts each into its graph as one node instead of breaking the
graph, and selective checkpointing can keep the forward's results by name, so that no key travels again to recompute
them. A process group cannot be an operator's argument, its name can.

Shapes: B batch, H query heads, G key and value heads, T positions of this rank, K head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, distributed_c10d

from .balance import Balance
from .exchange import EXCHANGES, Exchange, Part
from .kernels import kernel_for


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """The operator's settings, looked up."""

    group: ProcessGroup
    balance: Balance
    exchange: Exchange

    @staticmethod
    def of(group: str, method: str, balance: Any) -> "_Setting":
        found: ProcessGroup = distributed_c10d._resolve_process_group(group)  # pyright: ignore
        return _Setting(group=found, balance=Balance(kind=balance, num_ranks=found.size()), exchange=EXCHANGES[method])


@torch.library.custom_op("context_parallel::attention", mutates_args=())
def attention_across_ranks(
    q: Tensor, k: Tensor, v: Tensor, group: str, method: str, balance: str, overlap: bool
) -> tuple[Tensor, Tensor]:
    """Output [B, H, T, K] and log-sum-exp [B, H, T] of this rank's queries against the keys of all ranks of `group`."""
    setting = _Setting.of(group, method, balance)
    kernel, length, rank = kernel_for(q), q.shape[2], setting.group.rank()
    out: Tensor | None = None
    lse: Tensor | None = None
    own = torch.stack((k, v))
    for source, (keys, values) in setting.exchange.keys_and_values(own, setting.group, overlap):
        block = setting.balance.block(rank, source, length)
        if block is None:
            continue
        part, part_lse = kernel.forward(
            q[:, :, block.queries_from :], keys[:, :, : block.keys_to], values[:, :, : block.keys_to], block.causal
        )
        if out is None or lse is None:  # the own keys come first, of which every query sees one
            out, lse = part.to(torch.promote_types(q.dtype, torch.float32)), part_lse.contiguous()
        else:
            _merge(out[:, :, block.queries_from :], lse[:, :, block.queries_from :], part, part_lse)
    assert out is not None
    assert lse is not None
    return _heads_inside(out.to(q.dtype)), lse


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Take more keys into account, in place: results are weighted by their share of the whole softmax."""
    whole = torch.logaddexp(lse, part_lse)
    out.mul_((lse - whole).exp_()[..., None]).add_(part * (part_lse - whole).exp_()[..., None])
    lse.copy_(whole)


def _heads_inside(x_BHTK: Tensor) -> Tensor:
    """The same, stored [B, T, H, K]: what fused kernels return and the output projection reads without a copy."""
    return x_BHTK.transpose(1, 2).contiguous().transpose(1, 2)


@attention_across_ranks.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, group: str, method: str, balance: str, overlap: bool) -> tuple[Tensor, Tensor]:
    b, h, t, width = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(b, t, h, width).transpose(1, 2), q.new_empty((b, h, t), dtype=wide)


@torch.library.custom_op("context_parallel::attention_backward", mutates_args=())
def attention_across_ranks_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    group: str,
    method: str,
    balance: str,
    overlap: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries [B, H, T, K], and of the keys and values [2, B, G, T, K]."""
    setting = _Setting.of(group, method, balance)
    kernel, length, rank = kernel_for(q), q.shape[2], setting.group.rank()
    grad = _heads_inside(grad)
    grad_q = torch.zeros_like(q, dtype=torch.promote_types(q.dtype, torch.float32))

    own = torch.stack((k, v))

    def parts() -> Iterator[Part]:
        """Gradients of one rank's keys and values after the other, as their turn comes."""
        for source, (keys, values) in setting.exchange.keys_and_values(own, setting.group, overlap):
            block = setting.balance.block(rank, source, length)
            if block is None:
                yield source, None
                continue
            rows = slice(block.queries_from, None)
            queries_grad, *rest = kernel.backward(
                grad[:, :, rows],
                q[:, :, rows],
                keys[:, :, : block.keys_to],
                values[:, :, : block.keys_to],
                out[:, :, rows],
                lse[:, :, rows],
                block.causal,
            )
            grad_q[:, :, rows] += queries_grad
            yield source, torch.stack(rest)

    def num_keys(sender: int) -> int:
        block = setting.balance.block(sender, rank, length)
        return block.keys_to if block else 0

    total = setting.exchange.gradients(parts(), num_keys, own, setting.group, overlap)
    return grad_q.to(q.dtype).contiguous(), total.to(k.dtype)


@attention_across_ranks_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    group: str,
    method: str,
    balance: str,
    overlap: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty((2, *k.shape))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Any, ...]:
    grad_q, grad_kv = attention_across_ranks_backward(grad, *ctx.saved_tensors, *ctx.settings)
    grad_k, grad_v = grad_kv.unbind(0)
    return grad_q, grad_k, grad_v, None, None, None, None


attention_across_ranks.register_autograd(_differentiate, setup_context=_keep)


class ContextParallelAttention(nn.Module):
    """Causal attention of this rank's queries to the keys of the ranks along cp; without parameters."""

    def __init__(self, group: ProcessGroup, method: str, balance: str, overlap: bool) -> None:
        super().__init__()
        self.group_name = str(group.group_name)
        self.method, self.balance, self.overlap = method, balance, overlap

    def forward(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        """[B, H, T, K], with G key and value heads, each for H/G query heads -> [B, H, T, K]."""
        out, _ = attention_across_ranks(
            q_BHTK, k_BGTK, v_BGTK, self.group_name, self.method, self.balance, self.overlap
        )
        return out
