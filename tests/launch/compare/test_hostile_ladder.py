"""Ladders and climbs on bad ground: folders of others, files that are damaged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from landscape import Judge, Landscape

from stepladder.launch.compare.bench import Tools
from stepladder.launch.compare.comparison import Asked
from stepladder.launch.compare.declared import Declared
from stepladder.launch.compare.ladder import Ladder, climb_ladder
from stepladder.launch.compare.ladder_file import parse_rung
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.schema import Recipe

RUNG = "collect=run.gc_every=1"
Climb = Callable[..., Ladder]


def step_s(recipe: Recipe) -> float:
    return 0.1 * (0.8 if recipe.run.gc_every == 1 else 1.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("stepladder.launch.compare.experiment.minimum_detectable_effect", lambda *_, **__: 0.01)


@pytest.fixture
def climb(tiny: Path, tmp_path: Path) -> Climb:
    """`climb(machine)`: a ladder of one rung in `out`."""

    def call(machine: Landscape, **more: Any) -> Ladder:
        declared = Declared(profile=False, calibration_pairs=4)
        asked = Asked(recipe=str(tiny), arms=(), declared=declared, out=tmp_path / "out")
        tools = Tools(measure=machine, guard=Judge(), make_plan=partial(make_plan, num_gpus=0))
        return climb_ladder(replace(asked, **more), (parse_rung(RUNG),), tools=tools)

    return call


@pytest.mark.parametrize("held", ["thesis.tex", "stacks/00-base.toml", "recipe.toml", "notebook.md"])
def test_a_folder_with_other_things_is_left_as_it_is(climb: Climb, tmp_path: Path, held: str) -> None:
    file = tmp_path / "out" / held
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UsageError, match=rf"holds other things \({held.partition('/')[0]}\); choose a new folder"):
        climb(Landscape(step_s))
    assert file.read_text() == "mine"
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [file]


def test_what_was_killed_at_its_beginning_can_begin(climb: Climb, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    assert climb(Landscape(step_s)).final is not None
