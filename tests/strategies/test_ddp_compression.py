"""What compressed gradients are, computed by hand from those of each rank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stepladder.profiling.record import no_span
from stepladder.strategies import Strategies
from stepladder.strategies.assemble import apply_all
from stepladder.strategies.base import Batch, Facts, Program, Run
from stepladder.strategies.clip import measure_norm
from stepladder.strategies.ddp import DDP
from stepladder.strategies.mesh import Axis, build_mesh
from stepladder.trainer.step import accumulate

ROWS, COLUMNS, RANKS = 24, 32, 2
Step = dict[str, torch.Tensor]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(COLUMNS, ROWS)


def batch(rank: int, step: int, samples: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return Batch(torch.randn(samples, COLUMNS, generator=generator), torch.zeros(samples))


def loss(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    return output.square().sum() * 1e-3


def steps(keys: dict[str, Any], samples: int, num_steps: int, same: bool = False) -> list[Step]:
    """Gradients of some steps, the weights staying as they are."""
    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: RANKS}
    run = Run(
        device_type="cpu", degrees=degrees, facts=Facts(), num_steps=9, tokens_per_step=1, seed=3,
        active=frozenset({"ddp"}), mesh=build_mesh("cpu", degrees), device=torch.device("cpu"),
    )  # fmt: skip
    program = Program(model=model(), facts=Facts(), loss=loss, forward_backward=accumulate, clip_gradients=measure_norm)
    program = apply_all(program, Strategies(ddp=DDP(**keys)), run)
    found: list[Step] = []
    for step in range(num_steps):
        program.model.zero_grad(set_to_none=True)
        microbatches = [batch(torch.distributed.get_rank(), 0 if same else step, samples)]
        program.forward_backward(program, microbatches, float(program.gradient_divisor), no_span)
        found.append({name: p.grad.clone() for name, p in program.model.module.named_parameters()})  # type: ignore
    return found


POWER = {"compression": "powersgd", "powersgd_start_step": 2}
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "bf16": ({"compression": "bf16"}, 8, 1),
    "fp16": ({"compression": "fp16"}, 8, 1),
    "one sample": (POWER | {"powersgd_rank": 2}, 1, 4),
    "rank 1": (POWER | {"powersgd_rank": 1}, 8, 8),
    "again and again": (POWER | {"powersgd_rank": 2}, 8, 10),
    "rank 4": (POWER | {"powersgd_rank": 4}, 8, 8),
    "too much": (POWER | {"powersgd_rank": ROWS}, 8, 4),
}


def all_steps() -> dict[str, list[Step]]:
    return {name: steps(*case, same=name == "again and again") for name, case in CASES.items()}


@pytest.fixture(scope="module")
def found(run_ranks: Callable[..., Any]) -> dict[str, list[Step]]:
    return run_ranks(all_steps, RANKS)


def own(rank: int, step: int, samples: int) -> Step:
    """The gradient of one rank's samples."""
    alone = model()
    part = batch(rank, step, samples)
    loss(alone(part.inputs), part).backward()
    return {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}


def whole(step: int, samples: int) -> Step:
    parts = [own(rank, step, samples) for rank in range(RANKS)]
    return {name: sum(part[name] for part in parts) for name in parts[0]}  # type: ignore[misc]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_narrow_format_rounds_each_rank_and_the_sum(
    name: str, dtype: torch.dtype, found: dict[str, list[Step]]
) -> None:
    """Each rank hands in its gradient, rounded; the sum is rounded once more. Two ranks add in one order only."""
    for key, gradient in found[name][0].items():
        parts = [own(rank, 0, 8)[key].to(dtype) for rank in range(RANKS)]
        assert torch.equal(gradient, (parts[0] + parts[1]).float()), key
        assert 1e-5 < apart(gradient, whole(0, 8)[key]) < 1e-2


def test_powersgd_sends_whole_gradients_at_first_and_of_what_would_not_shrink(found: dict[str, list[Step]]) -> None:
    for step in range(2):
        assert apart(found["rank 1"][step]["weight"], whole(step, 8)["weight"]) < 1e-6
    for step in range(4):
        assert apart(found["too much"][step]["weight"], whole(step, 8)["weight"]) < 1e-6
    for step in range(8):
        assert apart(found["rank 1"][step]["bias"], whole(step, 8)["bias"]) < 1e-6


def test_powersgd_is_exact_for_a_gradient_of_its_rank(found: dict[str, list[Step]]) -> None:
    """One sample on each of two ranks: the gradient is a sum of two outer products."""
    for step in range(2, 4):
        truth = whole(step, 1)["weight"]
        assert torch.linalg.matrix_rank(truth) == 2
        assert apart(found["one sample"][step]["weight"], truth) < 1e-4


def test_a_higher_rank_is_closer_and_none_is_exact(found: dict[str, list[Step]]) -> None:
    truth = whole(2, 8)["weight"]
    one, four = (apart(found[name][2]["weight"], truth) for name in ("rank 1", "rank 4"))
    assert 0.05 < four < one < 1
    assert torch.linalg.matrix_rank(found["rank 1"][2]["weight"], rtol=1e-4) == 1


def test_powersgd_hands_in_later_what_it_left_out(found: dict[str, list[Step]]) -> None:
    """The same gradient again and again: their mean comes closer than any approximation of that rank can."""
    truth = whole(0, 8)["weight"]
    strengths = torch.linalg.svdvals(truth)
    best = float(strengths[2:].norm() / strengths.norm())
    sent = [each["weight"] for each in found["again and again"][2:]]
    assert apart(sent[0], truth) >= best
    means = [apart(torch.stack(sent[:number]).mean(dim=0), truth) for number in (1, 4, 8)]
    assert means == sorted(means, reverse=True)
    assert means[-1] < best / 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"powersgd_rank": 2}, "powersgd_rank: has no effect with compression = 'none'"),
    ({"compression": "bf16", "powersgd_start_step": 5}, "powersgd_start_step: has no effect with compression = 'bf16'"),
    ({"compression": "powersgd"}, "powersgd_start_step = 1000: is never reached in 100 steps"),
    ({"compression": "powersgd", "powersgd_start_step": 100}, "powersgd_start_step = 100: is never reached"),
]


@pytest.mark.parametrize(("keys", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_settings_without_effect_are_refused(keys: dict[str, Any], sentence: str, make_run: Callable[..., Run]) -> None:
    (said,) = DDP(**keys).check(make_run(active={"ddp"}))
    assert sentence in said


def test_a_loss_scale_that_changes_does_not_go_with_a_memory_of_gradients(make_run: Callable[..., Run]) -> None:
    from stepladder.strategies.adamw import AdamW
    from stepladder.strategies.amp import Amp
    from stepladder.strategies.check import problems

    power = DDP(compression="powersgd", powersgd_start_step=2)
    run = make_run(active={"ddp", "amp", "adamw"})
    (said,) = problems(Strategies(ddp=power, amp=Amp(dtype="fp16"), adamw=AdamW()), run)
    assert "strategies.ddp and strategies.amp: each wants to own the scale of the gradients" in said
    assert not list(problems(Strategies(ddp=power, amp=Amp(), adamw=AdamW()), run))
    assert not list(problems(Strategies(ddp=DDP(), amp=Amp(dtype="fp16"), adamw=AdamW()), run))
