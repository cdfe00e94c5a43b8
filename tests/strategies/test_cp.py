"""Context parallel: what it refuses, what it cuts, and that a shared sequence takes the steps of one process."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import (
    BF16_TOLERANCE,
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    Case,
    Outcome,
    differences,
    differences_of,
    outcome,
)
from parity import reference as truth_of

from stepladder.strategies import Strategies
from stepladder.strategies.base import Batch, Facts, Program, Run
from stepladder.strategies.check import problems
from stepladder.strategies.context_parallel.balance import Balance
from stepladder.strategies.cp import ContextParallel, _cutter
from stepladder.strategies.mesh import Axis

CP2 = {"cp": 2}


def answers(cp: ContextParallel, degree: int, length: int, attentions: tuple[str, ...] = ("a",)) -> list[str]:
    """What `check` says of a sequence length and a degree."""
    facts = Facts(attentions=attentions, sequence_length=length)
    run: Any = Run(
        device_type="cpu",
        degrees=dict.fromkeys(Axis, 1) | {Axis.CP: degree},
        facts=facts,
        num_steps=1,
        tokens_per_step=1,
        seed=0,
        active=frozenset({"cp"}),
    )
    return [each for each in problems(Strategies(cp=cp), run) if each.startswith("strategies.cp")]


def test_a_sequence_that_cannot_be_cut_is_refused_with_the_nearest_that_can() -> None:
    assert answers(ContextParallel(), 2, 32) == []
    assert answers(ContextParallel(), 2, 30) == [
        "strategies.cp.balance = 'head_tail': cuts sequences into 4 equal chunks with mesh.cp = 2, but "
        "batch.sequence_length = 30; use 28 or 32"
    ]
    assert answers(ContextParallel(balance="none"), 2, 30) == []
    assert "use 30 or 33" in answers(ContextParallel(balance="none"), 3, 31)[0]
    assert answers(ContextParallel(), 4, 3)[0].endswith("use 8")


def test_what_has_no_effect_or_no_object_is_refused() -> None:
    assert "never overlaps" in answers(ContextParallel(method="all_gather", overlap=False), 2, 32)[0]
    assert "names no attention" in answers(ContextParallel(), 2, 32, attentions=())[0]
    assert "has no effect with mesh.cp = 1" in answers(ContextParallel(), 1, 32)[0]


@pytest.mark.parametrize("kind", ["head_tail", "none"])
def test_inputs_labels_and_positions_are_cut_alike(kind: Any) -> None:
    """Each position once over the ranks, beside the label that belongs to it."""
    inputs = torch.arange(24).view(2, 12)
    batch = Batch(inputs, 100 + inputs)
    balance = Balance(kind=kind, num_ranks=3)

    parts = [_cutter(balance, rank)(batch) for rank in range(3)]

    for part in parts:
        assert part.positions is not None
        assert torch.equal(part.labels, 100 + part.inputs)
        assert torch.equal(part.inputs, inputs[:, part.positions])
    assert sorted(torch.cat([part.inputs for part in parts], 1).flatten().tolist()) == list(range(24))


def test_positions_of_a_batch_are_kept_and_the_index_is_made_once() -> None:
    cut = _cutter(Balance(kind="head_tail", num_ranks=2), 1)
    tokens = torch.zeros(1, 8, dtype=torch.int64)

    first, second = cut(Batch(tokens, tokens)), cut(Batch(tokens, tokens))
    moved = cut(Batch(tokens, tokens, torch.arange(8) + 50))

    assert first.positions is second.positions
    assert moved.positions is not None
    assert moved.positions.tolist() == [52, 53, 54, 55]


CASES: dict[str, Case] = {
    "ddp": Case(num_ranks=2, mesh=CP2, strategies={"cp": {}, "ddp": {}}),
    "fsdp2": Case(num_ranks=2, mesh=CP2, strategies={"cp": {}, "fsdp2": {}}),
    "all-gather": Case(num_ranks=2, mesh=CP2, strategies={"cp": {"method": "all_gather"}, "ddp": {}}),
    "contiguous": Case(num_ranks=2, mesh=CP2, strategies={"cp": {"balance": "none"}, "fsdp2": {}}),
    "accumulation": Case(
        num_ranks=2, mesh=CP2, strategies={"cp": {}, "fsdp2": {}, "accumulation": {"num_microbatches": 2}}
    ),
    "ac": Case(num_ranks=2, mesh=CP2, strategies={"cp": {}, "fsdp2": {}, "ac": {}}),
    "selective ac": Case(num_ranks=2, mesh=CP2, strategies={"cp": {}, "ddp": {}, "ac": {"mode": "selective"}}),
    "compiled": Case(
        num_ranks=2,
        mesh=CP2,
        strategies={"cp": {}, "fsdp2": {}, "ac": {}, "compile": {"fullgraph": True, "backend": "aot_eager"}},
    ),
    "dp_shard": Case(num_ranks=4, mesh={"cp": 2, "dp_shard": 2}, strategies={"cp": {}, "fsdp2": {}}),
}
HALF = Case(num_ranks=2, mesh=CP2, strategies={"cp": {}, "fsdp2": {"param_dtype": "bf16"}})


def positions_from_zero(program: Program) -> Program:
    """Every rank takes its part of the sequence for the beginning."""
    inner = program.shard_batch

    def shard(batch: Batch) -> Batch:
        part = inner(batch)
        return part._replace(positions=torch.arange(part.inputs.shape[1]))

    return replace(program, shard_batch=shard)


def labels_from_zero(program: Program) -> Program:
    """Labels in one piece, beside inputs from both ends."""
    inner = program.shard_batch

    def shard(batch: Batch) -> Batch:
        part, rank = inner(batch), torch.distributed.get_rank()
        return part._replace(labels=batch.labels.chunk(2, 1)[rank])

    return replace(program, shard_batch=shard)


def scaled_by_cp(program: Program) -> Program:
    return replace(program, gradient_divisor=2 * program.gradient_divisor)


def attention_to_own_positions(program: Program) -> Program:
    """The model's own attention put back: nothing travels."""
    from stepladder.trainer.models.decoder import CausalAttention

    for name in program.facts.attentions:
        program.model.set_submodule(name, CausalAttention())
    return program


FAULTS = (positions_from_zero, labels_from_zero, scaled_by_cp, attention_to_own_positions)


def counted(case: Case) -> tuple[Outcome, int]:
    """What comes out, and how often keys and values, or gradients, leave this rank in ten steps."""
    from stepladder.strategies.context_parallel import exchange

    real, sent = exchange._swap, Counter[str]()

    def swap(group: Any, outgoing: Any, receiver: int, incoming: Any, sender: int) -> Any:
        sent["messages"] += outgoing is not None
        return real(group, outgoing, receiver, incoming, sender)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "_swap", swap)
        torch._dynamo.reset()
        return outcome(case), sent["messages"]


def on_two_ranks() -> dict[str, Any]:
    case = CASES["fsdp2"]
    truth = truth_of(case)
    found = {name: counted(each) for name, each in CASES.items() if each.num_ranks == 2}
    return {
        "parity": {name: differences(result, truth) for name, (result, _) in found.items()},
        "messages": {name: num_messages for name, (_, num_messages) in found.items()},
        "half": differences(outcome(HALF), truth),
        "faults": {fault.__name__: differences(outcome(case, tamper=fault), truth) for fault in FAULTS},
    }


def on_four_ranks() -> dict[str, Any]:
    names = [name for name, case in CASES.items() if case.num_ranks == 4]
    return dict(zip(names, differences_of([CASES[name] for name in names]), strict=True))


@pytest.fixture(scope="module")
def two(run_ranks: Callable[..., Any]) -> dict[str, Any]:
    return run_ranks(on_two_ranks, 2)


def agree(found: dict[str, Any]) -> None:
    for name, (loss, gradient) in found.items():
        assert loss <= LOSS_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


def test_two_ranks_that_share_sequences_take_the_steps_of_one_process(two: dict[str, Any]) -> None:
    assert len(two["parity"]) == 8
    agree(two["parity"])


@pytest.mark.slow
def test_four_ranks_do_so_too(run_ranks: Callable[..., Any]) -> None:
    found = run_ranks(on_four_ranks, 4)

    assert len(found) == 1
    agree(found)


def test_bf16_stays_close(two: dict[str, Any]) -> None:
    loss, gradient = two["half"]
    assert loss <= BF16_TOLERANCE
    assert GRADIENT_TOLERANCE < gradient <= 2 * BF16_TOLERANCE


@pytest.mark.parametrize("fault", [each.__name__ for each in FAULTS])
def test_the_comparison_catches_a_fault(fault: str, two: dict[str, Any]) -> None:
    loss, gradient = two["faults"][fault]
    assert gradient > 100 * GRADIENT_TOLERANCE
    if fault != "scaled_by_cp":  # clipping and AdamW undo a common factor, so that the losses cannot tell
        assert loss > 10 * LOSS_TOLERANCE


def test_only_full_recomputation_sends_the_keys_again(two: dict[str, Any]) -> None:
    """A layer and step on two ranks: keys once forward, once backward, one gradient home."""
    attentions = 2 * 10
    assert two["messages"]["ddp"] == 3 * attentions
    assert two["messages"]["ac"] == 4 * attentions
    assert two["messages"]["selective ac"] == 3 * attentions
    assert two["messages"]["compiled"] == 4 * attentions
    assert two["messages"]["all-gather"] == 0
