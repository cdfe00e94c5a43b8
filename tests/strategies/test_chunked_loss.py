"""The output projection within the loss: the same steps, and no whole logits anywhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    MODEL,
    Case,
    Outcome,
    differences,
    outcome,
    reference,
)
from torch.utils._python_dispatch import TorchDispatchMode

from stepladder.strategies.base import Batch, Program, Run
from stepladder.strategies.chunked_loss import ChunkedLoss
from stepladder.strategies.ddp import DDP
from stepladder.strategies.facts import Facts
from stepladder.strategies.names import canonical_names
from stepladder.strategies.tp import TensorParallel

SMALL = MODEL | {"num_layers": 1}
ODD = {"chunked_loss": {"num_chunks": 3}}  # divides neither samples nor positions
TWICE = {"accumulation": {"num_microbatches": 2}}
ONCE = {"prefetch": 0, "reduce_every_microbatch": False, "reshard_after_forward": False}
COMPILE = {"compile": {"backend": "aot_eager"}}


def case(num_ranks: int, mesh: dict[str, int] | None = None, **strategies: Any) -> Case:
    return Case(num_ranks=num_ranks, mesh=mesh or {}, model=SMALL, strategies=ODD | strategies)


ALONE = {"alone": case(1), "two microbatches": case(1, **TWICE)}
ON_TWO = {
    "fsdp2": case(2, fsdp2={"prefetch": 0}),
    "fsdp2, reduced twice": case(2, fsdp2={"prefetch": 0}, **TWICE),
    "fsdp2, reduced once": case(2, fsdp2=ONCE, **TWICE),
    "ddp": case(2, ddp={}, **TWICE),
    "tp": case(2, {"tp": 2}, tp={}),
    "tp, whole positions": case(2, {"tp": 2}, tp={"sequence_parallel": False}),
    "tp compiled": case(2, {"tp": 2}, tp={}, **COMPILE),
    "fsdp2 compiled": case(2, fsdp2={"prefetch": 0}, **COMPILE),
}


def outcomes(cases: list[Case]) -> list[Outcome]:
    found: list[Outcome] = []
    for each in cases:
        torch._dynamo.reset()
        found.append(outcome(each))
    return found


@pytest.mark.parametrize(("num_ranks", "cases"), [(1, ALONE), (2, ON_TWO)], ids=["one process", "two"])
def test_chunks_take_the_steps_of_whole_logits(
    num_ranks: int, cases: dict[str, Case], run_ranks: Callable[..., Any]
) -> None:
    truth = reference(case(1))
    for name, found in zip(cases, run_ranks(outcomes, num_ranks, list(cases.values())), strict=True):
        loss, gradient = differences(found, truth)
        assert loss <= LOSS_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_no_tensor_is_as_large_as_the_logits(
    make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    vocab_size, tokens = 512, torch.arange(65)[None] % 32
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    largest: dict[str, int] = {}
    for name in ("whole", "chunked"):
        program = make_program(vocab_size=vocab_size, num_layers=1)
        names = canonical_names(program.model)
        if name == "chunked":
            program = ChunkedLoss(num_chunks=4).apply(program, make_run())
            assert canonical_names(program.model) == names
        with Largest() as seen:
            program.loss(program.model(batch.inputs), batch).backward()
        largest[name] = seen.elements
    assert largest["whole"] == 64 * vocab_size
    assert largest["chunked"] == 64 * vocab_size // 4  # a chunk; as many as the weight and its gradient here


def problems(chunked: ChunkedLoss, make_run: Callable[..., Run], **facts: Any) -> str:
    return "\n".join(chunked.check(make_run(facts=Facts(**{"head": "head", "sequence_length": 8} | facts))))


def test_settings_without_effect_are_refused(make_run: Callable[..., Run]) -> None:
    assert not problems(ChunkedLoss(), make_run)
    assert "one chunk holds all" in problems(ChunkedLoss(num_chunks=1), make_run)
    assert "8 tokens on each rank; use fewer" in problems(ChunkedLoss(num_chunks=9), make_run)
    assert "no output projection of its own" in problems(ChunkedLoss(), make_run, head="")


def test_what_cannot_work_beside_it_is_refused(make_run: Callable[..., Run]) -> None:
    run = make_run(active={"chunked_loss"})
    for strategy, refused in (
        (TensorParallel(loss_parallel=False), True),
        (TensorParallel(), False),
        (DDP(find_unused_parameters=True), True),
        (DDP(), False),
    ):
        assert (
            any(each.beside == "chunked_loss" and each.applies(strategy, run) for each in strategy.conflicts) is refused
        )
