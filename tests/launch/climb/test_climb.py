"""The climber on made-up machines, whose best recipe is known by trying all of them."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from landscape import TINY, Judge, Killed, Landscape, on_made_up_machines

from stepladder.launch.climb.climb import climb
from stepladder.launch.climb.climber import Climb
from stepladder.launch.climb.profile import Advice, Profile
from stepladder.launch.climb_command import lines
from stepladder.launch.compare.arms import Arm
from stepladder.launch.compare.bench import Tools
from stepladder.launch.compare.comparison import Asked
from stepladder.launch.compare.declared import Declared
from stepladder.launch.compare.estimate import summarise
from stepladder.launch.compare.experiment import ExperimentError
from stepladder.launch.compare.segment import Measured, Steps
from stepladder.launch.compare.sequential import Protocol
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import read, recipe_hash
from stepladder.launch.schema import Recipe

pytestmark = pytest.mark.usefixtures("made_up_machines")

SLOW = """
[strategies.accumulation]
num_microbatches = 16
"""
SLOWEST = ("batch.microbatch_size=1", "run.log_every=1", "strategies.adamw.implementation=for-loop")
SWIFT = ("run.log_every=50", "batch.microbatch_size=4", "strategies.accumulation=false")


def step_s(recipe: Recipe) -> float:
    """Products, pointwise work, optimizer, logging and the overhead of each microbatch, in seconds of a step."""
    strategies = recipe.strategies
    products = 0.060 * (0.5 if strategies.amp else 1.0)
    pointwise = 0.020 * (0.7 if strategies.amp else 1.0) * (0.4 if strategies.compile else 1.0)
    optimizer = {"for-loop": 0.006, "foreach": 0.002, "fused": 0.001}[strategies.adamw.implementation]
    logging = 0.004 if recipe.run.log_every < 10 else 0.0
    return products + pointwise + optimizer + logging + 0.001 * recipe.num_microbatches


def best_of_all(base: Recipe) -> float:
    """The exhaustive grid over what the formula depends on."""
    found: list[float] = []
    for amp, compiled, implementation, log_every, num in itertools.product(
        (None, True), (None, True), ("for-loop", "foreach", "fused"), (1, 50), (16, 8, 4, 2, 1)
    ):
        adamw = replace(base.strategies.adamw, implementation=implementation)
        accumulation = replace(base.strategies.accumulation, num_microbatches=num)
        strategies = replace(
            base.strategies, amp=amp, compile=compiled, adamw=adamw, accumulation=accumulation if num > 1 else None
        )
        found.append(step_s(replace(base, strategies=strategies, run=replace(base.run, log_every=log_every))))
    return min(found)


def profiled(arm: Arm, folder: Path) -> Profile:
    """What a profile of that formula shows."""
    whole, recipe = step_s(arm.recipe), arm.recipe
    products = 0.060 * (0.5 if recipe.strategies.amp else 1.0)
    optimizer = {"for-loop": 0.006, "foreach": 0.002, "fused": 0.001}[recipe.strategies.adamw.implementation]
    advice = ()
    if optimizer > 0.005:
        remedy = 'strategies.adamw.implementation = "fused"'
        advice = (Advice(title="The optimizer is not fused", evidence=("as planted",), remedy=remedy, share=0.05),)
    idle = 0.001 * recipe.num_microbatches + (0.004 if recipe.run.log_every < 10 else 0.0)
    parts = {"matrix products": products, "optimizer": optimizer, "idle": idle}
    parts["pointwise"] = whole - sum(parts.values())
    return Profile(shares={part: each / whole for part, each in parts.items()}, advice=advice)


Call = Callable[..., Climb]


def begin(
    folder: Path, machine: Landscape, *, judge: Judge | None = None, only: Sequence[str] = (), **more: object
) -> Climb:
    """A climb in `folder/out`."""
    recipe = folder / "slow.toml"
    recipe.write_text(TINY + SLOW)
    declared = Declared(profile=False, calibration_pairs=4, protocol=Protocol(max_pairs=8))
    asked = Asked(recipe=str(recipe), arms=(), declared=declared)
    asked = replace(asked, **{"out": folder / "out", "budget_s": 36000.0, **more})  # type: ignore[arg-type]
    tools = Tools(measure=machine, guard=judge or Judge(), make_plan=partial(make_plan, num_gpus=0))
    return climb(asked, only=only, tools=tools, take_profile=profiled)


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """`call(machine, judge=...)`: a climb from a recipe in which only BF16 and compilation can win."""

    def from_there(machine: Landscape, **more: object) -> Climb:
        return begin(tmp_path, machine, **{"overrides": SWIFT, **more})  # type: ignore[arg-type]

    return from_there


@dataclass(frozen=True)
class Whole:
    """A climb from the slowest recipe to its end."""

    found: Climb
    machine: Landscape
    base: Recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder, machine = tmp_path_factory.mktemp("whole"), Landscape(step_s)
    with pytest.MonkeyPatch.context() as monkeypatch:
        on_made_up_machines(folder, monkeypatch)
        found = begin(folder, machine, overrides=SLOWEST)
        yield Whole(found=found, machine=machine, base=read(str(folder / "slow.toml"), SLOWEST))


def test_the_climber_reaches_the_best_of_all_combinations(whole: Whole) -> None:
    found, machine = whole.found, whole.machine
    recipe = read(str(found.recipe))
    assert step_s(recipe) <= best_of_all(whole.base) / 0.95
    assert recipe.strategies.amp
    assert recipe.strategies.compile
    assert recipe.batch.microbatch_size * recipe.num_microbatches == 16  # at equal tokens
    assert found.results["ended"] == "no further proposal is worth its cost"
    assert found.final is not None
    assert found.final.multiplier is not None
    assert found.final.multiplier.low < step_s(whole.base) / step_s(recipe) < found.final.multiplier.high
    assert len(machine.order) < 0.25 * 120 * 5  # the grid with one pilot and four pairs for each combination
    assert machine.order[0] == "out/screens/stack-00-0"


def test_what_can_win_most_for_its_cost_is_tried_first(whole: Whole) -> None:
    first, second = whole.found.steps[:2]
    assert first.share_before == second.share_before or first.kept
    assert first.bound > 0.5
    amp = next(step for step in whole.found.steps if step.set == ("strategies.amp={}",))
    assert "takes" in amp.hypothesis
    assert amp.evidence[0].startswith("strategies.amp is off; it can shorten matrix products, pointwise")
    dear = next(step for step in whole.found.steps if step.set == ("run.log_every=50",))
    assert amp.estimated_s > dear.estimated_s  # of its guard, which runs several seeds
    assert not any("learning_rate" in change or "clip" in change for step in whole.found.steps for change in step.set)


def test_the_notebook_says_what_was_thought_and_what_came_of_it(whole: Whole) -> None:
    found = whole.found
    page = (found.folder / "notebook.md").read_text()
    assert "**Hypothesis** (advice): the optimizer is not fused" in page
    assert "**Evidence**: as planted" in page
    assert "**Change**: `strategies.amp={}`" in page
    assert f"- {found.results['ended']}" in page
    told = json.loads((found.folder / "notebook.json").read_text())
    assert [step["name"] for step in told["steps"]] == [step.name for step in found.steps]
    assert json.loads((found.folder / "results.json").read_text()) == found.results
    assert found.results["kind"] == "climb"
    table = "\n".join(lines(found))
    assert "faster, kept" in table
    assert f"recipe      {found.recipe}" in table


def test_what_fails_the_guard_is_reverted_and_not_tried_again(call: Call) -> None:
    judge = Judge(passes=lambda baseline, arm: not arm.strategies.amp)
    found = call(Landscape(step_s), judge=judge)
    tried = [step for step in found.steps if step.set == ("strategies.amp={}",)]
    assert [step.verdict for step in tried] == ["not the same training"]
    assert not tried[0].kept
    assert tried[0].multiplier is None
    assert not read(str(found.recipe)).strategies.amp
    assert read(str(found.recipe)).strategies.compile


def test_out_of_memory_is_a_ceiling_for_microbatches(call: Call) -> None:
    """From 16 of 1, of which 4 fit: 8 and 16 are not tried when they are known to be too much."""
    machine = Landscape(
        step_s,
        failure=lambda recipe: "out of memory" if recipe.batch.microbatch_size > 4 else None,
        memory_gib=lambda recipe: float(recipe.batch.microbatch_size),
    )
    found = call(machine, overrides=("run.log_every=50", "batch.microbatch_size=2", "strategies.amp={}"))
    assert read(str(found.recipe)).batch.microbatch_size == 4
    sizes = [int(change.split("=")[1]) for step in found.steps for change in step.set if "microbatch_size" in change]
    failed = [step for step in found.steps if step.verdict == "failed"]
    assert all(step.reason.startswith("out of memory") for step in failed)
    assert len(failed) <= 2  # larger ones are not tried when one has failed
    assert sizes


def test_a_first_look_that_had_to_compile_is_repeated_with_filled_caches(call: Call) -> None:
    """Steps after a compilation are slow for a while; the change is not dropped for that."""
    cold: list[str] = []

    class Compiling(Landscape):
        def __call__(self, arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
            found = super().__call__(arm, folder, steps, timeout_s=timeout_s)
            if not arm.recipe.strategies.compile or cold or found.times is None:
                return found
            cold.append(folder.name)
            step_s = tuple(3 * each for each in found.times.step_s)
            step_s = (60.0, *step_s[1:])
            segment = summarise(step_s, num_steps=steps.window, max_warmup_steps=steps.max_warmup)
            return replace(found, times=replace(found.times, step_s=step_s), segment=segment)

    found = call(Compiling(step_s))
    (step,) = [step for step in found.steps if step.set == ("strategies.compile={}",)]
    assert cold == [f"{step.index:02d}-compile"]
    assert step.kept
    assert step.screening is not None
    assert step.screening < 1
    assert found.results["measured_s"] == pytest.approx(sum(step.seconds for step in found.steps) + 10 + 80, abs=1)


def test_a_change_is_not_dropped_for_an_old_segment_of_the_stack(call: Call) -> None:
    """The machine becomes slower for good after the first segments: what is seen beside it then is what counts."""

    class Slower(Landscape):
        def step_of(self, recipe: Recipe) -> float:
            return step_s(recipe) * (1.0 if len(self.order) <= 4 else 3.0)

    machine = Slower(step_s)
    machine.step_s = machine.step_of
    found = call(machine, only=("run.gc_every", "strategies.compile", "loader", "strategies.amp"))
    assert {"compile", "amp"} <= {step.name for step in found.steps if step.kept}


def test_a_recipe_that_does_not_fit_gets_smaller_microbatches_first(call: Call) -> None:
    machine = Landscape(step_s, failure=lambda recipe: "out of memory" if recipe.batch.microbatch_size > 2 else None)
    overrides = ("batch.microbatch_size=8", "strategies.accumulation.num_microbatches=2")
    found = call(machine, overrides=overrides)
    assert found.results["fitted"] == ["batch.microbatch_size=2", "strategies.accumulation.num_microbatches=8"]
    assert read(str(found.recipe)).batch.microbatch_size == 2


def test_a_recipe_that_crashes_is_no_place_to_begin(call: Call) -> None:
    with pytest.raises(ExperimentError, match="the recipe fails, crash: crash it was"):
        call(Landscape(step_s, failure=lambda recipe: "crash"))


def test_a_whole_that_is_not_the_same_training_is_taken_back_step_by_step(call: Call) -> None:
    """Each change passes, and all of them together do not: the last ones go until the rest does."""

    def passes(baseline: Recipe, arm: Recipe) -> bool:
        far = bool(arm.strategies.compile) != bool(baseline.strategies.compile)
        return not (far and bool(arm.strategies.amp) != bool(baseline.strategies.amp))

    found = call(Landscape(step_s), judge=Judge(passes=passes))
    recipe = read(str(found.recipe))
    assert not (recipe.strategies.amp and recipe.strategies.compile)
    assert found.final is not None
    assert found.final.kept


@pytest.mark.parametrize("kill_at", [12, 31])
def test_a_climb_killed_at_any_point_goes_on_as_if_it_had_not_been(call: Call, tmp_path: Path, kill_at: int) -> None:
    uncut = call(Landscape(step_s), out=tmp_path / "uncut" / "out")
    (tmp_path / "cache" / "calibrations").rename(tmp_path / "kept")
    first, second = Landscape(step_s, kill_at=kill_at), Landscape(step_s)
    with pytest.raises(Killed):
        call(first)
    resumed = call(second, resume=True)
    assert not set(first.order) & set(second.order)
    assert [step.name for step in resumed.steps] == [step.name for step in uncut.steps]
    assert [step.kept for step in resumed.steps] == [step.kept for step in uncut.steps]
    assert recipe_hash(read(str(resumed.recipe))) == recipe_hash(read(str(uncut.recipe)))
    third = Landscape(step_s)
    assert len(call(third, resume=True).steps) == len(uncut.steps)
    assert third.order == []


def test_the_budget_ends_a_climb_with_what_is_won(call: Call) -> None:
    machine = Landscape(step_s)
    found = call(machine, budget_s=400.0)
    assert found.results["ended"].startswith("the budget of 400 s is spent")
    assert 10.0 * len(machine.order) == found.results["measured_s"] <= 400.0 + 40.0
    assert any(step.kept for step in found.steps)
    assert read(str(found.recipe))


@pytest.mark.parametrize("budget_s", [1e-9, 10.0, 60.0])
def test_a_budget_that_allows_no_change_is_refused_with_one_that_does(call: Call, budget_s: float) -> None:
    with pytest.raises(UsageError, match=r"^--budget \d+s: too short to try one change; ") as caught:
        call(Landscape(step_s), budget_s=budget_s)
    enough_s = float(caught.value.problems[0].rpartition("give ")[2].removesuffix("s at least"))
    assert call(Landscape(step_s), budget_s=enough_s, resume=True).steps


def test_a_climb_can_be_confined_to_some_keys(call: Call) -> None:
    found = call(Landscape(step_s), overrides=SLOWEST, only=("batch.microbatch_size", "strategies.adamw"))
    tables = {change.partition("=")[0] for step in found.steps for change in step.set}
    assert {"batch.microbatch_size", "strategies.adamw.implementation"} <= tables
    assert not any(table.startswith(("strategies.amp", "strategies.compile", "run")) for table in tables)


def test_what_a_climb_needs_is_said_before_it_begins(call: Call) -> None:
    machine = Landscape(step_s)
    with pytest.raises(UsageError) as caught:
        call(machine, budget_s=None, changes_workload=("model",), out=None, resume=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--resume",
        "--budget",
        "--changes-workload",
    ]
    assert machine.order == []
