"""Comparisons on bad ground: full disks, damaged and shared folders, kills between any two writes, odd words."""

import errno
import io
import itertools
import json
import math
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape import Killed, Landscape, quicker_collecting

from stepladder.launch import recipe as recipes
from stepladder.launch.cli import main
from stepladder.launch.compare import process, segment, store
from stepladder.launch.compare.arms import Arm, parse_arm, read_arms
from stepladder.launch.compare.comparison import Asked, compare
from stepladder.launch.compare.declared import Declared, seconds_of
from stepladder.launch.compare.experiment import Told
from stepladder.launch.compare.process import Ended
from stepladder.launch.compare.progress import Progress
from stepladder.launch.compare.results import Results
from stepladder.launch.compare.segment import Measured, Steps, run_segment
from stepladder.launch.compare.store import KeptCalibration, Place, Store
from stepladder.launch.errors import ExitCode, UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.schema import Recipe

pytestmark = pytest.mark.usefixtures("made_up_machines")

ARM = "fast=run.gc_every=1"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
Run = Callable[..., Results]


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Run:
    """`run(machine, arms...)`: a comparison in `out`."""

    def call(machine: Landscape, *arms: str, say: Callable[[str], None] = lambda line: None, **more: Any) -> Results:
        asked: dict[str, Any] = {"declared": Declared(profile=False, calibration_pairs=4), "out": tmp_path / "out"}
        specs = tuple(map(parse_arm, arms or (ARM,)))
        found = Asked(recipe=str(tiny), arms=specs, guarded=False, **asked | more)
        return compare(found, told=Told(say=say), measure=machine, make_plan=partial(make_plan, num_gpus=0))

    return call


# ---- words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90 s", 90), ("1.5m", 90), ("10min", 600), ("1h30m", 5400), (" 1h 5m 2s ", 3902), ("2d", 172800)],
)
def test_a_time_is_written_as_people_write_it(text: str, seconds: float) -> None:
    assert seconds_of(text, "--budget") == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "-5m", "1e3", "nan", "inf", "9" * 400, "٣m", "½h", "10M", "5µs", "1h30"]
)
def test_what_is_no_time_is_refused_in_a_sentence(
    text: str, tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["compare", str(tiny), "--arm", ARM, "--out", str(out), f"--budget={text}"]) == ExitCode.USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --budget ")
    assert "not a time" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arm", "x.json=run.gc_every=3"], "arm x.json: is what the comparison itself calls"),
        (["--arm", "baseline-again=run.gc_every=3"], "arm baseline-again: is what the comparison itself calls"),
        (["--arm", "naïve=run.gc_every=3"], "arm 'naïve': not a name"),
        (["--arm", "a/../b=run.gc_every=3"], "not a name"),
        (["--arm", 'a="b"=c'], "arm a"),
        (["--arm", ARM, "--price-per-device-hour", "nan"], "--price-per-device-hour nan: must be a number"),
        (["--arm", ARM, "--price-per-device-hour", "inf"], "--price-per-device-hour inf: must be a number"),
        (["--arm", ARM, "--json", "/"], "--json /: is a folder"),
        (["--arm", ARM, "--pairs", "1000000"], "--pairs: 128 are the most"),
        (["--arm", ARM, "--calibration-pairs", "1000000"], "--calibration-pairs: 128 are the most"),
    ],
)
def test_odd_options_are_refused_in_a_sentence(
    options: list[str], said: str, tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", str(tiny), "--out", str(tmp_path / "out"), *options]) == ExitCode.USAGE
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*"ab=.,[]{}()'\"\\ 13\né\0", "run.gc_every="]), max_size=16).map("".join))
def test_any_words_as_an_arm_are_an_arm_or_sentences(text: str) -> None:
    plan = partial(make_plan, num_gpus=0)
    try:
        arms = read_arms("demo", [parse_arm(text)], plan)
    except UsageError as refused:
        told = refused.problems
    else:
        told = tuple(arm.name for arm in arms)
    assert told
    assert all(told)


# ---- folders


def test_a_folder_with_other_things_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "out" / "recipes" / "baseline.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("mine")
    (tmp_path / "out" / "README.md").touch()
    with pytest.raises(UsageError, match=r"holds other things \(README.md\)"):
        run(Landscape(quicker_collecting))
    assert recipe.read_text() == "mine"


def test_a_file_and_a_path_that_cannot_be_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), tmp_path / "null\0"):
        with pytest.raises(UsageError, match="cannot be written"):
            run(Landscape(quicker_collecting), out=out)


def test_two_comparisons_in_one_folder_do_not_meet(run: Run, tmp_path: Path) -> None:
    """The second one comes while the first measures, and tries everything that is there to try."""
    met: list[str] = []

    def meet(recipe: Recipe) -> float:
        if not met:
            recipes_before = (tmp_path / "out" / "recipes" / "fast.toml").read_text()
            for more in ({}, {"resume": True}):
                with pytest.raises(UsageError) as refused:
                    run(Landscape(quicker_collecting), "fast=run.gc_every=1", **more)
                met.extend(refused.value.problems)
            (tmp_path / "out" / "experiment.json").rename(tmp_path / "hidden")  # as if it had not come so far yet
            with pytest.raises(UsageError) as refused:
                run(Landscape(quicker_collecting), "fast=run.gc_every=2")
            met.extend(refused.value.problems)
            (tmp_path / "hidden").rename(tmp_path / "out" / "experiment.json")
            assert (tmp_path / "out" / "recipes" / "fast.toml").read_text() == recipes_before
        return quicker_collecting(recipe)

    run(Landscape(meet))
    assert len(met) == 3
    assert all("another run is writing there" in sentence for sentence in met)


def test_a_comparison_that_was_killed_before_it_had_begun_can_begin(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / "recipes").mkdir(parents=True)
    (tmp_path / "out" / "recipes" / ".partial-fast.toml").write_text("half")
    (tmp_path / "out" / ".lock").touch()
    assert run(Landscape(quicker_collecting)).arms[1].verdict is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"arms": 3}', '{"arms": {}, "declared": 1, "machine": 2}'])
def test_a_damaged_experiment_is_not_resumed(run: Run, tmp_path: Path, text: str) -> None:
    with pytest.raises(Killed):
        run(Landscape(quicker_collecting, kill_at=3))
    (tmp_path / "out" / "experiment.json").write_text(text)
    with pytest.raises(UsageError, match=r"^--resume: .*(holds no comparison|damaged|holds another comparison)"):
        run(Landscape(quicker_collecting), resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"arm": 1, "segment": 3, "times": 5}'])
def test_a_damaged_segment_is_measured_again(run: Run, tmp_path: Path, text: str) -> None:
    with pytest.raises(Killed):
        run(Landscape(quicker_collecting, kill_at=12))
    (tmp_path / "out" / "segments" / "pair-000-fast.json").write_text(text)
    second = Landscape(quicker_collecting)
    run(second, resume=True)
    assert any(place.endswith("pair-000-fast") for place in second.order)
    assert not any(place.endswith("pair-000-baseline") for place in second.order)


IMPOSSIBLE = [None, "x", -1, math.nan, math.inf, 10**400, []]
"""Where a number belongs that was measured."""


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (("seconds",), IMPOSSIBLE),
        (("segment", "median_s"), [*IMPOSSIBLE, 0]),
        (("times", "tokens_per_step"), [*IMPOSSIBLE, 0, 0.5]),
        (("times", "step_s"), [*IMPOSSIBLE, ["x"]]),
        (("segment",), [*IMPOSSIBLE]),
        (("failure",), ["crash", 3]),
    ],
)
def test_a_segment_that_none_can_be_is_not_believed(
    run: Run, tmp_path: Path, keys: tuple[str, ...], values: list[Any]
) -> None:
    with pytest.raises(Killed):
        run(Landscape(quicker_collecting, kill_at=12))
    text = (tmp_path / "out" / "segments" / "pair-000-fast.json").read_text()
    Measured.from_json(json.loads(text))
    for value in values:
        with pytest.raises((LookupError, TypeError, ValueError)):
            Measured.from_json(changed(text, keys, value))


def test_a_noise_floor_that_none_can_be_is_measured_anew(run: Run, tmp_path: Path) -> None:
    run(Landscape(quicker_collecting))
    file = tmp_path / "out" / "calibration.json"
    text = file.read_text()
    assert KeptCalibration.read(file) is not None
    for key in (("calibration", "pair_sd"), ("calibration", "num_pairs"), ("window",), ("segment_s",)):
        for value in IMPOSSIBLE if key == ("segment_s",) else [*IMPOSSIBLE, 0]:
            file.write_text(json.dumps(changed(text, key, value)))
            assert KeptCalibration.read(file) is None, (key, value)
    for value in IMPOSSIBLE[1:]:
        file.write_text(json.dumps(changed(text, ("calibration", "largest"), value)))
        assert KeptCalibration.read(file) is None, value
    for key in (("calibration", "estimate"), ("calibration", "source"), ("measured_on",)):
        file.write_text(json.dumps(changed(text, key, 3)))
        assert KeptCalibration.read(file) is None, key


def changed(text: str, keys: tuple[str, ...], value: Any) -> Any:
    """What a file holds, with another value in one place."""
    told = place = json.loads(text)
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return told


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "{", '{"budget_s": "x"}'])
def test_damaged_results_are_made_again(run: Run, tmp_path: Path, text: str) -> None:
    first = run(Landscape(quicker_collecting))
    file = tmp_path / "out" / "results.json"
    before = json.loads(file.read_text())
    file.write_text(text)
    again = Landscape(quicker_collecting)
    assert run(again, resume=True).arms[1].verdict == first.arms[1].verdict
    assert again.order == []
    assert json.loads(file.read_text())["arms"] == before["arms"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measured_on": 3}', '{"measured_on": "2999-01-01"}'])
def test_a_damaged_noise_floor_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(text)
    assert KeptCalibration.read(file) is None


# ---- disks


def test_a_disk_that_is_full_at_any_write_costs_nothing_that_was_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at every eleventh write, until somebody makes room; nothing is measured twice."""
    real, order = store.publish, list[str]()
    writes = itertools.count(1)

    def publish(path: Path, write: Callable[[Path], object]) -> None:
        if next(writes) % 11 == 0:
            path.with_name(f".partial-{path.name}").write_text("half")
            raise FULL
        real(path, write)

    whole = run(Landscape(quicker_collecting), out=tmp_path / "whole")
    (tmp_path / "cache" / "calibrations").rename(tmp_path / "kept")
    monkeypatch.setattr(store, "publish", publish)
    machine, told = Landscape(quicker_collecting), list[str]()
    for resume in itertools.chain([False], itertools.repeat(True, 30)):
        try:
            found = run(machine, resume=resume)
        except UsageError as refused:
            [sentence] = refused.problems
            told.append(sentence)
            assert "No space left on device" in sentence
            assert "go on with" in sentence
            continue
        break
    order = [place.split("/")[-1] for place in machine.order]
    again = [place for place in set(order) if order.count(place) > 1]
    assert len(told) == 2
    assert len(again) <= len(told), "a segment that could not be written is measured again, no other one"
    verdicts = [results.arms[1].verdict for results in (found, whole)]
    assert verdicts[0] is not None
    assert verdicts[1] is not None
    assert verdicts[0].kind is verdicts[1].kind


def test_a_cache_that_cannot_be_written_is_a_note(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "calibrations").touch()
    said: list[str] = []
    assert run(Landscape(quicker_collecting), say=said.append).arms[1].verdict is not None
    assert any(line.startswith("note: the noise floor is not kept") for line in said)


@pytest.mark.parametrize(("free", "is_arm"), [(1 << 20, False), (1 << 40, True)])
def test_a_run_that_finds_the_disk_full_says_nothing_of_its_arm(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, is_arm: bool
) -> None:
    """But where there is room, as when workers fill the shared memory, it is the arm's own fault."""
    output = f"OSError: [Errno 28] {os.strerror(errno.ENOSPC)}: '/dev/shm/x'"
    ended = Ended(code=1, seconds=1.0, started_at=0.0, reason=None, output=output)
    monkeypatch.setattr(segment, "run_recipe", lambda *_, **__: ended)
    monkeypatch.setattr(segment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    arm = Arm(name="arm", plan=make_plan(recipes.read(str(tiny)), num_gpus=0))
    if is_arm:
        assert run_segment(arm, tmp_path, Steps(window=5, max_warmup=5)).failure == "crash"
    else:
        with pytest.raises(OSError, match="No space left"):
            run_segment(arm, tmp_path, Steps(window=5, max_warmup=5))


# ---- kills, arms that hang, and listeners that leave


def test_what_a_kill_leaves_half_written_is_not_read(run: Run, tmp_path: Path) -> None:
    drawn = random.Random(0)
    whole = run(Landscape(quicker_collecting), out=tmp_path / "whole")
    (tmp_path / "cache" / "calibrations").rename(tmp_path / "kept")
    with pytest.raises(Killed):
        run(Landscape(quicker_collecting, kill_at=7))
    for name in ("segments/.partial-calibration-002-baseline.json", ".partial-results.json", ".partial-report.html"):
        (tmp_path / "out" / name).write_text('{"seconds"'[: drawn.randrange(12)])
    resumed = run(Landscape(quicker_collecting), resume=True)
    assert resumed.spent_s == whole.spent_s
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["arms"]) == 2


def test_a_pilot_that_hangs_is_given_up_when_the_budget_is(run: Run, tmp_path: Path) -> None:
    timeouts: list[float | None] = []

    class Machine(Landscape):
        def __call__(self, arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Any:
            timeouts.append(timeout_s)
            return super().__call__(arm, folder, steps, timeout_s=timeout_s)

    run(Machine(quicker_collecting), budget_s=600.0)
    assert timeouts[:2] == [600.0, 590.0]
    timeouts.clear()
    run(Machine(quicker_collecting), out=tmp_path / "other", budget_s=None)
    assert timeouts[:2] == [None, 1800.0]


def test_nothing_is_calibrated_if_no_arm_can_run(run: Run) -> None:
    machine = Landscape(
        quicker_collecting, failure=lambda recipe: "out of memory" if recipe.run.gc_every == 1 else None
    )
    results = run(machine)
    assert [place.split("/")[-1] for place in machine.order] == ["pilot-000-baseline", "pilot-000-fast"]
    assert results.outcome.ended == "no arm could be measured"
    assert results.arms[1].failure == "out of memory: out of memory it was"


def test_of_endless_output_only_the_end_is_read(tmp_path: Path) -> None:
    file = tmp_path / "output.txt"
    with file.open("wb") as output:
        output.truncate(1 << 32)
        output.seek(0, os.SEEK_END)
        output.write(b"\xfferror: at the end")
    told = process._tail(file)
    assert len(told) <= 1 << 20
    assert told.endswith("error: at the end")


class Gone(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def test_a_comparison_goes_on_when_nobody_reads_its_lines(run: Run, tmp_path: Path) -> None:
    told = Progress(lines=Gone(), bar=io.StringIO()).told()
    assert run(Landscape(quicker_collecting), say=told.say).arms[1].verdict is not None


def test_a_failed_segment_of_any_words_comes_back_as_it_was(tmp_path: Path) -> None:
    reason = "</script>\0\x1b[31m\u202e \ud800 'quoted' \"twice\"\n"
    place = Place(phase="pair", round=0, arm="arm")
    (tmp_path / "segments").mkdir()
    failed = segment.Measured(arm="arm", seconds=1.0, failure="crash", reason=reason)
    Store(path=tmp_path).get(place, lambda folder: failed)
    assert store.read_json(tmp_path / "segments" / "pair-000-arm.json") == failed.to_json()
