"""Attention across ranks gives every rank its rows of what one process computes, forward and backward."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stepladder.strategies.context_parallel.balance import Balance, Block

METHODS = ("ring", "all_gather")
KINDS = ("head_tail", "none")
LENGTH = 24


def setting(dtype: torch.dtype, heads: int, groups: int) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """Queries, keys and values of a whole sequence; the output's gradient; output and gradients by one process."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, LENGTH, 8, dtype=dtype, requires_grad=True) for n in (heads, groups, groups)]
    grad = torch.randn(2, heads, LENGTH, 8, dtype=dtype)
    q, k, v = inputs
    k, v = (each.repeat_interleave(heads // groups, 1) for each in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out.backward(grad)
    gradients = [each.grad for each in inputs if each.grad is not None]
    return inputs, grad, [out.detach(), *gradients]


def across_ranks(
    inputs: list[torch.Tensor], grad: torch.Tensor, method: str, kind: Any, overlap: bool = True
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Output and gradients of this rank's positions, and these positions."""
    import torch.distributed as dist

    from stepladder.strategies.context_parallel.attention import ContextParallelAttention

    group = dist.group.WORLD
    assert group is not None
    own = Balance(kind=kind, num_ranks=dist.get_world_size()).positions(LENGTH, dist.get_rank())
    q, k, v = parts = [each.detach()[:, :, own].requires_grad_() for each in inputs]
    out = ContextParallelAttention(group, method, kind, overlap)(q, k, v)
    out.backward(grad[:, :, own])
    return [out.detach(), *(each.grad for each in parts if each.grad is not None)], own


def worst(found: list[torch.Tensor], own: torch.Tensor, truth: list[torch.Tensor]) -> float:
    """Largest relative difference from the same rows of the truth, on any rank."""
    import torch.distributed as dist

    assert len(found) == len(truth) == 4
    each = [float((a - b[:, :, own]).norm() / b[:, :, own].norm()) for a, b in zip(found, truth, strict=True)]
    largest = torch.tensor(max(each), dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def comparisons() -> dict[str, float]:
    """Differences from one process, by case."""
    from stepladder.strategies.context_parallel import attention
    from stepladder.strategies.context_parallel.kernels import MATH

    found: dict[str, float] = {}
    for dtype, groups, method, kind in itertools.product((torch.float32, torch.float64), (4, 2), METHODS, KINDS):
        inputs, grad, truth = setting(dtype, 4, groups)
        for kernel in ("fastest", "math"):
            with pytest.MonkeyPatch.context() as patch:
                if kernel == "math":
                    patch.setattr(attention, "kernel_for", lambda q: MATH)
                mine = across_ranks(inputs, grad, method, kind)
            found[f"{dtype} {groups} {method} {kind} {kernel}"] = worst(*mine, truth)
    return found


def repetitions() -> dict[str, bool]:
    """Whether another way of sending changes a single bit, on this rank."""
    inputs, grad, _ = setting(torch.float32, 4, 2)
    found: dict[str, bool] = {}
    for kind in KINDS:
        first, _ = across_ranks(inputs, grad, "ring", kind)
        for method, overlap in (("ring", True), ("ring", False), ("all_gather", True)):
            again, _ = across_ranks(inputs, grad, method, kind, overlap)
            found[f"{kind} {method} {overlap}"] = all(map(torch.equal, first, again))
    return found


def everything_visible(self: Balance, rank: int, source: int, length: int) -> Block:
    return Block(queries_from=0, keys_to=length, causal=False)


def later_keys_visible(self: Balance, rank: int, source: int, length: int) -> Block:
    """The mask within a rank only."""
    return Block(queries_from=0, keys_to=length, causal=source == rank)


def faults() -> dict[str, float]:
    """Differences from one process when the causal structure is lost."""
    inputs, grad, truth = setting(torch.float32, 4, 2)
    found: dict[str, float] = {}
    for fault in (everything_visible, later_keys_visible):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Balance, "block", fault)
            mine = across_ranks(inputs, grad, "ring", "head_tail")
        found[fault.__name__] = worst(*mine, truth)
    return found


def work() -> dict[str, list[Counter[str]]]:
    """What every rank really computes and sends, forward and backward, by method and balance."""
    import dataclasses

    import torch.distributed as dist

    from stepladder.strategies.context_parallel import attention, exchange
    from stepladder.strategies.context_parallel.kernels import kernel_for

    inputs, grad, _ = setting(torch.float32, 4, 2)
    done: Counter[str] = Counter()

    def counting(q: torch.Tensor) -> Any:
        kernel = kernel_for(q)

        def note(key: str, q: torch.Tensor, k: torch.Tensor, causal: bool) -> None:
            queries, keys = q.shape[2], k.shape[2]
            done[key] += queries * (queries + 1) // 2 if causal else queries * keys

        def forward(q: Any, k: Any, v: Any, causal: bool) -> Any:
            note("forward pairs", q, k, causal)
            return kernel.forward(q, k, v, causal)

        def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool) -> Any:
            note("backward pairs", q, k, causal)
            return kernel.backward(grad, q, k, v, out, lse, causal)

        return dataclasses.replace(kernel, forward=forward, backward=backward)

    real = exchange._swap

    def swap(group: Any, outgoing: Any, receiver: int, incoming: Any, sender: int) -> Any:
        done["sent numbers"] += 0 if outgoing is None else outgoing.numel()
        return real(group, outgoing, receiver, incoming, sender)

    found: dict[str, list[Counter[str]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "kernel_for", counting)
        patch.setattr(exchange, "_swap", swap)
        for kind in KINDS:
            done.clear()
            across_ranks(inputs, grad, "ring", kind)
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, dict(done))
            found[kind] = everyone
    return found


def everything() -> dict[str, Any]:
    return {"comparisons": comparisons(), "repetitions": repetitions(), "faults": faults(), "work": work()}


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, run_ranks: Any) -> dict[str, Any]:
    return run_ranks(everything, request.param) | {"num_ranks": request.param}


def test_each_rank_has_its_rows_of_the_whole(found: dict[str, Any]) -> None:
    assert len(found["comparisons"]) == 32
    for name, difference in found["comparisons"].items():
        assert difference < (1e-12 if "float64" in name else 1e-5), name


def test_a_lost_mask_is_noticed(found: dict[str, Any]) -> None:
    for name, difference in found["faults"].items():
        assert difference > 0.1, name


def test_no_way_of_sending_changes_a_bit(found: dict[str, Any]) -> None:
    assert found["repetitions"]
    assert all(found["repetitions"].values()), found["repetitions"]


def test_every_pair_is_computed_once_and_head_tail_shares_them_equally(found: dict[str, Any]) -> None:
    pairs = LENGTH * (LENGTH + 1) // 2
    for kind, shares_equally in (("head_tail", True), ("none", False)):
        for key in ("forward pairs", "backward pairs"):
            each = [done[key] for done in found["work"][kind]]
            assert sum(each) == pairs
            assert (len(set(each)) == 1) == shares_equally, (kind, each)


def test_the_ring_sends_unexpanded_heads_and_only_gradients_that_are_not_zero(found: dict[str, Any]) -> None:
    """Against the formula of the documentation; gradients of the second half of the keys are often none."""
    c = found["num_ranks"]
    one_pass = 2 * 2 * 2 * LENGTH * 8 * (c - 1) // c  # keys and values, 2 samples, 2 groups of width 8
    for rank, done in enumerate(found["work"]["head_tail"]):
        halves = rank  # keys of earlier ranks
        gradients = 2 * 2 * 2 * (LENGTH // c) * 8 * (c - 1 - halves) + 2 * 2 * 2 * (LENGTH // c // 2) * 8 * halves
        assert done["sent numbers"] == 2 * one_pass + gradients
        assert gradients <= one_pass
