"""Ladders, ablations and grids on a made-up machine, whose truth is known."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from landscape import Judge, Killed, Landscape

from stepladder.launch.compare.ablate import Ablation, ablate
from stepladder.launch.compare.bench import Tools
from stepladder.launch.compare.comparison import Asked
from stepladder.launch.compare.declared import Declared
from stepladder.launch.compare.grid import measure_grid, parse_grid
from stepladder.launch.compare.ladder import Ladder, climb_ladder
from stepladder.launch.compare.ladder_file import parse_rung, read_ladder
from stepladder.launch.compare.ladder_text import ablation_table, grid_table, ladder_table
from stepladder.launch.compare.rungs import Multiplier
from stepladder.launch.compare.segment import measured_recipe
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import read
from stepladder.launch.schema import Recipe

pytestmark = pytest.mark.usefixtures("made_up_machines")

RUNGS = (
    "bf16=strategies.amp={}",
    "useless=run.gc_every=7",
    "compile=strategies.compile={}",
    "harmful=run.threads_per_rank=3",
)
FACTORS = {"amp": 0.5, "compile": 0.8, "together": 0.9, "harmful": 1.3}


def step_s(recipe: Recipe) -> float:
    """BF16 is 2x, compilation 1.25x, both together a further 1/0.9: the planted interaction."""
    strategies = recipe.strategies
    factor = FACTORS["amp"] if strategies.amp else 1.0
    factor *= FACTORS["compile"] if strategies.compile else 1.0
    factor *= FACTORS["together"] if strategies.compile and strategies.amp else 1.0
    return 0.1 * factor * (FACTORS["harmful"] if recipe.run.threads_per_rank == 3 else 1.0)


Climb = Callable[..., Ladder]


def tools(machine: Landscape, judge: Judge | None = None) -> Tools:
    return Tools(measure=machine, guard=judge or Judge(), make_plan=partial(make_plan, num_gpus=0))


@pytest.fixture
def asked(tiny: Path, tmp_path: Path) -> Asked:
    declared = Declared(profile=False, calibration_pairs=4)
    return Asked(recipe=str(tiny), arms=(), declared=declared, out=tmp_path / "out")


@pytest.fixture
def climb(asked: Asked) -> Climb:
    """`climb(machine, rungs, judge=...)`: a ladder in a folder of its own."""

    def call(machine: Landscape, rungs: Sequence[str] = RUNGS, *, judge: Judge | None = None, **more: object) -> Ladder:
        return climb_ladder(replace(asked, **more), tuple(map(parse_rung, rungs)), tools=tools(machine, judge))  # type: ignore[arg-type]

    return call


def test_a_rung_stays_only_if_it_helps(climb: Climb, tmp_path: Path) -> None:
    judge = Judge()
    ladder = climb(Landscape(step_s), judge=judge)
    assert [(row.name, row.verdict, row.kept) for row in ladder.rungs] == [
        ("bf16", "faster", True),
        ("useless", "same", False),
        ("compile", "faster", True),
        ("harmful", "slower", False),
    ]
    bf16, _, compiled, _ = ladder.rungs
    assert bf16.multiplier is not None
    assert bf16.multiplier.times == pytest.approx(2.0, rel=0.01)
    assert compiled.multiplier is not None
    assert compiled.multiplier.times == pytest.approx(1 / 0.72, rel=0.01)  # on BF16, where it wins more
    assert compiled.cumulative is not None
    assert compiled.cumulative.times == pytest.approx(2 / 0.72, rel=0.01)
    changed = [(bool(arm.strategies.amp), bool(arm.strategies.compile)) for _, arm in judge.asked]
    assert changed == [(True, False), (True, True), (True, True)]  # only what is faster is worth a check, and the whole
    finished = read(str(ladder.stack))
    assert finished.strategies.amp
    assert finished.strategies.compile
    assert finished.run.gc_every == 100
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == ladder.results


def test_the_finished_stack_is_measured_against_the_base_in_pairs_of_its_own(climb: Climb) -> None:
    machine = Landscape(step_s)
    ladder = climb(machine)
    assert ladder.final is not None
    assert ladder.final.multiplier is not None
    assert ladder.final.multiplier.low < 2 / 0.72 < ladder.final.multiplier.high
    assert any(place.startswith("out/final/segments/pair") for place in machine.order)
    assert ladder.final.point is not None
    assert ladder.base is not None
    assert ladder.base.step_s / ladder.final.point.step_s == pytest.approx(2 / 0.72, rel=0.01)


def test_leaving_one_out_shows_the_interaction_that_was_planted(climb: Climb) -> None:
    """BF16 was added for 2x; without it the finished stack loses 1/0.45x, because compilation needs it."""
    bf16, compiled = climb(Landscape(step_s)).leave_one_out
    assert (bf16.name, compiled.name) == ("bf16", "compile")
    assert bf16.measured is not None
    assert bf16.measured.times == pytest.approx(1 / 0.45, rel=0.01)
    assert bf16.interacts
    assert bf16.interaction is not None
    assert bf16.interaction.times == pytest.approx(1 / 0.9, rel=0.01)
    assert compiled.measured is not None
    assert compiled.measured.times == pytest.approx(1 / 0.72, rel=0.01)
    assert not compiled.interacts  # it was added last, in the same company


def test_without_an_interaction_none_is_told(climb: Climb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTORS, "together", 1.0)
    assert not any(row.interacts for row in climb(Landscape(step_s)).leave_one_out)


def test_what_the_guard_refuses_is_not_kept_whatever_its_speed(climb: Climb) -> None:
    judge = Judge(passes=lambda baseline, arm: not (arm.strategies.amp and not baseline.strategies.amp))
    ladder = climb(Landscape(step_s), judge=judge)
    bf16 = ladder.rungs[0]
    assert bf16.verdict == "not the same training"
    assert not bf16.kept
    assert bf16.multiplier is None
    assert bf16.ratio is not None
    assert not read(str(ladder.stack)).strategies.amp
    assert "2.0" not in "\n".join(ladder_table(ladder)).split("ms/step")[0]


def test_out_of_memory_drops_a_rung_and_not_the_ladder(climb: Climb) -> None:
    machine = Landscape(step_s, failure=lambda recipe: "out of memory" if recipe.strategies.compile else None)
    ladder = climb(machine)
    assert ladder.rungs[2].verdict == "failed"
    assert ladder.rungs[2].reason.startswith("out of memory")
    assert ladder.rungs[3].verdict == "slower"


def test_a_larger_microbatch_is_a_rung_if_the_tokens_of_a_step_stay(climb: Climb) -> None:
    rungs = ("half=batch.microbatch_size=2,strategies.accumulation.num_microbatches=2", "more=batch.microbatch_size=4")
    ladder = climb(Landscape(lambda recipe: 0.1 * recipe.batch.microbatch_size / 4), rungs)
    half, more = ladder.rungs
    assert half.kept
    assert more.verdict == "refused"
    assert "256 tokens per step, the baseline has 128" in more.reason


def test_the_noise_floor_is_measured_once(climb: Climb) -> None:
    machine = Landscape(step_s)
    climb(machine)
    calibrated = {place.split("/segments")[0] for place in machine.order if "/calibration-" in place}
    assert len(calibrated) == 1


@pytest.mark.parametrize("kill_at", [17, 44])
def test_a_ladder_killed_at_any_point_goes_on_as_if_it_had_not_been(climb: Climb, tmp_path: Path, kill_at: int) -> None:
    rungs = (RUNGS[0], RUNGS[2])
    whole = climb(Landscape(step_s), rungs, out=tmp_path / "whole" / "out")
    (tmp_path / "cache" / "calibrations").rename(tmp_path / "kept")
    first, second = Landscape(step_s, kill_at=kill_at), Landscape(step_s)
    with pytest.raises(Killed):
        climb(first, rungs)
    resumed = climb(second, rungs, resume=True)
    assert not set(first.order) & set(second.order)  # nothing finished is measured again
    strip = {"folder": None}
    assert resumed.results | strip == whole.results | strip


def test_the_budget_ends_a_ladder_with_what_is_there(climb: Climb) -> None:
    ladder = climb(Landscape(step_s), budget_s=20 * 10.0)
    assert ladder.rungs[0].kept
    assert [row.verdict for row in ladder.rungs[1:]] == ["not tried"] * 3
    assert ladder.final is not None
    assert ladder.final.verdict == "not tried"
    assert ladder.results["ended"] == "the budget of 200 s is spent"


def test_everything_that_is_wrong_with_a_ladder_is_said_before_it_runs(climb: Climb) -> None:
    machine = Landscape(step_s)
    with pytest.raises(UsageError) as caught:
        climb(
            machine, ("a=strategies.amp={}", "a=strategies.acc={}"), changes_workload=("model",), resume=True, out=None
        )
    whole = "\n".join(caught.value.problems)
    assert "--resume: continue which one?" in whole
    assert "--changes-workload: rungs stand on one another" in whole
    assert "rung a: the name of two" in whole
    assert "rung a, on those before it: --set: strategies.acc: unknown key; did you mean" in whole
    assert machine.order == []


def test_another_ladder_does_not_go_on_where_one_stopped(climb: Climb) -> None:
    climb(Landscape(step_s), RUNGS[:1])
    with pytest.raises(UsageError, match="holds another ladder"):
        climb(Landscape(step_s), RUNGS[1:2], resume=True)
    with pytest.raises(UsageError, match="holds something already"):
        climb(Landscape(step_s), RUNGS[:1])


def test_the_table_is_the_one_that_engineers_keep_by_hand(climb: Climb) -> None:
    lines = list(ladder_table(climb(Landscape(step_s), price_per_device_hour=2.0)))
    head = lines[0].split()
    for word in ("step", "technique", "cumulative", "ms/step", "tokens/s", "cost/run", "parity", "verdict"):
        assert word in head
    whole = "\n".join(lines)
    assert "faster, kept" in whole
    assert "float32 proxy: passed" in whole
    assert "bf16 wins more in company than when it was added: 1.11" in whole
    assert "the product of the rungs is 2.7" in whole


def test_multipliers_measured_apart_add_up_their_errors_in_squares() -> None:
    a = Multiplier(times=2.0, low=2.0 / 1.03, high=2.0 * 1.03)
    b = Multiplier(times=1.5, low=1.5 / 1.04, high=1.5 * 1.04)
    both = a.and_then(b)
    assert both.times == pytest.approx(3.0)
    assert both.high / 3 == pytest.approx(1.05, abs=0.001)
    assert a.over(b).times == pytest.approx(4 / 3)


def test_a_ladder_file_is_read_with_its_protocol(tmp_path: Path, tiny: Path) -> None:
    file = tmp_path / "ladder.toml"
    file.write_text(
        'recipe = "tiny.toml"\npairs = 8\n'
        '[[rungs]]\nname = "bf16"\nset = { strategies.amp = {} }\n'
        '[[rungs]]\nname = "batch"\nset = { batch.microbatch_size = 8, strategies.accumulation = false }\n'
    )
    settings, rungs = read_ladder(file)
    assert settings.recipe == str(tiny)
    assert settings.pairs == 8
    assert [rung.set for rung in rungs] == [
        ("strategies.amp={}",),
        ("batch.microbatch_size=8", "strategies.accumulation=false"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('recipe = "tiny.toml"', "there are none; add [[rungs]]"),
        ('recipe = "tiny.toml"\n[[rungs]]\nname = "a b"\nset = 3', "set = 3: must be a table of changed keys"),
        ('recipe = "tiny.toml"\n[[rungs]]\nname = "a"\nsets = {}', "sets: unknown key"),
        ('recipe = "tiny.toml"\npears = 3\n[[rungs]]\nname = "a"\nset = { run.seed = 1 }', "did you mean 'pairs'"),
    ],
)
def test_a_ladder_file_that_is_none_says_what_is_wrong(tmp_path: Path, tiny: Path, text: str, said: str) -> None:
    file = tmp_path / "ladder.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_ladder(file)
    assert said in "\n".join(caught.value.problems)


def test_a_stack_is_ablated_piece_by_piece(asked: Asked) -> None:
    finished = replace(asked, overrides=("strategies.amp={}", "strategies.compile={}", "strategies.accumulation={}"))
    found = ablate(finished, tools=tools(Landscape(step_s)))
    pieces = {row.name: row for row in found.pieces}
    assert set(pieces) == {"amp", "compile", "accumulation"}  # adamw, clip: without them it is another training
    assert pieces["amp"].multiplier is not None
    assert pieces["amp"].multiplier.times == pytest.approx(1 / 0.45, rel=0.01)
    assert pieces["accumulation"].verdict == "refused"  # it would change the tokens of a step
    assert_told(found)


def test_a_ladder_is_ablated_without_being_climbed(asked: Asked) -> None:
    found = ablate(asked, tuple(map(parse_rung, RUNGS)), tools=tools(Landscape(step_s)))
    verdicts = {row.name: row.verdict for row in found.pieces}
    assert verdicts == {"bf16": "slower", "useless": "same", "compile": "slower", "harmful": "faster"}
    assert_told(found)


def assert_told(found: Ablation) -> None:
    assert found.results["kind"] == "ablation"
    assert found.base is not None
    assert "bf16 " in (text := "\n".join(ablation_table(found))) or "amp " in text


def test_a_grid_finds_the_best_of_all_combinations_and_says_why_some_are_missing(asked: Asked) -> None:
    axes = parse_grid(["strategies.amp=false,{}", "batch.microbatch_size=2,3,4"])

    def seconds(recipe: Recipe) -> float:
        return step_s(recipe) * {2: 0.7, 4: 1.0}[recipe.batch.microbatch_size]

    grid = measure_grid(asked, axes, tools=tools(Landscape(seconds)))
    assert [row.values for row in grid.rows] == [
        {"strategies.amp": amp, "batch.microbatch_size": size}
        for amp, size in itertools.product(("false", "{}"), ("2", "3", "4"))
    ]
    verdicts = [row.verdict for row in grid.rows]
    assert verdicts == ["faster", "refused", "the recipe", "faster", "refused", "faster"]
    assert "tokens per step" in grid.rows[1].reason
    assert grid.rows[0].set[-1] == "strategies.accumulation.num_microbatches=2"  # at equal tokens
    assert grid.best == "04"
    whole = "\n".join(grid_table(grid))
    assert "best: 04" in whole
    assert json.loads(json.dumps(grid.results)) == grid.results


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["loader.num_workers"], "not of the form a.b=1,2"),
        (["a.b=1,2", "a.b=3"], "a.b has values already"),
        (["a.b=1,2,3,4,5,6,7,8,9", "c.d=1,2,3,4,5,6,7,8"], "72 combinations, and 64 are allowed"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_grid(texts)


def test_a_grid_of_nothing_that_can_run_says_so(asked: Asked) -> None:
    axes: dict[str, Any] = parse_grid(["batch.microbatch_size=3,5"])
    with pytest.raises(UsageError) as caught:
        measure_grid(asked, axes, tools=tools(Landscape(step_s)))
    assert caught.value.problems[0] == "--grid: no combination can be measured"


def test_what_is_logged_is_measured_where_it_is_tried(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments log at their end alone, but where that would measure something else than what an arm says."""
    machine = Landscape(lambda recipe: 0.15 if recipe.run.log_every == 1 else 0.1)

    def segment(arm: Any, folder: Path, steps: Any, *, keep_log_every: bool, num_ranks: Any, timeout_s: Any) -> Any:
        recipe = measured_recipe(arm.recipe, num_steps=steps.num_steps, keep_log_every=keep_log_every)
        return machine(replace(arm, plan=replace(arm.plan, recipe=recipe)), folder, steps, timeout_s=timeout_s)

    monkeypatch.setattr("stepladder.launch.compare.bench.run_segment", segment)
    plan = Tools(guard=Judge(), make_plan=partial(make_plan, num_gpus=0))
    grid = measure_grid(asked, parse_grid(["run.log_every=1,5"]), tools=plan)
    assert [row.verdict for row in grid.rows] == ["the recipe", "faster"]
    slow = replace(asked, out=asked.out and asked.out.with_name("pieces"), overrides=("run.log_every=1",))
    assert ablate(slow, (parse_rung("quiet=run.log_every=50"),), tools=plan).pieces[0].verdict == "slower"
