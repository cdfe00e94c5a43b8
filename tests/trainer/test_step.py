"""The loss is the sum over valid tokens by the global number of valid tokens, however unevenly they lie.

Labels are ignored so that ranks and microbatches hold 1 to 8 valid tokens; one process by hand is the truth.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
import torch

from stepladder.profiling.record import no_span
from stepladder.strategies.base import Batch, Program
from stepladder.trainer.data.config import LoaderConfig
from stepladder.trainer.data.feed import DeviceFeed, host_batches, token_counter
from stepladder.trainer.data.order import Share
from stepladder.trainer.evaluation import evaluate

NUM_SAMPLES, LENGTH, SEED = 8, 8, 3
MODEL = {"dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "vocab_size": 32}


class UnevenSource:
    """Sample i has i + 1 valid labels."""

    fingerprint = "uneven"
    all_valid = False
    on_device = False

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitems__(self, indices: Any) -> Batch:
        tokens = torch.stack([torch.arange(LENGTH + 1) * (i + 3) % 32 for i in indices])
        labels = tokens[:, 1:].clone()
        for row, i in zip(labels, indices, strict=True):
            row[i + 1 :] = -100
        return Batch(tokens[:, :-1], labels)


def outcome(strategies: dict[str, Any]) -> tuple[float, float, dict[str, torch.Tensor], tuple[float, int]]:
    """Loss and valid tokens of one step over all ranks, its gradients, and the held-out loss."""
    from stepladder.launch.build import build_program
    from stepladder.launch.plan import make_plan
    from stepladder.launch.ranks import Ranks, sum_over_ranks
    from stepladder.launch.recipe import parse

    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    micro = strategies.get("accumulation", {}).get("num_microbatches", 1)
    size = NUM_SAMPLES // num_ranks // micro
    recipe = parse(
        {
            "run": {"num_steps": 1, "seed": SEED, "device": "cpu"},
            "model": {"decoder": MODEL},
            "data": {"synthetic": {}},
            "batch": {"microbatch_size": size, "sequence_length": LENGTH},
            "strategies": {"adamw": {}} | strategies,
        },
        {},
    )
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=num_ranks)
    plan = make_plan(recipe, num_gpus=0, num_ranks=num_ranks, started=True)
    cpu = torch.device("cpu")
    program = build_program(plan, ranks, cpu)
    source, reduce = UnevenSource(), sum_over_ranks(ranks)
    share = Share(
        num_samples=NUM_SAMPLES, microbatch_size=size, num_microbatches=micro, rank=rank, num_ranks=num_ranks, seed=SEED
    )
    feed = DeviceFeed(
        batches=host_batches(source, share, LoaderConfig(), first_step=0, pin=False),
        num_microbatches=micro,
        device=cpu,
        count_tokens=token_counter(source, plan.tokens_per_step, reduce, cpu),
    )
    microbatches, num_tokens = feed.to_device(feed.wait())
    loss_sum = program.forward_backward(program, microbatches, program.gradient_divisor / num_tokens, no_span)
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in program.model.named_parameters():
        grad: Any = parameter.grad
        gradients[name.removeprefix("module.")] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    held_out = evaluate(program, microbatches, lambda loss, tokens: reduce(torch.stack([loss, tokens])).tolist())
    return float(reduce(loss_sum)) / float(num_tokens), float(num_tokens), gradients, held_out


CASES: list[dict[str, Any]] = [
    {"ddp": {}},
    {"ddp": {}, "accumulation": {"num_microbatches": 2}},
    {"fsdp2": {"prefetch": 0}},
    {"fsdp2": {}, "accumulation": {"num_microbatches": 2}},
    {"fsdp2": {"reduce_every_microbatch": False}, "accumulation": {"num_microbatches": 4}},
]


def outcomes() -> list[Any]:
    return [outcome(case) for case in CASES]


@pytest.fixture(scope="module")
def truth() -> tuple[float, dict[str, torch.Tensor]]:
    """One process, one batch, the mean over all valid tokens."""
    from stepladder.strategies.materialise import seed_of
    from stepladder.trainer.models.config import DecoderConfig

    config = DecoderConfig(**MODEL)
    model, initialise = config.build(), config.facts(LENGTH).initialise
    assert initialise is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialise(name, parameter, torch.Generator().manual_seed(seed_of(SEED, name)))
    batch = UnevenSource().__getitems__(range(NUM_SAMPLES))
    losses = model(batch.inputs).log_softmax(-1)
    picked = [losses[b, t, batch.labels[b, t]] for b in range(NUM_SAMPLES) for t in range(b + 1)]
    loss = -torch.stack(picked).mean()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_uneven_labels_weigh_the_same_on_every_rank_and_microbatch(
    truth: tuple[float, dict[str, torch.Tensor]], run_ranks: Callable[..., Any]
) -> None:
    loss, gradients = truth
    num_valid = NUM_SAMPLES * (NUM_SAMPLES + 1) // 2
    for case, (found, num_tokens, found_gradients, (held_out, counted)) in zip(
        CASES, run_ranks(outcomes, 2), strict=True
    ):
        assert num_tokens == counted == num_valid, case
        assert found == pytest.approx(loss, rel=1e-5), case
        assert held_out == pytest.approx(loss, rel=1e-5), case
        assert found_gradients.keys() == gradients.keys()
        for name, expected in gradients.items():
            error = float((found_gradients[name] - expected).norm() / expected.norm())
            assert error < 1e-5, f"{case}: {name} differs by {error:.1e}"


def plain_program(**changes: Any) -> Program:
    from stepladder.strategies.base import Facts
    from stepladder.strategies.clip import measure_norm
    from stepladder.trainer.step import accumulate

    program = Program(
        model=torch.nn.Linear(1, 1),
        facts=Facts(),
        loss=lambda output, batch: (output[:, 0] * (batch.labels != -100)).sum(),
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    return replace(program, **changes)


def own_sums(loss: torch.Tensor, num_tokens: torch.Tensor) -> list[float]:
    return [float(loss), float(num_tokens)]


def test_evaluation_is_the_mean_over_tokens_and_not_over_batches() -> None:
    program = plain_program()
    with torch.no_grad():
        program.model.weight.fill_(1.0)  # type: ignore[union-attr]
        program.model.bias.fill_(0.0)  # type: ignore[union-attr]
    values = count(1)
    batches = []
    for size, ignored in [(4, 0), (4, 3), (2, 1)]:
        labels = torch.zeros(size, dtype=torch.long)
        labels[size - ignored :] = -100
        batches.append(Batch(torch.tensor([[float(v)] for v in islice(values, size)]), labels))
    loss, num_tokens = evaluate(program, batches, own_sums)
    assert num_tokens == 6
    assert loss == pytest.approx((1 + 2 + 3 + 4 + 5 + 9) / 6)
    assert all(p.grad is None for p in program.model.parameters())

    nothing = Batch(torch.ones(2, 1), torch.full((2,), -100))
    loss, num_tokens = evaluate(program, [nothing], own_sums)
    assert num_tokens == 0
    assert loss != loss
