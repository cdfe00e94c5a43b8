"""Every allowed combination of strategies takes the same steps as a plain loop in one process.

The reference below knows nothing of the trainer: a module, an optimizer, whole batches, ten steps.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stepladder.launch.build import build_program
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks
from stepladder.launch.recipe import parse
from stepladder.strategies.base import Program
from stepladder.strategies.materialise import seed_of
from stepladder.strategies.names import canonical
from stepladder.trainer.data.feed import DeviceFeed, host_batches
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.source import SyntheticSource
from stepladder.trainer.loop import Watcher, train
from stepladder.trainer.models.config import DecoderConfig

NUM_STEPS = 10
GLOBAL_BATCH = 8
LENGTH = 32
SEED = 3
MODEL = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64, "vocab_size": 64}
LOSS_TOLERANCE = 1e-5  # float32: only the order of sums differs
GRADIENT_TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-2  # eight bits of mantissa

Outcome = tuple[list[float], dict[str, torch.Tensor]]
"""Loss of each step, and the gradients of step 1 by parameter."""


def source() -> SyntheticSource:
    """Sequences that count upwards from random beginnings: learnt in ten steps, so a fault shows in the losses."""
    made = SyntheticSource(
        num_samples=64, sequence_length=LENGTH, vocab_size=MODEL["vocab_size"], seed=SEED, device=torch.device("cpu")
    )
    made.tokens = (made.tokens[:, :1] + torch.arange(LENGTH + 1)) % MODEL["vocab_size"]
    return made


def reference(tied: bool = False) -> Outcome:
    """Ten AdamW steps on whole batches, written out."""
    config = DecoderConfig(**MODEL, tie_embeddings=tied)
    model, facts = config.build(), config.facts(LENGTH)
    assert facts.initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            facts.initialise(name, parameter, torch.Generator().manual_seed(seed_of(SEED, name)))
    decay = [p for p in model.parameters() if p.ndim == 2]
    spared = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    share = Share(num_samples=64, microbatch_size=GLOBAL_BATCH, num_microbatches=1, rank=0, num_ranks=1, seed=SEED)
    losses, gradients = [], {}
    for step, indices in enumerate(itertools.islice(share.microbatches(0), NUM_STEPS)):
        batch = source().__getitems__(indices)
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.labels.flatten())
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, gradients


def test_the_reference_learns(truth: Outcome) -> None:
    """Else equal losses would say little."""
    assert truth[0][-1] < 0.8 * truth[0][0]


def identity(program: Program) -> Program:
    return program


def outcome(
    num_ranks: int, strategies: dict[str, Any], tamper: Callable[[Program], Program] = identity, tied: bool = False
) -> Outcome:
    """The same ten steps by the trainer, with strategies; `tamper` puts a fault into the program."""
    accumulation = strategies.get("accumulation", {}).get("num_microbatches", 1)
    recipe = parse(
        {
            "run": {"num_steps": NUM_STEPS, "seed": SEED, "device": "cpu"},
            "model": {"decoder": MODEL | {"tie_embeddings": tied}},
            "data": {"synthetic": {}},
            "batch": {"microbatch_size": GLOBAL_BATCH // num_ranks // accumulation, "sequence_length": LENGTH},
            "strategies": {"adamw": {"learning_rate": 1e-2}, "clip": {}} | strategies,
        },
        {},
    )
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=num_ranks)
    plan = make_plan(recipe, num_gpus=0, num_ranks=num_ranks, started=True)
    program = tamper(build_program(plan, ranks, torch.device("cpu")))
    gradients: dict[str, torch.Tensor] = {}
    inner = program.clip_gradients

    def keep_gradients(parameters: Sequence[torch.nn.Parameter], *, want_norm: bool) -> Any:
        if not gradients:
            for name, parameter in program.model.named_parameters():
                grad = parameter.grad
                assert grad is not None, f"{name} has no gradient"
                whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
                gradients[canonical(name.removeprefix("module."))] = whole.clone()
        return inner(parameters, want_norm=want_norm)

    program = replace(program, clip_gradients=keep_gradients)
    assert program.make_optimizer is not None
    optimizer = program.make_optimizer(program.model)
    share = Share(
        num_samples=64,
        microbatch_size=recipe.batch.microbatch_size,
        num_microbatches=accumulation,
        rank=rank,
        num_ranks=num_ranks,
        seed=SEED,
    )
    num_tokens = float(GLOBAL_BATCH * LENGTH)
    feed = DeviceFeed(
        batches=host_batches(source(), share, recipe.loader, first_step=0, pin=False),
        num_microbatches=accumulation,
        device=torch.device("cpu"),
        count_tokens=lambda microbatches: num_tokens,
        on_device=True,
    )
    losses: list[float] = []

    def look(result: Any) -> None:
        total = result.loss_sum.double()
        if num_ranks > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total) / num_tokens)

    from stepladder.profiling.record import no_span

    train(
        program,
        optimizer,
        feed,
        num_steps=NUM_STEPS,
        first_step=0,
        base_rates=[group["lr"] for group in optimizer.param_groups],
        watchers=[Watcher(every=1, look=look)],
        wants_norm=lambda step: True,
        mark=no_span,
    )
    return losses, gradients


def outcomes(num_ranks: int, cases: list[dict[str, Any]]) -> list[Outcome]:
    """Several cases in one set of processes: starting a process costs more than a case."""
    results: list[Outcome] = []
    for strategies in cases:
        torch._dynamo.reset()
        results.append(outcome(num_ranks, strategies))
    return results


def differences(found: Outcome, expected: Outcome) -> tuple[float, float]:
    """Largest relative difference of a loss, and of a gradient (relative L2)."""
    (losses, gradients), (true_losses, true_gradients) = found, expected
    assert gradients.keys() == true_gradients.keys()
    loss = max(abs(a - b) / abs(b) for a, b in zip(losses, true_losses, strict=True))
    gradient = max(float((gradients[k] - true_gradients[k]).norm() / true_gradients[k].norm()) for k in true_gradients)
    return loss, gradient


ACS: dict[str, dict[str, Any]] = {"no ac": {}, "full": {"ac": {}}, "selective": {"ac": {"mode": "selective"}}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "ddp": (2, {"ddp": {}}),
    "fsdp2": (2, {"fsdp2": {}}),
}


def matrix(layout: dict[str, Any], *, compiled: bool) -> dict[str, dict[str, Any]]:
    """Accumulation 1 and 2, with each kind of checkpointing."""
    cases: dict[str, dict[str, Any]] = {}
    for (ac_name, ac), micro in itertools.product(ACS.items(), (1, 2)):
        accumulation = {"accumulation": {"num_microbatches": micro}} if micro > 1 else {}
        cases[f"{ac_name}, {micro} microbatches"] = layout | ac | accumulation | ({"compile": {}} if compiled else {})
    return cases


@pytest.fixture(scope="module")
def truth() -> Outcome:
    return reference()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compile"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_combination_takes_the_steps_of_one_process(
    layout: str, compiled: bool, truth: Outcome, run_ranks: Any
) -> None:
    num_ranks, strategies = LAYOUTS[layout]
    cases = matrix(strategies, compiled=compiled)
    assert len(cases) == 6

    found = run_ranks(outcomes, num_ranks, num_ranks, list(cases.values()))

    for name, result in zip(cases, found, strict=True):
        loss, gradient = differences(result, truth)
        assert loss <= LOSS_TOLERANCE, f"{layout}, {name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{layout}, {name}: gradients differ by {gradient:.2e}"


VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "foreach": (1, {"adamw": {"learning_rate": 1e-2, "implementation": "foreach"}}),
    "for-loop": (1, {"adamw": {"learning_rate": 1e-2, "implementation": "for-loop"}}),
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


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_option_that_only_reorders_keeps_the_steps(num_ranks: int, truth: Outcome, run_ranks: Any) -> None:
    cases = {name: strategies for name, (ranks, strategies) in VARIANTS.items() if ranks == num_ranks}
    assert cases

    found = run_ranks(outcomes, num_ranks, num_ranks, list(cases.values()))

    for name, result in zip(cases, found, strict=True):
        loss, gradient = differences(result, truth)
        assert loss <= LOSS_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert gradient <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


def tied_outcomes(cases: list[tuple[int, dict[str, Any]]]) -> list[Outcome]:
    return [outcome(num_ranks, strategies, tied=True) for num_ranks, strategies in cases]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tied_embeddings_keep_the_steps(layout: str, run_ranks: Any) -> None:
    found = run_ranks(tied_outcomes, LAYOUTS[layout][0], [LAYOUTS[layout]])

    loss, gradient = differences(found[0], reference(tied=True))
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


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_half_precision_stays_close(num_ranks: int, truth: Outcome, run_ranks: Any) -> None:
    """Close, and not equal: a run that silently stayed in float32 fails as well."""
    cases = {name: strategies for name, (ranks, strategies) in HALF.items() if ranks == num_ranks}
    assert cases

    found = run_ranks(outcomes, num_ranks, num_ranks, list(cases.values()))

    for name, result in zip(cases, found, strict=True):
        loss, gradient = differences(result, truth)
        assert loss <= BF16_TOLERANCE, f"{name}: losses differ by {loss:.2e}"
        assert GRADIENT_TOLERANCE < gradient <= BF16_TOLERANCE, f"{name}: gradients differ by {gradient:.2e}"


def with_evaluation(strategies: dict[str, Any]) -> tuple[Outcome, Outcome]:
    """The same steps without and with an evaluation before the first one."""
    from stepladder.trainer.evaluation import evaluate

    def evaluated(program: Program) -> Program:
        evaluate(program, [source().__getitems__([0, 1])], lambda sums: sums)
        return program

    return outcome(2, strategies), outcome(2, strategies, tamper=evaluated)


@pytest.mark.parametrize("reshard", [True, False])
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
    return outcome(num_ranks, strategies, tamper=fault)


@pytest.mark.parametrize("name", FAULTS)
def test_the_comparison_catches_a_fault(name: str, truth: Outcome, run_ranks: Any) -> None:
    """Negative controls: what the matrix above would say if the mathematics had changed."""
    found = run_ranks(faulty_outcome, FAULTS[name][0], name)

    loss, gradient = differences(found, truth)
    assert gradient > 100 * GRADIENT_TOLERANCE, f"{name} went unnoticed in the gradients ({gradient:.1e})"
    if name != "doubled loss scale":  # clipping and AdamW undo a common factor, so that the losses cannot tell
        assert loss > 10 * LOSS_TOLERANCE, f"{name} went unnoticed in the losses ({loss:.1e})"
