"""A loop of one's own with strategies in the model trains as the plain loop does."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import stepladder
from stepladder.launch.errors import UsageError


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Sequential(*(Block(16) for _ in range(3))), nn.Linear(16, 4))


def samples(step: int, number: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(number, 8, generator=generator), torch.randint(0, 4, (number,), generator=generator)


ADAMW = {"learning_rate": 0.01, "weight_decay": 0.0}


def plain(num_steps: int, *, clip: float | None = None) -> list[float]:
    """Losses of the loop that anybody would write, on whole batches."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0, betas=(0.9, 0.95))
    losses: list[float] = []
    for step in range(num_steps):
        x, y = samples(step)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def with_strategies(num_steps: int, model: nn.Module, **strategies: Any) -> list[float]:
    """Mean loss over microbatches and ranks of each step, each rank with its part of the samples."""
    applied = stepladder.apply(model, strategies={"adamw": ADAMW, **strategies}, device="cpu", num_steps=num_steps)
    num_microbatches = applied.program.num_microbatches
    parts = applied.num_ranks * num_microbatches
    losses: list[float] = []
    for step in range(num_steps):
        x, y = samples(step)
        own = [
            (a, b)
            for i, (a, b) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True))
            if i % applied.num_ranks == applied.rank % applied.num_ranks
        ]
        total = torch.zeros(())
        for a, b in own:
            with applied.microbatch():
                loss = F.cross_entropy(applied.model(a), b)
                applied.backward(loss)
            total += loss.detach() / parts
        applied.step()
        if applied.num_ranks > 1:
            dist.all_reduce(total)
        losses.append(float(total))
    return losses


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "strategies",
    [
        {},
        {"ddp": {}, "accumulation": {"num_microbatches": 2}},
        {"fsdp2": {}, "ac": {"every": 2}, "accumulation": {"num_microbatches": 4}},
    ],
    ids=lambda each: "+".join(each) or "adamw",
)
def test_one_process_trains_as_the_plain_loop(strategies: dict[str, Any]) -> None:
    assert with_strategies(4, network(), **strategies) == pytest.approx(plain(4), rel=1e-5)


def test_clipping_is_of_the_mean_gradient() -> None:
    assert with_strategies(4, network(), clip={"max_norm": 0.1}) == pytest.approx(plain(4, clip=0.1), rel=1e-5)


def losses_of_two_ranks() -> list[list[float]]:
    """From weights that differ, as those of rank 0 count."""
    settings: list[dict[str, Any]] = [
        {"ddp": {}},
        {"fsdp2": {}},
        {"ddp": {}, "accumulation": {"num_microbatches": 2}},
        {"fsdp2": {}, "accumulation": {"num_microbatches": 2}, "clip": {"max_norm": 100.0}},
    ]
    return [with_strategies(3, network(seed=dist.get_rank()), **each) for each in settings]


def test_two_processes_train_as_one_on_all_their_samples(run_ranks: Callable[..., Any]) -> None:
    expected = plain(3)
    for losses in run_ranks(losses_of_two_ranks, 2):
        assert losses == pytest.approx(expected, rel=1e-5)


def test_autocast_covers_the_forward_pass_alone() -> None:
    applied = stepladder.apply(network(), strategies={"amp": {}, "adamw": {}}, device="cpu")
    x, y = samples(0)
    with applied.microbatch():
        output = applied.model(x)
        assert output.dtype is torch.bfloat16
        applied.backward(F.cross_entropy(output, y))
    applied.step()
    assert all(each.dtype is torch.float32 for each in applied.model.parameters())


def test_a_schedule_sets_the_rates_of_an_optimizer_of_ones_own() -> None:
    applied = stepladder.apply(network(), strategies={"schedule": {"warmup_steps": 2}}, device="cpu", num_steps=10)
    assert applied.optimizer is None
    optimizer = torch.optim.SGD(applied.model.parameters(), lr=1.0)
    rates: list[float] = []
    for step in range(3):
        x, y = samples(step)
        with applied.microbatch():
            applied.backward(F.cross_entropy(applied.model(x), y))
        applied.step(optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [applied.program.learning_rate(step) for step in range(3)]
    assert rates[0] < rates[1]


def test_blocks_are_found_and_wrapped() -> None:
    applied = stepladder.apply(network(), strategies={"ac": {}, "adamw": {}}, device="cpu")
    assert applied.program.facts.blocks == ("1.0", "1.1", "1.2")
    wrapped = [name for name, _ in applied.model.named_parameters() if "_checkpoint_wrapped_module" in name]
    assert len(wrapped) == 3 * 4


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError, match="did you mean 'ddp'"):
        stepladder.apply(network(), strategies={"dpd": {}}, device="cpu")
    wrong = {"adamw": {}, "schedule": {}, "chunked_loss": {}, "amp": {"init_scale": 2.0}}
    with pytest.raises(UsageError) as caught:
        stepladder.apply(network(), strategies=wrong, device="cpu")
    said = str(caught.value)
    for part in ("give num_steps", "works in stepladder's own loop only", "init_scale: has no effect"):
        assert part in said
    with pytest.raises(UsageError, match="there is no optimizer"):
        stepladder.apply(network(), strategies={}, device="cpu").step()
    applied = stepladder.apply(network(), strategies={"adamw": {}, "accumulation": {}}, device="cpu")
    with applied.microbatch():
        applied.backward(applied.model(samples(0)[0]).sum())
    with pytest.raises(UsageError, match="after microbatch 1 of 2"):
        applied.step()
