"""Every allowed combination of strategies takes the same steps as a plain loop in one process.

The data-parallel part, small enough for every run of the tests; `parallel/` has the whole mesh.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import (
    BF16_TOLERANCE,
    GRADIENT_TOLERANCE,
    LEARNING_RATE,
    LOSS_TOLERANCE,
    MODEL,
    Case,
    Outcome,
    differences,
    differences_of,
    outcome,
    reference,
    source,
)

from stepladder.strategies.base import Program


@pytest.fixture(scope="module")
def truth() -> Outcome:
    return reference(Case())


def test_the_reference_learns(truth: Outcome) -> None:
    """Else equal losses would say little."""
    assert truth[0][-1] < 0.8 * truth[0][0]


def cases_of(num_ranks: int, strategies: dict[str, dict[str, Any]]) -> list[Case]:
    return [Case(num_ranks=num_ranks, strategies=each) for each in strategies.values()]


ACS: dict[str, dict[str, Any]] = {"no ac": {}, "full": {"ac": {}}, "selective": {"ac": {"mode": "selective"}}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "ddp": (2, {"ddp": {}}),
    "fsdp2": (2, {"fsdp2": {}}),
}


def matrix(layout: dict[str, Any], acs: Sequence[str], *, compiled: bool) -> dict[str, dict[str, Any]]:
    """Accumulation 1 and 2, with some kinds of checkpointing."""
    cases: dict[str, dict[str, Any]] = {}
    for ac_name, micro in itertools.product(acs, (1, 2)):
        ac = ACS[ac_name]
        accumulation = {"accumulation": {"num_microbatches": micro}} if micro > 1 else {}
        cases[f"{ac_name}, {micro} microbatches"] = layout | ac | accumulation | ({"compile": {}} if compiled else {})
    return cases


COMBINATIONS = [
    *((layout, False, tuple(ACS)) for layout in LAYOUTS),
    ("fsdp2", True, ("selective",)),
    *(pytest.param(layout, True, tuple(ACS), marks=pytest.mark.slow) for layout in LAYOUTS),
]
"""Inductor takes most of their time; what has the most to break is always compiled."""


@pytest.mark.parametrize(("layout", "compiled", "acs"), COMBINATIONS)
def test_every_combination_takes_the_steps_of_one_process(
    layout: str, compiled: bool, acs: tuple[str, ...], run_ranks: Any
) -> None:
    num_ranks, strategies = LAYOUTS[layout]
    cases = matrix(strategies, acs, compiled=compiled)
    assert len(cases) == 2 * len(acs)

    found = run_ranks(differences_of, num_ranks, cases_of(num_ranks, cases))

    for name, (loss, gradient) in zip(cases, found, strict=True):
        assert loss <= LOSS_TOLERANCE, f"{layout}, {name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{layout}, {name}: gradients differ by {gradient:.2e}"


VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "foreach": (1, {"adamw": {"learning_rate": LEARNING_RATE, "implementation": "foreach"}}),
    "for-loop": (1, {"adamw": {"learning_rate": LEARNING_RATE, "implementation": "for-loop"}}),
    "every other block": (1, {"ac": {"every": 2}}),
    "named operators": (1, {"ac": {"mode": "selective", "save": ["aten.mm.default"]}}),
    "matmul precision": (1, {"matmul_precision": {"precision": "highest"}}),
    "whole-model compile": (1, {"compile": {"scope": "model", "backend": "aot_eager"}}),
    "fsdp2 of one rank": (1, {"fsdp2": {}}),
    "small buckets": (2, {"ddp": {"bucket_mib": 1}}),
    "static graph": (2, {"ddp": {"static_graph": True}}),
    "no overlap": (2, {"ddp": {"overlap": False}}),
    "no bucket view": (2, {"ddp": {"gradient_as_bucket_view": False}, "accumulation": {"num_microbatches": 2}}),
    "unused parameters": (2, {"ddp": {"find_unused_parameters": True}}),
    "ddp around a compiled model": (2, {"ddp": {}, "compile": {"scope": "model", "backend": "aot_eager"}}),
    "ddp around a compiled, checkpointed model": (
        2,
        {"ddp": {}, "ac": {}, "compile": {"scope": "model", "backend": "aot_eager"}},
    ),
    "zero-2": (2, {"fsdp2": {"reshard_after_forward": False}}),
    "reduce once": (2, {"fsdp2": {"reduce_every_microbatch": False}, "accumulation": {"num_microbatches": 2}}),
    "implicit prefetch": (2, {"fsdp2": {"prefetch": 0}}),
}


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_option_that_only_reorders_keeps_the_steps(num_ranks: int, run_ranks: Any) -> None:
    cases = {name: strategies for name, (ranks, strategies) in VARIANTS.items() if ranks == num_ranks}
    assert cases

    found = run_ranks(differences_of, num_ranks, cases_of(num_ranks, cases))

    for name, (loss, gradient) in zip(cases, found, strict=True):
        assert loss <= LOSS_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tied_embeddings_keep_the_steps(layout: str, run_ranks: Any) -> None:
    num_ranks, strategies = LAYOUTS[layout]
    case = Case(num_ranks=num_ranks, strategies=strategies, model=MODEL | {"tie_embeddings": True})

    ((loss, gradient),) = run_ranks(differences_of, num_ranks, [case])

    assert loss <= LOSS_TOLERANCE
    assert gradient <= GRADIENT_TOLERANCE


HALF: dict[str, tuple[int, dict[str, Any]]] = {
    "amp": (1, {"amp": {}}),
    "amp, checkpointed": (1, {"amp": {}, "ac": {}}),
    "amp, compiled": (1, {"amp": {}, "compile": {}}),
    "amp and ddp": (2, {"amp": {}, "ddp": {}, "accumulation": {"num_microbatches": 2}}),
    "amp and fsdp2": (2, {"amp": {}, "fsdp2": {}}),
    "fsdp2 in bf16": (2, {"fsdp2": {"param_dtype": "bf16"}}),
    "fsdp2 in bf16, reduced in bf16": (2, {"fsdp2": {"param_dtype": "bf16", "reduce_dtype": "bf16"}}),
    "fp16 with loss scaling": (1, {"amp": {"dtype": "fp16", "init_scale": 1024.0}}),
    "fp16 with loss scaling, fsdp2": (2, {"amp": {"dtype": "fp16", "init_scale": 1024.0}, "fsdp2": {}}),
}


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_half_precision_stays_close(num_ranks: int, run_ranks: Any) -> None:
    """Close, and not equal: a run that silently stayed in float32 fails as well."""
    cases = {name: strategies for name, (ranks, strategies) in HALF.items() if ranks == num_ranks}
    assert cases

    found = run_ranks(differences_of, num_ranks, cases_of(num_ranks, cases))

    for name, (loss, gradient) in zip(cases, found, strict=True):
        assert loss <= BF16_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert GRADIENT_TOLERANCE < gradient <= BF16_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


def with_evaluation(strategies: dict[str, Any]) -> tuple[Outcome, Outcome]:
    """The same steps without and with an evaluation before the first one."""
    from stepladder.trainer.evaluation import evaluate

    def evaluated(program: Program) -> Program:
        evaluate(program, [source(case).__getitems__([0, 1])], lambda loss, tokens: [float(loss), float(tokens)])
        return program

    case = Case(num_ranks=2, strategies=strategies)
    return outcome(case), outcome(case, tamper=evaluated)


@pytest.mark.parametrize("reshard", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_evaluation_changes_no_step(reshard: bool, run_ranks: Any) -> None:
    """A forward pass without backward leaves FSDP2 gathered: what is clipped must be the shards all the same."""
    strategies = {"fsdp2": {"reshard_after_forward": reshard}, "clip": {"max_norm": 0.01}}

    without, with_one = run_ranks(with_evaluation, 2, strategies)

    assert with_one[0] == without[0]
    assert all(torch.equal(with_one[1][name], without[1][name]) for name in without[1])


def dropped_microbatch(program: Program) -> Program:
    inner = program.forward_backward

    def drop(program: Program, microbatches: Any, scale: Any, mark: Any) -> Any:
        return inner(program, microbatches[:-1], scale, mark)

    return replace(program, forward_backward=drop)


def doubled_loss_scale(program: Program) -> Program:
    return replace(program, gradient_divisor=2 * program.gradient_divisor)


def skipped_all_reduce(program: Program) -> Program:
    inner = program.before_microbatch
    return replace(program, before_microbatch=lambda is_last: inner(False))


def causal_mask_lost(program: Program) -> Program:
    """A fault in the model rather than in the loop."""
    from torch.nn.functional import scaled_dot_product_attention as attend

    module = __import__("stepladder.trainer.models.decoder", fromlist=["F"])

    class Unmasked:
        def __getattr__(self, name: str) -> Any:
            return getattr(F, name)

        def scaled_dot_product_attention(self, q: Any, k: Any, v: Any, is_causal: bool) -> Any:
            return attend(q, k, v)

    module.F = Unmasked()
    return program


FAULTS: dict[str, tuple[int, Callable[[Program], Program], dict[str, Any]]] = {
    "dropped microbatch": (1, dropped_microbatch, {"accumulation": {"num_microbatches": 2}}),
    "doubled loss scale": (1, doubled_loss_scale, {}),
    "skipped all-reduce": (2, skipped_all_reduce, {"ddp": {}}),
    "causal mask lost": (1, causal_mask_lost, {}),
}


def faulty_outcome(name: str) -> Outcome:
    num_ranks, fault, strategies = FAULTS[name]
    return outcome(Case(num_ranks=num_ranks, strategies=strategies), tamper=fault)


@pytest.mark.slow  # those of the matrix, which are more, are tried in every run of the fast suite
@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_catches_a_fault(name: str, truth: Outcome, run_ranks: Any) -> None:
    """Negative controls: what the matrix above would say if the mathematics had changed."""
    found = run_ranks(faulty_outcome, FAULTS[name][0], name)

    loss, gradient = differences(found, truth)
    assert gradient > 100 * GRADIENT_TOLERANCE, f"{name} went unnoticed in the gradients ({gradient:.1e})"
    if name != "doubled loss scale":  # clipping and AdamW undo a common factor, so that the losses cannot tell
        assert loss > 10 * LOSS_TOLERANCE, f"{name} went unnoticed in the losses ({loss:.1e})"
