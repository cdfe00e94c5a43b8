"""The same steps, but the gradients of all parameters never exist at once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from parity import Case, outcome, source

from stepladder.launch.build import build_program
from stepladder.launch.errors import UsageError
from stepladder.launch.ranks import Ranks, agree
from stepladder.profiling.record import no_span
from stepladder.strategies.base import Batch, Program
from stepladder.strategies.errors import StrategyError
from stepladder.strategies.optimizer_in_backward import OptimizerInBackward
from stepladder.trainer.checkpoint.config import CheckpointConfig
from stepladder.trainer.checkpoint.manager import Checkpoints, last_checkpoint

SCHEDULE = {"schedule": {"kind": "cosine", "warmup_steps": 3}}
PLAIN: dict[str, Any] = {"clip": False} | SCHEDULE
IN_BACKWARD: dict[str, Any] = PLAIN | {"optimizer_in_backward": {}}
ONE: dict[str, Any] = {"num_ranks": 1}
TWO: dict[str, Any] = {"num_ranks": 2, "mesh": {"dp_shard": 2}}


def local(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor)


def trained(case: Case) -> dict[str, Any]:
    """Losses of ten steps by the trainer's loop, the weights after them, and the most gradient bytes at one time."""
    programs: list[Program] = []
    peak = [0]

    def watch(program: Program) -> Program:
        programs.append(program)
        parameters = list(program.model.parameters())

        def look(parameter: torch.Tensor) -> None:
            alive = sum(local(p.grad).numel() * p.grad.element_size() for p in parameters if p.grad is not None)
            peak[0] = max(peak[0], alive)

        for parameter in parameters:  # before the optimizer's own hook
            parameter.register_post_accumulate_grad_hook(look)
        return program

    parity.whole_gradients = lambda program: {}  # after backward there are none to compare
    losses, _ = outcome(case, watch)
    weights = {name: local(p.detach()).clone() for name, p in programs[0].model.named_parameters()}
    sizes = {name: weight.numel() * weight.element_size() for name, weight in weights.items()}
    return {"losses": losses, "weights": weights, "peak": peak[0], "sizes": sizes}


def both(cases: list[tuple[Case, Case]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(trained(plain), trained(in_backward)) for plain, in_backward in cases]


def pair(layout: dict[str, Any], **strategies: Any) -> tuple[Case, Case]:
    return Case(**layout, strategies=PLAIN | strategies), Case(**layout, strategies=IN_BACKWARD | strategies)


def assert_same_steps(plain: dict[str, Any], in_backward: dict[str, Any]) -> None:
    assert plain["losses"][-1] < 0.9 * plain["losses"][0]
    assert in_backward["losses"] == plain["losses"]
    for name, weight in plain["weights"].items():
        assert torch.equal(in_backward["weights"][name], weight), name


@pytest.fixture(autouse=True)
def _gradients_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "whole_gradients", parity.whole_gradients)  # `trained` replaces it


@pytest.mark.parametrize(
    "strategies",
    [
        {},
        {"adamw": {"learning_rate": 1e-2, "implementation": "for-loop"}},
        {"ac": {}},
        {"amp": {"dtype": "bf16"}},
    ],
)
def test_one_rank_takes_the_same_steps_with_one_gradient_at_a_time(strategies: dict[str, Any]) -> None:
    plain, in_backward = (trained(case) for case in pair(ONE, **strategies))
    assert_same_steps(plain, in_backward)
    assert plain["peak"] == sum(plain["sizes"].values())
    assert in_backward["peak"] == max(plain["sizes"].values())


def test_a_tied_weight_is_updated_once_with_the_whole_gradient() -> None:
    tied = ONE | {"model": parity.MODEL | {"tie_embeddings": True}}
    assert_same_steps(*(trained(case) for case in pair(tied)))


def test_shards_take_the_same_steps(run_ranks: Any, tmp_path: Path) -> None:
    replicated = {"num_ranks": 2, "mesh": {"dp_replicate": 2, "dp_shard": 1}}
    apart = {"num_ranks": 2, "mesh": {"dp_replicate": 2}}
    cases = [
        pair(TWO, fsdp2={}),
        pair(TWO, fsdp2={"param_dtype": "bf16"}, ac={}),
        pair(replicated, fsdp2={}),
        pair(apart, local_sgd={"every": 5}),
    ]
    found, (on, again) = run_ranks(shards, 2, cases, str(tmp_path))
    assert len(found) == 4
    for plain, in_backward in found:
        assert_same_steps(plain, in_backward)
        assert plain["peak"] == sum(plain["sizes"].values())
        assert in_backward["peak"] == max(plain["sizes"].values())
    assert on[0] > on[-1]
    assert on == again


def shards(cases: list[tuple[Case, Case]], folder: str) -> Any:
    return both(cases), resumed(Case(**TWO, strategies=IN_BACKWARD | {"fsdp2": {}}), folder)


def resumed(case: Case, folder: str) -> tuple[list[float], list[float]]:
    """Losses of three steps after a checkpoint: going on, and beginning again from it."""
    rank = torch.distributed.get_rank() if case.num_ranks > 1 else 0
    ranks = Ranks(rank=rank, local_rank=rank, num_ranks=case.num_ranks)
    batch = Batch(*source(case).__getitems__(list(range(4)))[:2])

    def begun() -> tuple[Callable[[int, float], list[float]], Checkpoints]:
        program = build_program(case.plan(), ranks, torch.device("cpu"))
        assert program.make_optimizer is not None
        optimizer = program.make_optimizer(program.model)
        checkpoints = Checkpoints(
            folder=Path(folder),
            program=program,
            optimizer=optimizer,
            device=torch.device("cpu"),
            rank=rank,
            num_ranks=case.num_ranks,
            agree=lambda problem: agree(ranks, problem),
            identity={},
        )

        def steps(number: int, rate: float) -> list[float]:
            losses: list[float] = []
            for _ in range(number):
                for group in optimizer.param_groups:
                    group["lr"] = rate
                losses.append(float(program.forward_backward(program, [batch], 1e-3, no_span)))
                optimizer.step()
                optimizer.zero_grad()
            return losses

        return steps, checkpoints

    (steps, first), (steps_again, second) = begun(), begun()
    steps(2, 1e-2)
    first.save(2, CheckpointConfig())
    assert second.load(last_checkpoint(second.folder)) == 2
    return steps(3, 5e-3), steps_again(3, 5e-3)


def test_one_rank_goes_on_from_a_checkpoint_with_the_rate_that_the_loop_sets(tmp_path: Path) -> None:
    on, again = resumed(Case(**ONE, strategies=IN_BACKWARD), str(tmp_path))
    assert on[0] > on[-1]
    assert on == again


@pytest.mark.parametrize(
    ("strategies", "layout", "beside"),
    [
        ({"clip": {}}, ONE, "strategies.clip"),
        ({"accumulation": {}}, ONE, "strategies.accumulation"),
        ({"ddp": {}}, {"num_ranks": 2}, "strategies.ddp"),
        ({"fsdp2": {}, "tp": {}}, {"num_ranks": 2, "mesh": {"tp": 2}}, "mesh.tp"),
        ({"fsdp2": {}, "pp": {}}, {"num_ranks": 2, "mesh": {"pp": 2}}, "mesh.pp"),
        ({"amp": {"dtype": "fp16"}}, ONE, "strategies.amp"),
    ],
)
def test_what_needs_all_gradients_is_refused(strategies: Any, layout: Any, beside: str) -> None:
    with pytest.raises(UsageError, match=f"cannot work beside {beside}"):
        Case(**layout, strategies=IN_BACKWARD | strategies).plan()


def test_gradients_that_are_completed_later_are_refused(make_program: Any, make_run: Any) -> None:
    program = make_program()
    program = replace(program, after_backward=(lambda: None,), make_optimizer=lambda model: None)
    with pytest.raises(StrategyError, match="completes the gradients after backward"):
        OptimizerInBackward().apply(program, make_run())
