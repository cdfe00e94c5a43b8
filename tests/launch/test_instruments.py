"""What `stepladder run` leaves for whoever measures it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.launch.cli import main
from stepladder.launch.errors import ExitCode, UsageError
from stepladder.launch.instruments import Instruments, StepTimes
from stepladder.trainer import clock as clocks
from stepladder.trainer.clock import StepClock
from stepladder.trainer.loop import StepResult
from stepladder.trainer.metrics import Meter, Record


def result(step: int, loss: float, num_tokens: Any = 2.0) -> StepResult:
    return StepResult(step, torch.tensor(loss), num_tokens, None, 0.1)


def test_a_clock_tells_the_time_between_the_ends_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 11.0, 13.0, 16.0])
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(ticks))
    clock = StepClock(device=torch.device("cpu"))
    clock.start()
    place = torch.zeros(())
    for step in (1, 2, 3):
        place.fill_(float(step))  # as a captured graph does: every loss in the same place
        clock.look(StepResult(step, place, torch.tensor(4.0), None, 0.1))
    assert clock.step_s() == [1.0, 2.0, 3.0]
    assert clock.loss_sums().tolist() == [1.0, 2.0, 3.0]
    assert clock.num_tokens() == [4.0] * 3


def test_a_clock_without_steps_has_no_times() -> None:
    clock = StepClock(device=torch.device("cpu"))
    clock.start()
    assert clock.step_s() == []
    assert clock.loss_sums().tolist() == []


def test_steps_are_those_of_the_recipe_unless_fewer_are_asked_for() -> None:
    assert Instruments().num_steps(8) == 8
    assert Instruments(stop_after=5).num_steps(8) == 5
    assert Instruments(stop_after=50).num_steps(8) == 8


def test_what_cannot_be_is_refused_before_anything_starts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (("--stop-after", "0"), ("--step-times", str(tmp_path / "none" / "file"))):
        assert main(["run", str(tiny), *option]) == ExitCode.USAGE
        assert capsys.readouterr().err.startswith(f"error: {option[0]} {option[1]}: ")
    with pytest.raises(UsageError):
        Instruments(stop_after=-1).check()


def test_a_first_step_that_compiles_does_not_make_the_ranks_ask_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question costs a collective and a wait; they come by the time of a step, not by that of the first one."""
    now = [0.0]
    monkeypatch.setattr("stepladder.trainer.metrics.time.perf_counter", lambda: now[0])
    asked: list[int] = []
    records: list[Record] = []

    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(step)
        return tensor * 2

    meter = Meter(
        num_steps=1000,
        first_step=0,
        tokens_per_step=1,
        flops_per_token=1.0,
        peak=None,
        num_ranks=2,
        device=torch.device("cpu"),
        reduce=reduce,
        waited_s=lambda: 0.0,
        stop_requested=lambda: False,
        write=records.append,
    )
    meter.start()
    for step in range(1, 301):
        now[0] += 60.0 if step == 1 else 0.05
        if step == 1:
            meter.look(result(step, 1.0))
        assert not meter.ask(result(step, 1.0))
    assert asked == [1, 2, 100, 200, 300]  # every 5 seconds, once steps of 50 ms are known


@pytest.mark.slow
def test_two_ranks_leave_the_slower_one_and_the_losses_of_their_log(
    tiny: Path, tmp_path: Path, stepladder: Any
) -> None:
    two = ["--ranks", "2", "--set", "strategies.ddp={}", "--set", "batch.microbatch_size=2"]
    schedule = ["--set", "strategies.schedule.kind=linear", "--stop-after", "6"]
    file = tmp_path / "steps.json"
    done = stepladder("run", str(tiny), *two, *schedule, "--out", str(tmp_path / "two"), "--step-times", str(file))
    assert done.returncode == 0, done.stderr
    found = StepTimes.read(file)
    records = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [each["loss"] for each in records] == list(found.losses)
    assert len(found.step_s) == len(records) == 6
    assert (found.num_ranks, found.tokens_per_step) == (2, 128)
    assert json.loads((tmp_path / "two" / "exit.json").read_text()) == {"code": 0, "steps": 6, "reason": "done"}
    rates = [each["learning_rate"] for each in records]
    assert rates[-1] == pytest.approx(rates[0] * (1 - 0.9 * 6 / 8) / (1 - 0.9 / 8), rel=1e-6)  # of 8 steps, not of 6
