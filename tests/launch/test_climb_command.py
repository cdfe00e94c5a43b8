"""Commands that try one change after another: what they refuse, and real runs with a change whose truth is known."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sleepy import install_sleepy

from stepladder.launch.cli import main
from stepladder.launch.compare.ladder_file import find_ladder, read_ladder, shipped_ladders
from stepladder.launch.errors import ExitCode, UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import read

SMALL = ("--pairs", "4", "--calibration-pairs", "4", "--window-steps", "10", "--window-seconds", "0")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Exit code and what was complained of."""
    code = main([*map(str, arguments)])
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("compare",), "RECIPE: which recipe is the baseline?"),
        (("compare", "--ladder", "nowhere.toml"), "--ladder nowhere.toml: there is no such file; shipped ladders are"),
        (("compare", "TINY", "--rung", "a"), "--rung a: not of the form NAME=a.b=value"),
        (("compare", "TINY", "--rung", "a=b.c=1", "--grid", "b.c=1,2"), "each is a comparison of its own"),
        (("compare", "TINY", "--rung", "a=b.c=1", "--arm", "x=b.c=2"), "--arm beside --ladder: it makes its own arms"),
        (("compare", "TINY", "--grid", "b.c"), "--grid b.c: not of the form a.b=1,2"),
        (("compare", "TINY", "--grid", "b.c=1,2"), "--grid: no combination can be measured"),
        (("compare", "TINY", "--rung", "a=run.gc_evry=1"), "did you mean 'gc_every'?"),
        (("climb", "TINY"), "--budget: a climb has no other end"),
        (("climb", "TINY", "--budget", "soon"), "--budget soon: not a time"),
        (("climb", "TINY", "--budget", "1m", "--resume"), "--resume: continue which climb?"),
    ],
)
def test_what_cannot_be_is_one_clear_sentence(
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines = said(capsys, *(str(tiny) if each == "TINY" else each for each in arguments))
    assert code == ExitCode.USAGE
    assert any(problem in line for line in lines), lines


def test_every_shipped_ladder_can_be_climbed_where_it_was_written_for() -> None:
    assert {"demo", "decoder_1b"} <= set(shipped_ladders())
    for name in shipped_ladders():
        settings, rungs = read_ladder(find_ladder(name))
        changes: tuple[str, ...] = ()
        base = read(settings.recipe)
        gpus = 1 if base.run.device == "cuda" else 0
        tokens = {make_plan(base, num_gpus=gpus).tokens_per_step}
        for rung in rungs:
            changes += rung.set
            tokens.add(make_plan(read(settings.recipe, changes), num_gpus=gpus, capability=(9, 0)).tokens_per_step)
        assert len(tokens) == 1
    with pytest.raises(UsageError):
        find_ladder("unheard-of")


@pytest.fixture
def sleepy(tmp_path: Path) -> dict[str, str]:
    """Environment in which `strategies.sleep.ms` makes every step longer by a known time, and says so."""
    return install_sleepy(tmp_path / "plugin")


def call(tmp_path: Path, environment: dict[str, str], *arguments: object) -> dict[str, Any]:
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "stepladder", *map(str, arguments), "--out", str(out), "--json", "-"]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=2900, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((out / "results.json").read_text()) == json.loads(done.stdout)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_real_ladder_keeps_what_helps_and_shows_that_it_is_the_same_training(
    tiny: Path, sleepy: dict[str, str], tmp_path: Path
) -> None:
    told = call(
        tmp_path, sleepy, "compare", tiny, "--set", "strategies.sleep.ms=120", "--rung", "awake=strategies.sleep.ms=20",
        "--rung", "useless=run.gc_every=99", "--rung", "asleep=strategies.sleep.ms=200", *SMALL,
    )  # fmt: skip
    rows = {row["name"]: row for row in told["rungs"]}
    assert [name for name, row in rows.items() if row["kept"]] == ["awake"]
    assert rows["awake"]["parity"]["tier"] == "bitwise"
    assert rows["awake"]["parity"]["passed"]
    assert rows["awake"]["multiplier"]["times"] > 1.5
    assert rows["awake"]["why"]
    assert rows["asleep"]["verdict"] == "slower"
    assert told["final"]["multiplier"]["times"] > 1.5


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_real_climb_finds_what_slows_a_recipe_down(tiny: Path, sleepy: dict[str, str], tmp_path: Path) -> None:
    told = call(
        tmp_path, sleepy, "climb", tiny, "--set", "strategies.sleep.ms=120", "--only", "strategies.sleep",
        "--budget", "40m", *SMALL,
    )  # fmt: skip
    (step,) = told["steps"]
    assert step["set"] == ["strategies.sleep.ms=20.0"]
    assert step["kept"]
    assert step["share_before"]
    assert told["final"]["multiplier"]["times"] > 1.5
    assert "sleep" in (tmp_path / "out" / "notebook.md").read_text()
    assert "ms = 20.0" in (tmp_path / "out" / "recipe.toml").read_text()
