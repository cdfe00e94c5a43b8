"""What DDP really sends, and when: counted on two ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stepladder.profiling.record import no_span
from stepladder.strategies.accumulation import Accumulation
from stepladder.strategies.assemble import apply_all
from stepladder.strategies.base import Batch, Facts, Program, Run
from stepladder.strategies.clip import measure_norm
from stepladder.strategies.ddp import DDP
from stepladder.strategies.mesh import Axis, build_mesh
from stepladder.strategies.names import canonical_names
from stepladder.trainer.step import accumulate

WIDTH, DEPTH = 300, 6  # a layer has 0.34 MiB, the model 2.1 MiB


class Tower(nn.Module):
    """Equal layers, and one that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)))
        self.unused: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def squares(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    return output.square().sum()


def ddp_facts(keys: dict[str, Any], num_microbatches: int, unused: bool) -> dict[str, Any]:
    """What one step of a DDP model sends, and how its gradients lie in memory."""
    import torch.distributed as dist

    degrees = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: 2}
    run = Run(
        device_type="cpu",
        degrees=degrees,
        facts=Facts(),
        num_steps=1,
        tokens_per_step=1,
        seed=0,
        active=frozenset({"ddp"}),
        mesh=build_mesh("cpu", degrees),
        device=torch.device("cpu"),
    )
    torch.manual_seed(0)
    model = Tower()
    if unused:
        model.unused = nn.Linear(2, 2)
    before = canonical_names(model)
    program: Any = Program(
        model=model, facts=Facts(), loss=squares, forward_backward=accumulate, clip_gradients=measure_norm
    )
    strategies = _strategies(ddp=DDP(**keys))
    if num_microbatches > 1:
        strategies = _strategies(ddp=DDP(**keys), accumulation=Accumulation(num_microbatches=num_microbatches))
    program = apply_all(program, strategies, run)
    buckets: list[int] = []

    def count(state, bucket):  # type: ignore  # DDP would check annotations
        buckets.append(bucket.buffer().numel())
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / 2)

    if not keys.get("static_graph"):
        program.model.register_comm_hook(None, count)
    rank = dist.get_rank()
    error = ""
    for step in range(2):  # buckets are laid out anew after the first step
        buckets.clear()
        program.model.zero_grad(set_to_none=True)
        microbatches = [
            Batch(torch.full((2, WIDTH), 0.01 * (1 + i + 10 * rank + step)), torch.zeros(2))
            for i in range(num_microbatches)
        ]
        try:
            loss = program.forward_backward(program, microbatches, float(program.gradient_divisor), no_span)
        except RuntimeError as raised:
            error = str(raised)
            break
    gradients = [p.grad for p in program.model.module.layers.parameters()]
    dist.barrier()
    return {
        "names kept": canonical_names(program.model) == before,
        "divisor": program.gradient_divisor,
        "buckets": list(buckets),
        "storages": len({g.untyped_storage().data_ptr() for g in gradients if g is not None}),
        "gradient": None if error else gradients[0],
        "loss": None if error else float(loss),  # pyright: ignore
        "error": error,
    }


def _strategies(**each: Any) -> Any:
    from stepladder.strategies import Strategies

    return Strategies(**each)


CASES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "one bucket": ({}, 1, False),
    "small buckets": ({"bucket_mib": 1}, 1, False),
    "accumulation": ({"bucket_mib": 1}, 3, False),
    "no overlap": ({"bucket_mib": 1, "overlap": False}, 1, False),
    "no view": ({"gradient_as_bucket_view": False}, 1, False),
    "static": ({"static_graph": True}, 1, True),
    "unused found": ({"find_unused_parameters": True}, 1, True),
    "unused": ({}, 1, True),
}


def all_facts() -> dict[str, dict[str, Any]]:
    return {name: ddp_facts(*case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def facts(run_ranks: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    return run_ranks(all_facts, 2)


def whole_gradient(num_microbatches: int) -> torch.Tensor:
    """Gradient of the first layer over both ranks' microbatches of the second step, in one process."""
    torch.manual_seed(0)
    model = Tower()
    for rank in range(2):
        for i in range(num_microbatches):
            model(torch.full((2, WIDTH), 0.01 * (2 + i + 10 * rank))).square().sum().backward()
    grad = next(model.parameters()).grad
    assert grad is not None
    return grad


def test_gradients_are_the_sum_over_all_ranks_and_microbatches(facts: dict[str, dict[str, Any]]) -> None:
    for name, (_, num_microbatches, _) in CASES.items():
        if name != "unused":
            torch.testing.assert_close(facts[name]["gradient"], whole_gradient(num_microbatches), rtol=1e-5, atol=1e-8)
            assert facts[name]["divisor"] == 2


def test_accumulation_sends_every_gradient_exactly_once_a_step(facts: dict[str, dict[str, Any]]) -> None:
    parameters = DEPTH * WIDTH * WIDTH
    for name in ("one bucket", "small buckets", "accumulation", "no overlap", "no view"):
        assert sum(facts[name]["buckets"]) == parameters, name
    assert facts["accumulation"]["buckets"] == facts["small buckets"]["buckets"]


def test_bucket_size_and_overlap_decide_how_many_messages_there_are(facts: dict[str, dict[str, Any]]) -> None:
    assert len(facts["small buckets"]["buckets"]) >= 2
    assert len(facts["one bucket"]["buckets"]) < len(facts["small buckets"]["buckets"])
    assert len(facts["no overlap"]["buckets"]) == 1  # nothing is sent before the last gradient is there


def test_gradients_live_in_the_buckets_unless_told_otherwise(facts: dict[str, dict[str, Any]]) -> None:
    assert facts["one bucket"]["storages"] == len(facts["one bucket"]["buckets"])
    assert facts["no view"]["storages"] == DEPTH


def test_a_parameter_without_gradient_needs_one_of_the_two_options(facts: dict[str, dict[str, Any]]) -> None:
    assert "not used in producing" in facts["unused"]["error"]
    assert not facts["unused found"]["error"]
    assert not facts["static"]["error"]


def test_the_names_stay(facts: dict[str, dict[str, Any]]) -> None:
    assert all(each["names kept"] for each in facts.values())
