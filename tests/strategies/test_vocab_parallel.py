"""Cross entropy of parts of the vocabulary, and of chunks of the tokens, against the plain one on whole logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stepladder.strategies.vocab_parallel import linear_cross_entropy, vocab_parallel_cross_entropy

N, D, V = 40, 8, 24
RANKS = 2
TOLERANCE = 1e-6


def labels() -> torch.Tensor:
    """Ids at every edge of a rank's part, positions that do not count, and then whatever comes."""
    made = torch.arange(N) * 7 % V
    made[:6] = torch.tensor([0, V // 2 - 1, V // 2, V - 1, -100, -100])
    return made


LABELS = {"edges": labels(), "none counts": torch.full((N,), -100), "one counts": torch.full((N,), -100)}
LABELS["one counts"][3] = V - 1


def operands(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and weights whose logits are of the size of `scale`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=generator) * scale, torch.randn(V, D, generator=generator)


SCALES = {"small": 0.1, "usual": 1.0, "huge": 30.0}
"""A softmax that does not subtract the largest logit overflows with the last."""


class Widths(TorchDispatchMode):
    """Remembers the largest number of elements, and the last dimensions, of all tensors that operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.most_elements = 0
        self.last_dims: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor) and each.ndim:
                self.most_elements = max(self.most_elements, each.numel())
                self.last_dims.add(each.shape[-1])
        return out


def apart(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2 distance; absolute where the truth is zero."""
    return float((found - truth).norm() / (truth.norm() if truth.norm() > 0 else 1.0))


def truth_of(hidden: torch.Tensor, weight: torch.Tensor, which: str, seed: float) -> dict[str, torch.Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = hidden @ weight.T
    logits.retain_grad()
    loss = F.cross_entropy(logits.float(), LABELS[which], ignore_index=-100, reduction="sum")
    loss.backward(torch.tensor(seed))
    assert logits.grad is not None
    assert hidden.grad is not None
    assert weight.grad is not None
    return {"loss": loss.detach(), "logits": logits.grad, "hidden": hidden.grad, "weight": weight.grad}


def sliced(compiled: bool) -> dict[str, float]:
    """Largest distances from the truth on two ranks, over all labels and scales, and how large tensors became."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (RANKS,))
    mine = slice(mesh.get_rank() * V // RANKS, (mesh.get_rank() + 1) * V // RANKS)
    cross_entropy: Any = vocab_parallel_cross_entropy
    linear: Any = linear_cross_entropy
    if compiled:
        cross_entropy = torch.compile(cross_entropy, backend="aot_eager")
        linear = torch.compile(linear, backend="aot_eager")
    found: dict[str, float] = {}

    def note(what: str, value: float) -> None:
        found[what] = max(found.get(what, 0.0), value)

    scales = [SCALES["usual"]] if compiled else list(SCALES.values())
    for which, scale in ((which, scale) for which in LABELS for scale in scales):
        hidden, weight = operands(scale)
        truth = truth_of(hidden, weight, which, 0.5)
        logits = (hidden @ weight[mine].T).requires_grad_()
        with Widths() as seen:
            loss = cross_entropy(logits, LABELS[which], mesh)
            loss.backward(torch.tensor(0.5))
        assert logits.grad is not None
        note("loss", apart(loss.detach(), truth["loss"]))
        note("gradient of the logits", apart(logits.grad, truth["logits"][:, mine]))
        note("elements", seen.most_elements)
        note("of whole width", float(V in seen.last_dims))

        hidden, part = hidden.requires_grad_(), weight[mine].clone().requires_grad_()
        loss = linear(hidden, part, LABELS[which], mesh, 4)
        loss.backward(torch.tensor(0.5))
        assert hidden.grad is not None
        assert part.grad is not None
        whole = hidden.grad.clone()
        torch.distributed.all_reduce(whole)
        note("loss of chunks", apart(loss.detach(), truth["loss"]))
        note("gradient of the hidden states", apart(whole, truth["hidden"]))
        note("gradient of the weight", apart(part.grad, truth["weight"][mine]))
    return found


def both_ways() -> tuple[dict[str, float], dict[str, float]]:
    return sliced(compiled=False), sliced(compiled=True)


def test_slices_of_the_vocabulary_give_the_loss_and_gradients_of_the_whole(run_ranks: Callable[..., Any]) -> None:
    for found in run_ranks(both_ways, RANKS):
        assert found.pop("elements") == N * V // RANKS
        assert not found.pop("of whole width")
        assert len(found) == 5
        for what, distance in found.items():
            assert distance <= TOLERANCE, f"{what}: {distance:.2e}"


@pytest.mark.parametrize("which", LABELS)
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("num_chunks", [1, 3, N])
def test_chunks_of_the_tokens_give_the_loss_and_gradients_of_the_whole(
    which: str, scale: float, num_chunks: int
) -> None:
    hidden, weight = operands(scale)
    truth = truth_of(hidden, weight, which, 0.5)
    hidden.requires_grad_()
    weight.requires_grad_()

    with Widths() as seen:
        loss = linear_cross_entropy(hidden, weight, LABELS[which], None, num_chunks)
        loss.backward(torch.tensor(0.5))

    assert hidden.grad is not None
    assert weight.grad is not None
    assert apart(loss.detach(), truth["loss"]) <= TOLERANCE
    assert apart(hidden.grad, truth["hidden"]) <= TOLERANCE
    assert apart(weight.grad, truth["weight"]) <= TOLERANCE
    largest_chunk = -(-N // num_chunks)
    assert seen.most_elements == max(largest_chunk * V, N * D)  # with one chunk, N x V: the count can see them


def test_whole_logits_would_have_been_seen() -> None:
    """Negative control of the two above."""
    with Widths() as seen:
        F.cross_entropy(operands(1.0)[0] @ operands(1.0)[1].T, LABELS["edges"])
    assert seen.most_elements == N * V
    assert V in seen.last_dims


def test_without_gradients_none_are_computed() -> None:
    hidden, weight = operands(1.0)
    with Widths() as seen:
        loss = linear_cross_entropy(hidden, weight.requires_grad_(), LABELS["edges"], None, N)
    with torch.no_grad(), Widths() as idle:
        evaluated = linear_cross_entropy(hidden, weight, LABELS["edges"], None, N)

    assert torch.equal(loss.detach(), evaluated)
    assert seen.most_elements == N * D
    assert idle.most_elements == V * D  # the transposed view of the weight


def test_narrow_logits_are_summed_in_float32() -> None:
    hidden, weight = (each.bfloat16().requires_grad_() for each in operands(1.0))
    truth = truth_of(hidden.detach().float(), weight.detach().float(), "edges", 1.0)

    linear_cross_entropy(hidden, weight, LABELS["edges"], None, 4).backward()
    logits = (hidden.detach() @ weight.detach().T).requires_grad_()
    loss = vocab_parallel_cross_entropy(logits, LABELS["edges"], None)
    loss.backward()

    assert hidden.grad is not None
    assert weight.grad is not None
    assert logits.grad is not None
    assert loss.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == logits.grad.dtype == torch.bfloat16
    exact = F.cross_entropy(logits.detach().float(), LABELS["edges"], ignore_index=-100, reduction="sum")
    assert apart(loss.detach(), exact) <= TOLERANCE
    assert 1e-4 < apart(weight.grad.float(), truth["weight"]) < 2e-2
    assert 1e-4 < apart(hidden.grad.float(), truth["hidden"]) < 2e-2


def test_a_second_backward_is_refused_rather_than_scaled_twice() -> None:
    hidden, weight = operands(1.0)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, LABELS["edges"], None, 2)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
