"""Cross entropy without whole logits: of parts of the vocabulary, or of chunks of the tokens, or of both.

Shapes: N tokens, D model width, V this rank's part of the vocabulary. A mesh of None means that V is all of it.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

IGNORED = -100
"""The label of a position that does not count."""


def vocab_parallel_cross_entropy(logits_NV: Tensor, labels_N: Tensor, mesh: "DeviceMesh | None") -> Tensor:
    """Sum of the cross entropies of the valid tokens, from this rank's columns of the logits; float32, equal on all.

    `labels_N` are ids in the whole vocabulary, which the ranks of the one-dimensional `mesh` share evenly and in order.
    The ranks exchange three numbers a token. Source: Shoeybi et al. 2019, arXiv:1909.08053 (section 3).
    """
    return _CrossEntropy.apply(logits_NV, labels_N, mesh)  # pyright: ignore[reportReturnType]


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, mesh: "DeviceMesh | None", num_chunks: int
) -> Tensor:
    """The same for logits `hidden @ weight.T` that exist only a chunk of the tokens at a time.

    Gradients are computed in the forward pass, when a chunk's logits are at hand, so nothing is computed twice. With a
    mesh, each rank's gradient of `hidden_ND` is a part of the sum over ranks.
    Source: Hsu et al. 2024 (Liger), arXiv:2410.10989, section 3.
    """
    # Inside of a Function's forward, gradients are always off.
    learns = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _LinearCrossEntropy.apply(  # pyright: ignore[reportReturnType]
        hidden_ND, weight_VD, labels_N, mesh, num_chunks, learns
    )


class _CrossEntropy(Function):
    """Keeps the logits rather than their softmax, which is one exponential away and twice as wide as BF16."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor, mesh: "DeviceMesh | None") -> Tensor:
        losses_N, largest_N, sums_N = _cross_entropies(logits_NV, labels_N, mesh)
        ctx.save_for_backward(logits_NV, labels_N, largest_N, sums_N)
        ctx.mesh = mesh
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits_NV, labels_N, largest_N, sums_N = ctx.saved_tensors
        return _gradient(logits_NV, labels_N, largest_N, sums_N, ctx.mesh, seed), None, None


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        mesh: "DeviceMesh | None",
        num_chunks: int,
        learns: bool,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if learns else None
        # Many small terms are added up here, which BF16 would lose.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if learns else None
        one = torch.ones((), dtype=torch.float32, device=hidden_ND.device)
        first = 0
        for hidden_nD, labels_n in zip(hidden_ND.chunk(num_chunks), labels_N.chunk(num_chunks), strict=True):
            logits_nV = hidden_nD @ weight_VD.T
            losses_n, largest_n, sums_n = _cross_entropies(logits_nV, labels_n, mesh)
            total = total + losses_n.sum()
            if grad_hidden_ND is not None and grad_weight_VD is not None:
                grad_nV = _gradient(logits_nV, labels_n, largest_n, sums_n, mesh, one)
                grad_hidden_ND[first : first + len(labels_n)] = grad_nV @ weight_VD
                grad_weight_VD += grad_nV.T @ hidden_nD
            first += len(labels_n)
        if grad_hidden_ND is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
            ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # In place: a second backward over the same graph, which would be scaled twice, is refused by autograd itself.
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        scaled = grad_weight_VD.mul_(seed).to(ctx.weight_dtype)
        return grad_hidden_ND.mul_(seed), scaled, None, None, None, None


def _cross_entropies(logits_NV: Tensor, labels_N: Tensor, mesh: "DeviceMesh | None") -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of each token (0 where it does not count), its largest logit and its softmax's denominator.

    The latter two stay apart: the logarithm of their product would lose the digits that a large logit takes.
    """
    largest_N = logits_NV.amax(dim=-1).float()
    if mesh is not None:
        largest_N = collectives.wait_tensor(collectives.all_reduce(largest_N, "max", mesh))
    # A difference with a float32 column is float32, without a float32 copy of narrower logits before it.
    sums_N = (logits_NV - largest_N[:, None]).exp_().sum(dim=-1)
    mine_N, column_N = _columns(labels_N, logits_NV.shape[1], mesh)
    chosen_N = logits_NV.gather(1, column_N[:, None])[:, 0].float() * mine_N
    if mesh is not None:
        both = torch.stack([sums_N, chosen_N])
        sums_N, chosen_N = collectives.wait_tensor(collectives.all_reduce(both, "sum", mesh)).unbind()
    return (sums_N.log() - (chosen_N - largest_N)) * (labels_N != IGNORED), largest_N, sums_N


def _gradient(
    logits_NV: Tensor, labels_N: Tensor, largest_N: Tensor, sums_N: Tensor, mesh: "DeviceMesh | None", seed: Tensor
) -> Tensor:
    """`seed * (softmax - one)` of this rank's columns, in the logits' dtype; zero where a token does not count."""
    mine_N, column_N = _columns(labels_N, logits_NV.shape[1], mesh)
    grad_NV = (logits_NV - largest_N[:, None]).exp_().div_(sums_N[:, None])
    grad_NV.scatter_add_(1, column_N[:, None], -mine_N[:, None].to(grad_NV.dtype))
    return grad_NV.mul_((seed * (labels_N != IGNORED))[:, None]).to(logits_NV.dtype)


def _columns(labels_N: Tensor, width: int, mesh: "DeviceMesh | None") -> tuple[Tensor, Tensor]:
    """Which labels are among this rank's columns, and in which (any, if they are not)."""
    first = 0 if mesh is None else mesh.get_local_rank() * width
    column_N = labels_N - first
    mine_N = (column_N >= 0) & (column_N < width) & (labels_N != IGNORED)
    return mine_N, column_N.clamp(0, width - 1)
