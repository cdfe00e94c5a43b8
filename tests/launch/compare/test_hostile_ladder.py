"""Ladders and climbs on bad ground: folders of others, files that are damaged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from landscape import Judge, Killed, Landscape, quicker_collecting

from stepladder.launch.climb.notebook import Notebook
from stepladder.launch.climb.screening import Screens
from stepladder.launch.compare.arms import Arm
from stepladder.launch.compare.bench import Tools
from stepladder.launch.compare.comparison import Asked
from stepladder.launch.compare.declared import Declared
from stepladder.launch.compare.ladder import Ladder, climb_ladder
from stepladder.launch.compare.ladder_file import parse_rung
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import read

pytestmark = pytest.mark.usefixtures("made_up_machines")

RUNG = "collect=run.gc_every=1"
Climb = Callable[..., Ladder]


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
        climb(Landscape(quicker_collecting))
    assert file.read_text() == "mine"
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [file]


def test_what_was_killed_at_its_beginning_can_begin(climb: Climb, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    assert climb(Landscape(quicker_collecting)).final is not None


@pytest.mark.parametrize("text", ["[]", "{}", "{", "3"])
def test_a_damaged_ladder_is_one_sentence(climb: Climb, tmp_path: Path, text: str) -> None:
    with pytest.raises(Killed):
        climb(Landscape(quicker_collecting, kill_at=3))
    (tmp_path / "out" / "ladder.json").write_text(text)
    with pytest.raises(UsageError, match=r"^--resume: .*(holds no ladder|holds another ladder)"):
        climb(Landscape(quicker_collecting), resume=True)


def test_foreign_and_damaged_files_in_a_rung_change_nothing(climb: Climb, tmp_path: Path) -> None:
    first = climb(Landscape(quicker_collecting))
    rung = tmp_path / "out" / "rungs" / "01-collect"
    (rung / "segments" / "notes.json").write_text('{"a": 1}')
    (rung / "segments" / "pair-000-candidate.json").write_text('{"arm": "cand')
    for text in ('{"a": 1}', "[]", '{"budget_s": "x"}'):
        (rung / "results.json").write_text(text)
        again = Landscape(quicker_collecting)
        assert climb(again, resume=True).rungs == first.rungs
    assert again.order == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rec', '{"recipe": 1, "measured": {"seconds": null}}'])
def test_a_damaged_screen_is_measured_again(tmp_path: Path, tiny: Path, text: str) -> None:
    arm = Arm(name="candidate", plan=make_plan(read(str(tiny)), num_gpus=0))
    first = Screens(path=tmp_path / "out" / "screens", declared=Declared(), measure=Landscape(quicker_collecting))
    found = first.get("stack-00-0", arm)
    (tmp_path / "out" / "screens" / "stack-00-0.json").write_text(text)
    again = Landscape(quicker_collecting)
    screens = Screens(path=first.path, declared=Declared(), measure=again)
    screens.load()
    assert screens.known == {}
    assert (screens.spent_s, screens.cost_s("stack-00-0")) == (0.0, 0.0)
    assert screens.get("stack-00-0", arm) == found
    assert again.order == ["out/screens/stack-00-0"]


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', '{"steps": [{}], "preparation_s": 1}', '{"steps": 1}'])
def test_a_damaged_notebook_is_begun_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "notebook.json").write_text(text)
    notebook = Notebook(path=tmp_path)
    notebook.load()
    assert (notebook.steps, notebook.preparation_s) == ([], 0.0)
