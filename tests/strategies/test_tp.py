"""Tensor parallelism: what is sliced, that it takes the steps of one process, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
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

from stepladder.launch.build import build_program
from stepladder.launch.ranks import Ranks
from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.base import Run
from stepladder.strategies.facts import Facts, Slicing
from stepladder.strategies.mesh import Axis
from stepladder.strategies.tp import TensorParallel
from stepladder.trainer.models.config import DecoderConfig

SMALL = MODEL | {"num_layers": 1}
ALONG_TP = {"tp": 2}
COMPILE = {"compile": {"backend": "aot_eager"}}
TWICE = {"accumulation": {"num_microbatches": 2}}


def case(num_ranks: int, mesh: dict[str, int], **strategies: Any) -> Case:
    return Case(num_ranks=num_ranks, mesh=mesh, model=SMALL, strategies=strategies)


ON_TWO = {
    "default": case(2, ALONG_TP, tp={}),
    "whole positions": case(2, ALONG_TP, tp={"sequence_parallel": False}),
    "whole logits": case(2, ALONG_TP, tp={"loss_parallel": False}),
    "whole both": case(2, ALONG_TP, tp={"sequence_parallel": False, "loss_parallel": False}),
    "two microbatches": case(2, ALONG_TP, tp={}, **TWICE),
    "checkpointed": case(2, ALONG_TP, tp={}, ac={}),
    "compiled": case(2, ALONG_TP, tp={}, ac={"mode": "selective"}, **COMPILE),
}
ON_FOUR = {
    "fsdp2": case(4, {"tp": 2, "dp_shard": 2}, tp={}, fsdp2={"prefetch": 0}, **TWICE),
    "hsdp": case(4, {"tp": 2, "dp_replicate": 2, "dp_shard": 1}, tp={}, fsdp2={"prefetch": 0}),
}


def layout_of(each: Case) -> dict[str, Any]:
    """How the parameters lie on the mesh, and what flows between the modules."""
    from torch.distributed.tensor import DTensor

    rank = torch.distributed.get_rank()
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=each.num_ranks)
    program = build_program(each.plan(), ranks, torch.device("cpu"))
    seen: dict[str, Any] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, (type(output) is torch.Tensor, *output.shape))

    for name in ("embedding", "layers.0.attention_norm", "layers.0", "norm"):
        program.model.get_submodule(name).register_forward_hook(watch(name))
    logits = program.model(torch.arange(2 * 32).view(2, 32))
    return {
        "placements": {
            name: str(p.placements[-1]) if isinstance(p, DTensor) else "none"
            for name, p in program.model.named_parameters()
        },
        "seen": seen | {"logits": (type(logits) is torch.Tensor, *logits.shape)},
    }


def partial_left(each: Case) -> tuple[int, int]:
    """Gradients that are parts of a sum, before and after what follows the backward pass."""
    from stepladder.profiling.record import no_span
    from stepladder.strategies.base import Batch

    rank = torch.distributed.get_rank()
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=each.num_ranks)
    program = build_program(each.plan(), ranks, torch.device("cpu"))
    tokens = torch.arange(2 * 33).view(2, 33) % 64
    program.forward_backward(program, [Batch(tokens[:, :-1], tokens[:, 1:])], 1.0, no_span)

    def count() -> int:
        gradients: list[Any] = [p.grad for p in program.model.parameters()]
        return sum(any(p.is_partial() for p in gradient.placements) for gradient in gradients)

    before = count()
    for _ in range(2):  # done twice, it does nothing more
        for finish in program.after_backward:
            finish()
    return before, count()


def unsettled(program: Any) -> Any:
    """A fault: each rank keeps its own part of the norms' gradients."""

    def keep_own() -> None:
        from torch.distributed.tensor import DTensor

        for p in program.model.parameters():
            if any(each.is_partial() for each in p.grad.placements):
                p.grad = DTensor.from_local(p.grad.to_local(), p.device_mesh, p.placements)

    return replace(program, after_backward=(keep_own,))


def on_two_ranks() -> dict[str, Any]:
    return {
        "outcomes": [fresh(each) for each in ON_TWO.values()],
        "layout": layout_of(ON_TWO["default"]),
        "layout of whole ones": layout_of(ON_TWO["whole both"]),
        "partial": partial_left(ON_TWO["default"]),
        "fault": outcome(ON_TWO["default"], tamper=unsettled),
    }


def on_four_ranks() -> dict[str, Any]:
    return {"outcomes": [fresh(each) for each in ON_FOUR.values()], "layout": layout_of(ON_FOUR["hsdp"])}


def fresh(each: Case) -> Outcome:
    torch._dynamo.reset()
    return outcome(each)


@pytest.fixture(scope="module")
def two(run_ranks: Callable[..., Any]) -> dict[str, Any]:
    return run_ranks(on_two_ranks, 2)


@pytest.fixture(scope="module")
def four(run_ranks: Callable[..., Any]) -> dict[str, Any]:
    return run_ranks(on_four_ranks, 4)


@pytest.mark.parametrize("ranks", ["two", pytest.param("four", marks=pytest.mark.slow)])
def test_slices_take_the_steps_of_one_process(ranks: str, request: pytest.FixtureRequest) -> None:
    cases = ON_TWO if ranks == "two" else ON_FOUR
    for (name, each), found in zip(cases.items(), request.getfixturevalue(ranks)["outcomes"], strict=True):
        truth = reference(each)
        loss, gradient = differences(found, truth)
        assert loss <= LOSS_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


def test_the_comparison_catches_gradients_that_nobody_summed(two: dict[str, Any]) -> None:
    loss, gradient = differences(two["fault"], reference(ON_TWO["default"]))
    assert loss > 10 * LOSS_TOLERANCE
    assert gradient > 100 * GRADIENT_TOLERANCE


def test_every_parameter_lies_on_the_axis(two: dict[str, Any]) -> None:
    placements = two["layout"]["placements"]
    assert set(placements) == {name for name, _ in DecoderConfig(**SMALL).build().named_parameters()}
    sliced = {name: placement for name, placement in placements.items() if not name.endswith("norm.weight")}
    rows = {"layers.0.attention.out.weight", "layers.0.ffn.down.weight"}
    assert {name for name, placement in sliced.items() if placement == "S(1)"} == rows
    assert {placement for name, placement in sliced.items() if name not in rows} == {"S(0)"}
    assert {placements[name] for name in placements.keys() - sliced.keys()} == {"R"}


@pytest.mark.slow
def test_on_a_mesh_of_two_axes_they_do_too(four: dict[str, Any]) -> None:
    assert "none" not in four["layout"]["placements"].values()


def test_plain_tensors_flow_between_modules_with_a_part_of_the_positions_each(two: dict[str, Any]) -> None:
    part, whole = (True, 2, 16, 32), (True, 2, 32, 32)
    names = ("embedding", "layers.0.attention_norm", "layers.0", "norm")
    assert two["layout"]["seen"] == dict.fromkeys(names, part) | {"logits": (True, 2, 32, 32)}
    assert two["layout of whole ones"]["seen"] == dict.fromkeys(names, whole) | {"logits": (True, 2, 32, 64)}


def test_gradients_of_whole_parameters_are_summed_once_a_step(two: dict[str, Any]) -> None:
    assert two["partial"] == (3, 0)  # two norms in the block and the last one


def problems(tp: TensorParallel, make_run: Callable[..., Run], *, cp: int = 1, tp_degree: int = 4, **facts: Any) -> str:
    degrees = dict.fromkeys(Axis, 1) | {Axis.TP: tp_degree, Axis.CP: cp}
    known = {"slicing": {"head": Slicing.HEAD}, "sequence_length": 32} | facts
    run = make_run(degrees=degrees, facts=Facts(**known), active={"tp"})
    refused = [refusal.sentence() for refusal in tp.conflicts if refusal.applies(tp, run)]
    return "\n".join([*refused, *tp.check(run)])


def test_sizes_that_cannot_be_divided_are_named_with_degrees_that_work(make_run: Callable[..., Run]) -> None:
    sizes = {"model.decoder.num_heads": 6, "model.decoder.ffn_dim": 24}
    found = problems(TensorParallel(), make_run, sliced_sizes=sizes)
    assert found == "model.decoder.num_heads = 6: not divisible by mesh.tp = 4; use mesh.tp = 3 or 6"
    assert problems(TensorParallel(), make_run, sliced_sizes=sizes, tp_degree=6).count("batch.sequence_length") == 1


def test_positions_must_divide_only_if_they_are_split(make_run: Callable[..., Run]) -> None:
    found = problems(TensorParallel(), make_run, sequence_length=36, cp=2)
    assert "batch.sequence_length = 36" in found
    assert "use 32 or 40, or sequence_parallel = false" in found
    assert not problems(TensorParallel(sequence_parallel=False), make_run, sequence_length=36, cp=2)


def test_models_without_a_plan_and_tied_ones_are_refused(make_run: Callable[..., Run]) -> None:
    assert "how to slice it" in problems(TensorParallel(), make_run, slicing={})
    assert "untie" in problems(TensorParallel(), make_run, tied=True)


def test_async_tp_says_all_that_it_needs(make_run: Callable[..., Run]) -> None:
    found = problems(TensorParallel(async_tp=True, sequence_parallel=False), make_run)
    assert "device cpu" in found
    assert "has no effect with sequence_parallel = false" in found
    assert "add strategies.compile" in found


def test_recomputing_compiled_collectives_is_refused(make_run: Callable[..., Run]) -> None:
    run = make_run(degrees=dict.fromkeys(Axis, 1) | {Axis.TP: 2}, active={"ac", "compile", "tp"})

    def refused(run: Run, **keys: Any) -> bool:
        ac = ActivationCheckpointing(**keys)
        return any(each.beside == "mesh.tp" and each.applies(ac, run) for each in ac.conflicts)

    assert refused(run)
    assert refused(run, mode="selective", save=("aten.mm",))
    assert not refused(run, mode="selective")
    assert not refused(replace(run, active=frozenset({"ac", "tp"})))
