"""Experts on several ranks take the steps of experts on one; what each rank holds, and what is refused."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MODEL, Case, Outcome, differences, outcome, reference
from torch import Tensor

from stepladder.launch.errors import UsageError
from stepladder.strategies.base import Program
from stepladder.strategies.names import canonical

NUM_EXPERTS = 4
SPREAD = {"ep": {}, "fsdp2": {"prefetch": 1}}
ACCUMULATED = {"accumulation": {"num_microbatches": 2}}
SELECTIVE = {"ac": {"mode": "selective"}}
ZERO_2 = {"fsdp2": {"reduce_every_microbatch": False, "reshard_after_forward": False, "prefetch": 1}}
PLAIN = {"balance": "none", "normalise_weights": False}
ONE_OF_TWO = {"num_experts": 2, "top_k": 1, "normalise_weights": False}


def case(strategies: dict[str, Any], keys: dict[str, Any] | None = None, **mesh: int) -> Case:
    """Experts with a bias that moves fast enough to change choices within ten steps."""
    table: dict[str, Any] = {"num_experts": NUM_EXPERTS, "top_k": 2, "ffn_dim": 16} | (keys or {"bias_rate": 0.01})
    num_ranks = int(torch.tensor(list(mesh.values())).prod()) if mesh else 1
    return Case(num_ranks=num_ranks, mesh=mesh, strategies=strategies, model=MODEL | {"moe": table})


CASES: dict[str, Case] = {
    "one rank": case(ACCUMULATED | {"ac": {}}),
    "ep": case(SPREAD, ep=2),
    "sigmoid, shared, a dense layer": case(
        SPREAD, {"router": "sigmoid", "num_shared_experts": 1, "first_dense_layers": 1, "bias_rate": 0.01}, ep=2
    ),
    "no biases, weights as they are": case(SPREAD, PLAIN, ep=2),
    "checkpointed": case(SPREAD | ACCUMULATED | {"ac": {}}, ep=2),
    "selective": case(SPREAD | ACCUMULATED | SELECTIVE, ep=2),
    "reduced once": case(SPREAD | ACCUMULATED | ZERO_2, ep=2),
    "compiled": case(SPREAD | SELECTIVE | {"compile": {"backend": "aot_eager"}}, ep=2),
    "experts without ep, ddp": case({"ddp": {}} | ACCUMULATED | {"ac": {}}, dp_replicate=2),
    "experts without ep, fsdp2": case({"fsdp2": {"prefetch": 1}} | SELECTIVE, dp_shard=2),
    "every rank one expert": case(SPREAD, ep=4),
    "sharded": case(SPREAD | ACCUMULATED | SELECTIVE, ep=2, dp_shard=2),
    "fewer experts than shards": case(SPREAD | {"ac": {}}, ONE_OF_TWO, ep=2, dp_shard=2),
    "replicated": case(SPREAD | ACCUMULATED, ep=2, dp_replicate=2, dp_shard=1),
}
LAYER = "layers.1.ffn"


def trained(case: Case) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of a case, and what is left in its last layer."""
    kept: list[Program] = []
    torch._dynamo.reset()
    found = outcome(case, lambda program: kept.append(program) or program)
    layer = next(module for name, module in kept[0].model.named_modules() if canonical(name).endswith(LAYER))
    report = [line for report in kept[0].reports for line in report() if line.startswith("experts")]
    held = tuple(layer.experts.gate.to_local().shape) if hasattr(layer.experts.gate, "to_local") else ()
    return found, {"bias": layer.bias.clone(), "total": layer.total.clone(), "report": report, "held": held}


def all_trained_on(num_ranks: int) -> dict[str, Any]:
    return {name: trained(each) for name, each in CASES.items() if each.num_ranks == num_ranks}


def everything_on(num_ranks: int) -> dict[str, Any]:
    """One set of processes for each number of ranks: starting one costs more than a case."""
    return {
        "faulty": {name: outcome(each, fault) for name, (fault, each) in FAULTS.items() if each.num_ranks == num_ranks},
        "exchanged": exchanged() if num_ranks == 2 else [],
    }


@pytest.fixture(scope="module")
def found_on(run_ranks: Any) -> Callable[[int], dict[str, Any]]:
    return functools.cache(lambda num_ranks: run_ranks(everything_on, num_ranks, num_ranks))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_experts_on_several_ranks_take_the_steps_of_one(num_ranks: int, run_ranks: Any) -> None:
    found = run_ranks(all_trained_on, num_ranks, num_ranks)

    assert found
    for name, (result, left) in found.items():
        single = replace(CASES[name], num_ranks=1, mesh={}, strategies={})
        loss, gradient = differences(result, reference(single))
        assert loss <= LOSS_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"
        _, expected = trained(single)
        assert torch.equal(left["bias"], expected["bias"]), name
        factor = 2 if "ac" in CASES[name].strategies else 1  # what is recomputed is counted again, all alike
        assert torch.equal(left["total"], factor * expected["total"]), name
        assert left["report"] == expected["report"], name
    if num_ranks == 4:
        held = {name: left["held"] for name, (_, left) in found.items()}
        assert held["every rank one expert"] == (1, 16, 32)
        assert held["sharded"] == (1, 16, 32)
        assert held["fewer experts than shards"] == (1, 8, 32)
        assert held["replicated"] == (2, 16, 32)


def test_biases_move_and_the_report_has_a_line_a_layer() -> None:
    """Else equal ones would say little."""
    _, left = trained(case({}))
    assert left["bias"].abs().max() >= 0.02
    assert int(left["total"].sum()) == 10 * 8 * 32 * 2  # steps, sequences, tokens, choices
    assert [line.split(":")[1] for line in left["report"]] == [" layers.0.ffn", " layers.1.ffn"]


def wrong_expert(program: Program) -> Program:
    """Each rank takes its rows for the other expert's."""
    for name in program.facts.experts.modules if program.facts.experts else ():
        experts: Any = program.model.get_submodule(name)
        inner = experts.compute
        experts.compute = lambda x, counts, inner=inner: inner(x, counts.flip(0))
    return program


def averaged_over_shards(program: Program) -> Program:
    for name in program.facts.experts.modules if program.facts.experts else ():
        program.model.get_submodule(name).set_gradient_divide_factor(2.0)  # type: ignore
    return program


def load_of_one_rank(program: Program) -> Program:
    """The biases follow what this rank has seen."""
    after_step = program.facts.after_step
    assert after_step is not None
    return replace(program, after_step=(lambda: after_step(program.model, lambda counts: None),))


FAULTS: dict[str, tuple[Callable[[Program], Program], Case]] = {
    "wrong expert": (wrong_expert, CASES["ep"]),
    "averaged over shards": (averaged_over_shards, CASES["sharded"]),
    "load of one rank": (load_of_one_rank, CASES["ep"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_catches_a_fault(name: str, found_on: Any) -> None:
    """Negative controls: what the comparison above would say if experts were wrong."""
    case = FAULTS[name][1]

    found = found_on(case.num_ranks)["faulty"][name]

    loss, gradient = differences(found, reference(replace(case, num_ranks=1, mesh={}, strategies={})))
    assert loss > 10 * LOSS_TOLERANCE, f"{name} went unnoticed in the losses ({loss:.1e})"
    if name != "load of one rank":  # that moves the biases after the first gradients
        assert gradient > 100 * GRADIENT_TOLERANCE, f"{name} went unnoticed in the gradients ({gradient:.1e})"


def exchanged() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows through experts that multiply by a number each: results, gradient of the rows, and of the numbers."""
    from stepladder.strategies.expert_parallel.exchange import Exchange

    rank, group = torch.distributed.get_rank(), torch.distributed.group.WORLD
    assert group is not None
    exchange, found = Exchange(group), []
    for counts in ([[2, 1, 3, 1], [1, 4, 0, 2]], [[0, 0, 5, 2], [0, 0, 3, 4]], [[7, 0, 0, 0], [0, 0, 0, 7]]):
        rows = (torch.arange(14.0).view(7, 2) + 100 * rank).requires_grad_()
        factors = torch.tensor([[2.0, 3.0], [5.0, 7.0]])[rank].requires_grad_()

        def compute(x: Tensor, counts_L: Tensor, factors: Tensor = factors) -> Tensor:
            return x * factors.repeat_interleave(counts_L)[:, None]

        out = exchange(rows, torch.tensor(counts[rank]), compute)
        out.sum().backward()
        assert rows.grad is not None
        assert factors.grad is not None
        whole = torch.zeros(4)
        whole[2 * rank : 2 * rank + 2] = factors.grad
        torch.distributed.all_reduce(whole)
        found.append((out.detach(), rows.grad, whole))
    return found


def test_rows_travel_to_their_experts_and_back_even_if_a_rank_gets_none(found_on: Any) -> None:
    found = found_on(2)["exchanged"]

    factors, rows = torch.tensor([2.0, 3.0, 5.0, 7.0]), torch.arange(14.0).view(7, 2)
    sent = [([2, 1, 3, 1], [1, 4, 0, 2]), ([0, 0, 5, 2], [0, 0, 3, 4]), ([7, 0, 0, 0], [0, 0, 0, 7])]
    for (out, rows_grad, factors_grad), (first, second) in zip(found, sent, strict=True):
        each = factors.repeat_interleave(torch.tensor(first))[:, None]
        assert torch.equal(out, rows * each)
        assert torch.equal(rows_grad, each.expand(7, 2))
        sums = [part.sum() for counts, x in ((first, rows), (second, rows + 100)) for part in x.split(counts)]
        assert torch.equal(factors_grad, torch.stack([sums[e] + sums[e + 4] for e in range(4)]))


def problems_of(case: Case) -> str:
    try:
        case.plan()
    except UsageError as error:
        return "\n".join(error.problems)
    return ""


def test_what_cannot_be_spread_is_refused_in_a_sentence() -> None:
    assert problems_of(case(SPREAD, ep=2)) == ""
    uneven = problems_of(case(SPREAD, {"num_experts": 6}, ep=4))
    assert "strategies.ep: mesh.ep = 4 does not divide the 6 experts of a layer; use one of 2, 3, 6" in uneven
    one = problems_of(case(SPREAD, {"num_experts": 1, "top_k": 1, "balance": "none", "normalise_weights": False}, ep=2))
    assert "mesh.ep = 2 does not divide the 1 experts of a layer; raise num_experts or remove strategies.ep" in one
    dense = replace(case(SPREAD, ep=2), model=MODEL)
    assert "strategies.ep: the model has no experts" in problems_of(dense)
    assert "strategies.ep: has no effect with mesh.ep = 1" in problems_of(case(SPREAD, dp_shard=2))
    assert "strategies.ddp: cannot work beside mesh.ep" in problems_of(case({"ep": {}, "ddp": {}}, ep=2))
    whole = case(SPREAD | {"compile": {"fullgraph": True}}, ep=2)
    assert "strategies.compile.fullgraph = true: cannot work beside mesh.ep" in problems_of(whole)
    assert "no active strategy sums the gradients over this axis" in problems_of(case({"ep": {}}, ep=2))


def test_experts_that_fsdp2_cannot_share_evenly_are_refused_with_degrees_that_work() -> None:
    """Of 4 experts 2 ranks along ep hold 2 each; more ranks than that share their 16 rows, in a model of width 32."""

    def said(**mesh: int) -> str:
        with_cp = {"cp": {}} if "cp" in mesh else {}
        each = replace(case(SPREAD | with_cp, **mesh), global_batch=2 * mesh.get("dp_shard", 1))
        return "".join(line for line in problems_of(each).splitlines() if "of the experts" in line)

    for dp_shard, choices in ((3, "2 or 4"), (5, "4 or 8"), (32, "16")):
        found = said(ep=2, dp_shard=dp_shard)
        assert found.startswith(f"strategies.ep: mesh.dp_shard x mesh.cp = {dp_shard} ranks share 2 of the experts")
        assert found.endswith(f"use mesh.dp_shard = {choices}")
    assert all(said(ep=2, dp_shard=dp_shard) == "" for dp_shard in (1, 2, 4, 8, 16))
    assert said(ep=2, dp_shard=3, cp=2).endswith("use mesh.dp_shard = 2 or 4")
    assert said(ep=2, dp_shard=1, cp=3).endswith("use a lower mesh.cp")
