"""The loop calls whom it should, when it should, and ends when it is told."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stepladder.profiling.record import no_span
from stepladder.profiling.spans import Span
from stepladder.strategies.base import Batch, Facts, LossScaling, Program
from stepladder.trainer.loop import StepData, StepResult, Watcher, train
from stepladder.trainer.step import accumulate


class Line(nn.Module):
    """One weight; the loss of a microbatch is `weight * sum of inputs`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


class OnesFeed:
    """Two microbatches of ones a step; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wait(self) -> Sequence[Batch]:
        self.calls.append("wait")
        return [Batch(torch.ones(2), torch.zeros(2)), Batch(torch.ones(4), torch.zeros(4))]

    def to_device(self, microbatches: Sequence[Batch]) -> StepData:
        self.calls.append("to_device")
        return StepData(microbatches, 6.0)

    def run_ahead(self, mark: Any) -> None:
        self.calls.append("run_ahead")


Run = Callable[..., tuple[int, list[StepResult], Any, Program]]


@pytest.fixture
def run() -> Run:
    """Train one weight with SGD of rate 1; returns steps done, all results, the feed and the program."""

    def start(
        num_steps: int = 5,
        first_step: int = 0,
        watchers: Sequence[Watcher] = (),
        wants_norm: Callable[[int], bool] = lambda step: False,
        base_rates: Sequence[float] = (1.0,),
        mark: Any = no_span,
        **changes: Any,
    ) -> tuple[int, list[StepResult], Any, Program]:
        asked: list[bool] = []

        def clip(program: Program, parameters: Any, *, want_norm: bool) -> torch.Tensor | None:
            asked.append(want_norm)
            return parameters[0].grad.clone() if want_norm else None

        program = Program(
            model=Line(),
            facts=Facts(),
            loss=lambda output, batch: output.sum(),
            forward_backward=accumulate,
            clip_gradients=clip,
        )
        program = replace(program, **changes)
        optimizer = torch.optim.SGD(program.model.parameters(), lr=base_rates[0])
        results: list[StepResult] = []
        feed = OnesFeed()
        done = train(
            program,
            optimizer,
            feed,
            num_steps=num_steps,
            first_step=first_step,
            base_rates=base_rates,
            watchers=[Watcher(every=1, look=lambda result: results.append(result)), *watchers],
            wants_norm=wants_norm,
            mark=mark,
        )
        return done, results, feed, program

    return start


def test_each_step_takes_the_mean_gradient_and_clears_it(run: Run) -> None:
    done, results, feed, program = run(3)
    assert done == 3
    assert [float(result.loss_sum) for result in results] == [0.0, -6.0, -12.0]  # weight 0, -1, -2 on six ones
    assert [float(p.detach()) for p in program.model.parameters()] == [-3.0]
    assert all(p.grad is None for p in program.model.parameters())
    assert feed.calls == ["wait", "to_device", "run_ahead"] * 3


@pytest.mark.parametrize("first_step", [0, 4])
def test_watchers_look_at_the_first_every_and_the_last_step(first_step: int, run: Run) -> None:
    seen: dict[str, list[int]] = {"every": [], "first": []}
    watchers = [
        Watcher(every=3, look=lambda result: seen["every"].append(result.step)),
        Watcher(every=4, look=lambda result: seen["first"].append(result.step), at_first=True),
    ]
    done, *_ = run(10, first_step, watchers)
    assert done == 10
    assert seen["every"] == [step for step in (3, 6, 9, 10) if step > first_step]
    assert seen["first"] == [step for step in (1, 4, 8, 10) if step > first_step]


def test_a_true_answer_ends_the_run_after_the_step_and_after_the_other_watchers(run: Run) -> None:
    late: list[int] = []
    stop = Watcher(every=1, look=lambda result: result.step == 2)
    done, results, _, _ = run(9, watchers=[stop, Watcher(every=1, look=lambda result: late.append(result.step))])
    assert done == 2
    assert [result.step for result in results] == late == [1, 2]


def test_a_finished_run_does_nothing_more(run: Run) -> None:
    done, results, feed, _ = run(5, first_step=5)
    assert (done, results, feed.calls) == (5, [], [])


def test_the_norm_is_asked_for_only_in_the_steps_that_want_it(run: Run) -> None:
    _, results, _, _ = run(5, wants_norm=lambda step: step in (1, 4))
    assert [result.step for result in results if result.grad_norm is not None] == [1, 4]
    assert all(float(result.grad_norm) == 1.0 for result in results if result.grad_norm is not None)


def test_the_schedule_sets_the_rate_before_each_step(run: Run) -> None:
    factors = [0.5, 0.5, 2.0, 0.0]
    _, results, _, program = run(4, learning_rate=lambda step: factors[step], base_rates=(0.1,))
    assert [result.learning_rate for result in results] == pytest.approx([0.05, 0.05, 0.2, 0.0])
    assert [float(p.detach()) for p in program.model.parameters()] == pytest.approx([-0.3])


def test_the_gradient_divisor_is_made_good_in_the_loss(run: Run) -> None:
    _, _, _, program = run(1, gradient_divisor=4)
    assert [float(p.detach()) for p in program.model.parameters()] == [-4.0]


def test_loss_scaling_is_undone_before_the_norm_and_owns_the_step(run: Run) -> None:
    said: list[str] = []

    def unscale(optimizer: torch.optim.Optimizer) -> None:
        said.append("unscale")
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad /= 8

    def step(optimizer: torch.optim.Optimizer) -> None:
        said.append("step")
        optimizer.step()

    scaling = LossScaling(scale=lambda loss: 8 * loss, unscale=unscale, step=step)
    _, results, _, program = run(1, loss_scaling=scaling, wants_norm=lambda step: True)
    assert said == ["unscale", "step"]
    assert results[0].grad_norm is not None
    assert float(results[0].grad_norm) == 1.0
    assert [float(p.detach()) for p in program.model.parameters()] == [-1.0]


def test_every_phase_is_marked_in_order(run: Run) -> None:
    marked: list[str] = []

    @contextmanager
    def mark(span: Span) -> Any:
        marked.append(span.label)
        yield

    run(1, watchers=[Watcher(every=1, look=lambda result: None, span=Span.LOGGING)], mark=mark)
    micro = ["forward", "backward"]
    assert [each for each in marked if each != "gradient_sync"] == [
        "data_wait", "host_to_device", *micro, *micro, "clip", "optimizer", "logging",
    ]  # fmt: skip
    assert marked.count("gradient_sync") == 2


def test_only_the_last_microbatch_is_told_that_it_is(run: Run) -> None:
    told: list[bool] = []

    def before(is_last: bool) -> AbstractContextManager[Any]:
        told.append(is_last)
        return torch.enable_grad()

    run(2, before_microbatch=before)
    assert told == [False, True] * 2


@pytest.mark.parametrize("none", [0.0, torch.tensor(0.0)])
def test_a_step_without_a_label_that_counts_leaves_the_weights_finite(
    none: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnesFeed, "to_device", lambda feed, batches: StepData(batches, none))
    _, results, _, program = run(2, loss=lambda output, batch: 0 * output.sum())
    assert [float(p.detach()) for p in program.model.parameters()] == [0.0]
    assert [float(result.num_tokens) for result in results] == [0.0, 0.0]
