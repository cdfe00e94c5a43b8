"""The experiment with segments that a formula measures: decisions, failures, budgets, and being killed at any point."""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from stepladder.launch.compare.arms import Arm, parse_arm
from stepladder.launch.compare.comparison import Asked, compare
from stepladder.launch.compare.declared import Declared
from stepladder.launch.compare.estimate import summarise
from stepladder.launch.compare.experiment import ExperimentError, Measure, Told
from stepladder.launch.compare.judge import Kind
from stepladder.launch.compare.results import Results
from stepladder.launch.compare.segment import Measured, Steps
from stepladder.launch.compare.sequential import Protocol
from stepladder.launch.errors import UsageError
from stepladder.launch.instruments import StepTimes
from stepladder.launch.plan import make_plan

ARMS = ("fast=run.gc_every=1", "slow=run.gc_every=2", "same=run.gc_every=3")
FACTORS = {"baseline": 1.0, "fast": 0.8, "slow": 1.1, "same": 1.0}


class Killed(BaseException):
    """What a SIGKILL does to the loop: nothing after it happens."""


class Machine:
    """Measures by a formula: noise is drawn from the name of the segment, so that it is the same after a restart."""

    def __init__(
        self,
        *,
        factors: dict[str, float] = FACTORS,
        failing: Callable[[str, str], str | None] = lambda segment, arm: None,
        kill_at: int | None = None,
        seconds: float = 10.0,
    ) -> None:
        self.factors, self.failing, self.kill_at, self.seconds = factors, failing, kill_at, seconds
        self.order: list[str] = []
        self.timeouts: list[float | None] = []

    def __call__(self, arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
        if self.kill_at is not None and len(self.order) == self.kill_at:
            folder.mkdir(parents=True)
            (folder / "half-written").touch()
            raise Killed
        self.order.append(folder.name)
        self.timeouts.append(timeout_s)
        if kind := self.failing(folder.name, arm.name):
            return Measured(arm=arm.name, seconds=self.seconds, failure=kind, reason=f"{kind} it was")
        noise = random.Random(hashlib.sha256(folder.name.encode()).digest())
        level = 0.1 * self.factors[arm.name] * (1 + noise.gauss(0, 0.003))
        step_s = [level * (1 + noise.gauss(0, 0.002)) for _ in range(steps.num_steps)]
        step_s[0] += 5.0
        times = StepTimes(
            step_s=tuple(step_s),
            losses=(1.0,) * steps.num_steps,
            began_at=2.0,
            memory_gib=1.5,
            waited_s=0.0,
            num_ranks=1,
            device="cpu",
            tokens_per_step=128,
            flops_per_token=1.0,
            peak_flops=None,
        )
        segment = summarise(step_s, num_steps=steps.window, max_warmup_steps=steps.max_warmup)
        return Measured(arm=arm.name, seconds=self.seconds, segment=segment, times=times, startup_s=2.0)


def declared(**more: object) -> Declared:
    return Declared(**{"profile": False, **more})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Callable[..., Results]:
    """`run(machine, arms, ...)`: a comparison in a folder of its own."""

    def call(machine: Measure, arms: Sequence[str] = ARMS, *, told: Told | None = None, **more: object) -> Results:
        specs = tuple(map(parse_arm, arms))
        options = {"declared": declared(), "out": tmp_path / "out", "guarded": False, **more}
        asked = Asked(recipe=str(tiny), arms=specs, **options)  # type: ignore[arg-type]
        return compare(asked, told=told, measure=machine, make_plan=partial(make_plan, num_gpus=0))

    return call


def kinds(results: Results) -> dict[str, Kind]:
    return {arm.name: arm.verdict.kind for arm in results.arms if arm.verdict}


def test_the_truth_is_found_with_fewer_pairs_where_it_is_obvious(run: Callable[..., Results], tmp_path: Path) -> None:
    machine = Machine()
    results = run(machine)
    assert kinds(results) == {"fast": Kind.FASTER, "slow": Kind.SLOWER, "same": Kind.SAME}
    baseline, fast, slow, same = results.arms
    assert fast.verdict is not None
    assert same.verdict is not None
    assert fast.num_segments == fast.verdict.num_pairs < same.num_segments <= 16
    assert fast.verdict.low is not None
    assert fast.verdict.low < 0.8 < (fast.verdict.high or 0)
    assert baseline.step_s == pytest.approx(0.1, rel=0.01)
    assert slow.step_s == pytest.approx(0.11, rel=0.01)
    assert fast.first_compile_s == pytest.approx(5.0, rel=0.02)
    assert machine.order[:4] == [f"pilot-000-{name}" for name in FACTORS]
    assert [name.split("-")[0] for name in machine.order[4:20]] == ["calibration"] * 16
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(
        json.dumps(results.to_json() | {"budget_s": None, "command": []})
    )


def test_each_round_runs_the_baseline_and_every_arm_that_is_open(run: Callable[..., Results]) -> None:
    machine = Machine()
    run(machine)
    pairs = [name.split("-", 2)[1:] for name in machine.order if name.startswith("pair")]
    rounds = sorted({index for index, _ in pairs})
    assert rounds == [f"{i:03d}" for i in range(len(rounds))]
    open_arms = [{arm for index, arm in pairs if index == each} for each in rounds]
    assert open_arms[0] == set(FACTORS)
    assert all("baseline" in arms for arms in open_arms)
    assert all(later <= earlier for earlier, later in itertools.pairwise(open_arms))
    first, second = ([arm for index, arm in pairs if index == each] for each in rounds[:2])
    assert first == second[::-1]


@pytest.mark.parametrize("kill_at", [0, 1, 3, 4, 9, 19, 20, 23, 30])
def test_a_comparison_killed_at_any_point_goes_on_as_if_it_had_not_been(
    run: Callable[..., Results], tmp_path: Path, kill_at: int
) -> None:
    whole = run(Machine(), out=tmp_path / "whole")
    (tmp_path / "cache" / "calibrations").rename(tmp_path / "kept")
    first = Machine(kill_at=kill_at)
    with pytest.raises(Killed):
        run(first)
    second = Machine()
    resumed = run(second, resume=True)
    assert len(first.order) == kill_at
    assert not set(first.order) & set(second.order)  # nothing finished is measured again
    strip = {"folder": None, "budget_s": None}
    assert resumed.to_json() | strip == whole.to_json() | strip


def test_an_ended_comparison_measures_nothing_more(run: Callable[..., Results]) -> None:
    ended = run(Machine())
    second = Machine()
    assert run(second, resume=True).to_json() == ended.to_json()
    assert second.order == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": ARMS[:2]}, "arm same is missing"),
        ({"arms": (*ARMS, "more=run.gc_every=9")}, "arm more is new"),
        ({"arms": (*ARMS[:2], "same=run.gc_every=9")}, "the recipe of arm same is another one"),
        ({"declared": declared(seed=1)}, "seed was 0, is 1"),
        ({"declared": declared(protocol=Protocol(max_pairs=8))}, "protocol was"),
        ({"overrides": ("run.threads_per_rank=1",)}, "the recipe of arm baseline is another one"),
    ],
)
def test_another_comparison_is_not_resumed(run: Callable[..., Results], change: dict[str, object], said: str) -> None:
    with pytest.raises(Killed):
        run(Machine(kill_at=6))
    with pytest.raises(UsageError, match=said):
        run(Machine(), resume=True, **change)


def test_a_folder_is_not_used_twice_and_only_a_comparison_is_resumed(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds no comparison"):
        run(Machine(), resume=True)
    with pytest.raises(Killed):
        run(Machine(kill_at=2))
    with pytest.raises(UsageError, match="add --resume to continue it"):
        run(Machine())


def test_an_arm_that_fails_its_pilot_is_a_result_and_the_others_go_on(run: Callable[..., Results]) -> None:
    results = run(Machine(failing=lambda segment, arm: "out of memory" if arm == "slow" else None))
    failed = next(arm for arm in results.arms if arm.name == "slow")
    assert failed.failure == "out of memory: out of memory it was"
    assert failed.num_segments == 0
    assert kinds(results)["fast"] is Kind.FASTER
    assert kinds(results)["same"] is Kind.SAME


def test_one_failed_segment_costs_its_pair_and_a_second_one_the_arm(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    once = run(Machine(failing=lambda segment, arm: "crash" if segment == "pair-001-same" else None))
    same = once.arms[3]
    assert (same.num_failed, same.failure) == (1, None)
    assert kinds(once)["same"] is Kind.SAME
    twice = run(
        Machine(failing=lambda segment, arm: "crash" if segment in ("pair-001-same", "pair-003-same") else None),
        out=tmp_path / "twice",
    )
    assert twice.arms[3].failure == "crash: crash it was"
    assert twice.arms[3].num_segments == 3 - 1
    assert kinds(twice)["fast"] is Kind.FASTER


def test_a_baseline_that_fails_ends_the_comparison_with_a_sentence(run: Callable[..., Results], tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="the baseline fails, crash"):
        run(Machine(failing=lambda segment, arm: "crash" if arm == "baseline" else None))
    fails_later = Machine(
        failing=lambda segment, arm: "crash" if segment.startswith("pair") and arm == "baseline" else None
    )
    results = run(fails_later, out=tmp_path / "later")
    assert results.outcome.ended == "the baseline failed 2 times"
    assert set(kinds(results).values()) == {Kind.UNDECIDED}


def test_a_calibration_without_enough_pairs_ends_it_with_a_sentence(run: Callable[..., Results]) -> None:
    failing = Machine(failing=lambda segment, arm: "crash" if segment.startswith("calibration") else None)
    with pytest.raises(ExperimentError, match="too many segments of the baseline fail"):
        run(failing)


def test_a_calibration_is_kept_for_the_next_comparison_of_this_recipe(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    run(Machine())
    again = Machine()
    lines: list[str] = []
    run(again, ARMS[:1], out=tmp_path / "again", told=Told(say=lines.append))
    assert not [name for name in again.order if name.startswith("calibration")]
    assert any(line.startswith("noise floor kept from ") for line in lines)
    anew, other = Machine(), Machine()
    run(anew, ARMS[:1], out=tmp_path / "anew", calibrate_anew=True)
    run(other, ("fast=run.gc_every=4",), out=tmp_path / "other", overrides=("run.threads_per_rank=1",))
    for machine in (anew, other):
        assert len([name for name in machine.order if name.startswith("calibration")]) == 16


def test_what_can_be_found_is_told_before_the_first_pair(run: Callable[..., Results]) -> None:
    machine = Machine()
    told: list[tuple[int, str]] = []
    run(machine, told=Told(say=lambda line: told.append((len(machine.order), line))))
    (place,) = [num for num, line in told if line.startswith("prospect: 16 pairs find a difference of ")]
    assert machine.order[place - 1].startswith("calibration")
    assert machine.order[place].startswith("pair-000")


def test_windows_are_as_long_as_the_fastest_arm_needs(run: Callable[..., Results]) -> None:
    results = run(Machine(), declared=declared(window_s=4.0))
    assert results.outcome.steps.window == pytest.approx(4.0 / 0.08, abs=2)
    assert results.outcome.steps.max_warmup <= 40


def test_a_hanging_segment_is_ended_by_what_the_pilot_took(run: Callable[..., Results]) -> None:
    machine = Machine(seconds=50.0)
    run(machine, budget_s=9000.0)
    assert machine.timeouts[:4] == [9000.0] + [1800.0] * 3
    assert set(machine.timeouts[4:]) == {500.0}


def test_arms_with_more_tokens_in_a_step_are_held_against_each_other_by_the_token(run: Callable[..., Results]) -> None:
    def measure(arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
        found = machine(arm, folder, steps, timeout_s=timeout_s)
        assert found.times is not None
        return replace(found, times=replace(found.times, tokens_per_step=arm.plan.tokens_per_step))

    machine = Machine(factors={"baseline": 1.0, "double": 1.6})  # twice the tokens in 1.6 times the time
    results = run(measure, ("double=batch.microbatch_size=8",), changes_workload=("batch.microbatch_size",))
    double = results.arms[1]
    assert double.verdict is not None
    assert double.verdict.kind is Kind.FASTER
    assert double.verdict.ratio == pytest.approx(0.8, rel=0.01)
    assert double.tokens_per_s == pytest.approx(256 / 0.16, rel=0.01)


@pytest.mark.parametrize(("budget_s", "said"), [(15.0, "shorter than one pair"), (500.0, r"allows 7 pairs|allows \d")])
def test_a_budget_that_cannot_end_in_a_verdict_is_refused(
    run: Callable[..., Results], budget_s: float, said: str
) -> None:
    machine = Machine()
    if budget_s == 500.0:
        budget_s = 4 * 10 + 16 * 10 + 3 * 40 + 1  # pilots, calibration, three rounds
        said = "allows 3 pairs of 40 s after 160 s of calibration, and a verdict needs 4"
    with pytest.raises(UsageError, match=said):
        run(machine, budget_s=budget_s)
    assert len(machine.order) == 4


def test_a_budget_is_refused_before_anything_runs_where_an_earlier_calibration_tells(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    run(Machine())
    machine = Machine()
    with pytest.raises(UsageError, match="one pair took 20 s here"):
        run(machine, budget_s=15.0, out=tmp_path / "again")
    assert machine.order == []


def test_a_budget_ends_the_pairs_and_what_is_there_is_judged(run: Callable[..., Results]) -> None:
    noisy = {"baseline": 1.0, "fast": 0.8, "same": 1.004}
    machine = Machine(factors=noisy)
    budget_s = 3 * 10 + 16 * 10 + 5 * 30 + 5.0
    results = run(machine, (ARMS[0], ARMS[2]), budget_s=budget_s)
    assert results.outcome.ended == f"the budget of {budget_s:.0f} s is spent"
    assert results.spent_s <= budget_s
    assert kinds(results)["fast"] is Kind.FASTER
    assert kinds(results)["same"] in (Kind.UNDECIDED, Kind.SAME)
