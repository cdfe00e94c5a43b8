"""The page of a comparison: what it says, that it claims no more than was shown, that names cannot write into it."""

import base64
import hashlib
import html
import json
import math
import random
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import Page, find_browser, open_browser
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape import Judge, Landscape

from stepladder.launch.cli import main
from stepladder.launch.compare import page
from stepladder.launch.compare.ablate import ablate
from stepladder.launch.compare.arms import Arm, parse_arm
from stepladder.launch.compare.bench import Tools
from stepladder.launch.compare.comparison import Asked, compare
from stepladder.launch.compare.declared import Declared
from stepladder.launch.compare.grid import measure_grid, parse_grid
from stepladder.launch.compare.guard import GuardResult
from stepladder.launch.compare.guard_bias import Bias
from stepladder.launch.compare.guard_checks import Check
from stepladder.launch.compare.ladder import climb_ladder
from stepladder.launch.compare.ladder_file import parse_rung
from stepladder.launch.compare.page.content import data_of
from stepladder.launch.compare.page.load import load
from stepladder.launch.compare.segment import Measured, Steps
from stepladder.launch.compare.why import Group, Why
from stepladder.launch.errors import ExitCode, UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.schema import Recipe

HOSTILE = "</script><script>window.hacked = 1</script>"
ARMS = (
    "bf16=strategies.amp={}",
    "compiled=strategies.compile={}",
    "slow=run.threads_per_rank=3",
    "broken=run.gc_every=7",
)
WHY = Why(
    sentence="Matrix products 60 -> 20 ms",
    before_ms=100.0,
    after_ms=50.0,
    kernels_before=200,
    kernels_after=150,
    groups=(
        Group(name="matrix products", before_ms=60.0, after_ms=20.0),
        Group(name="communication", before_ms=30.0, after_ms=30.0),
        Group(name="idle", before_ms=10.0, after_ms=0.0),
    ),
)
Data = dict[str, Any]


def step_s(recipe: Recipe) -> float:
    """BF16 halves a step, compilation takes a fifth of it away, three threads are slow."""
    factor = 0.5 if recipe.strategies.amp else 1.0
    factor *= 0.8 if recipe.strategies.compile else 1.0
    return 0.1 * factor * (1.3 if recipe.run.threads_per_rank == 3 else 1.0)


def broken(recipe: Recipe) -> str | None:
    return "out of memory" if recipe.run.gc_every == 7 else None


class Machine(Landscape):
    """Losses fall, and BF16's are a thousandth higher; segments begin a minute after one another."""

    clock: float = 1e9

    def __call__(self, arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
        found = super().__call__(arm, folder, steps, timeout_s=timeout_s)
        self.clock += 60.0
        if found.times is None:
            return found
        factor = 1.001 if arm.recipe.strategies.amp else 1.0
        losses = tuple(factor * 5 / (1 + i) for i in range(steps.num_steps))
        return replace(found, times=replace(found.times, losses=losses, began_at=self.clock))


def guard(baseline: Arm, arm: Arm, folder: Path) -> GuardResult:
    """Compilation fails its check; BF16 passes with a bias that is measured."""
    if arm.recipe.strategies.compile:
        off = Check(what="losses", found=0.5, allowed=1e-5, where="step 3")
        return GuardResult(tier="float32 proxy", passed=False, sentence="losses are off", checks=(off,))
    bias = Bias(what="loss", mean=0.001, reach=0.0002, negligible=0.0005, margin=0.002, sd=0.0001, num_seeds=4)
    near = Check(what="losses", found=math.inf, allowed=math.inf)
    return GuardResult(tier="bias test", passed=True, sentence="no bias", checks=(near,), biases=(bias,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the real code has left, with segments that a formula measured."""
    folder = tmp_path_factory.mktemp("page")
    asked = Asked(
        recipe="synthetic",
        overrides=("strategies.amp=false",),
        arms=tuple(map(parse_arm, ARMS)),
        declared=Declared(calibration_pairs=4),
        price_per_device_hour=2.0,
        out=folder / "out",
        command=("stepladder", "compare", "synthetic", "--out", "out", "--pairs", "16"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPLADDER_CACHE", str(folder / "cache"))
        patch.setattr("stepladder.launch.compare.experiment.minimum_detectable_effect", lambda *_, **__: 0.01)
        patch.setattr("stepladder.launch.compare.comparison.explain_arms", lambda *_: {"bf16": WHY})
        compare(asked, guard=guard, measure=Machine(step_s, failure=broken), make_plan=partial(make_plan, num_gpus=0))
    return folder / "out"


@pytest.fixture
def folder(measured: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return shutil.copytree(measured, tmp_path / "copy")


@pytest.fixture(scope="module")
def data(measured: Path) -> Data:
    return data_of(load(measured))


def rewrite(folder: Path, change: Callable[[Data], object]) -> None:
    told = json.loads((folder / "results.json").read_text())
    change(told)
    (folder / "results.json").write_text(json.dumps(told))


def segment(folder: Path, name: str) -> Data:
    return json.loads((folder / "segments" / f"{name}.json").read_text())


def by_arm(rows: Sequence[Data]) -> dict[str, Data]:
    return {row["arm"]: row for row in rows}


# ---- what it says


def test_every_comparison_leaves_its_page(measured: Path) -> None:
    text = (measured / "report.html").read_text()
    assert text == page.page_of(measured)
    assert "<title>Comparison: synthetic</title>" in text


def test_the_answer_names_the_fastest_arm_that_may_claim_it(data: Data) -> None:
    assert re.fullmatch(r"bf16 is (1\.9\d|2\.0\d)x as fast as the baseline", data["answer"]["headline"])
    lines = by_arm(data["answer"]["lines"])
    assert [line["badge"] for line in lines.values()] == [
        "faster",
        "not the same training",
        "slower",
        "failed: out of memory",
    ]
    times = next(each["value"] for each in data["answer"]["figures"] if each["label"] == "time of a step").split(" → ")
    assert float(times[0]) == pytest.approx(100, rel=0.02)
    assert float(times[1]) == pytest.approx(50, rel=0.02)


def test_of_an_arm_that_failed_the_guard_no_multiplier_stands_anywhere(folder: Path, data: Data) -> None:
    assert by_arm(data["pairs"])["compiled"]["different"]
    row = next(row for row in data["forest"]["rows"] if row["name"] == "compiled")
    assert (row["mark"], row["text"]) == (None, "no multiplier")
    heads, rows = data["table"]["heads"], data["table"]["rows"]
    assert dict(zip(heads, rows[2], strict=True))["times faster [95 %]"] is None
    rewrite(folder, lambda told: told["arms"].pop(1))
    assert data_of(load(folder))["answer"]["headline"] == (
        "Nothing is won: compiled takes less time, but is not the same training"
    )


def test_without_a_guard_the_headline_says_by_how_much_is_not_known(folder: Path) -> None:
    rewrite(folder, lambda told: [arm.update(parity=None, may_claim=False) for arm in told["arms"]])
    shown = data_of(load(folder))
    assert shown["answer"]["headline"].startswith("bf16 is faster; by how much is not said")
    assert all(row["mark"] is None for row in shown["forest"]["rows"])


@pytest.mark.parametrize(
    ("kind", "headline"),
    [
        ("same", "No difference as large as 1 %"),
        ("undecided", "No arm was shown to be faster, and not every arm is decided"),
        ("slower", "No arm is faster than the baseline"),
    ],
)
def test_where_nothing_is_won_the_headline_says_what_was_found(folder: Path, kind: str, headline: str) -> None:
    rewrite(folder, lambda told: [arm["verdict"].update(kind=kind) for arm in told["arms"][1:4]])
    assert data_of(load(folder))["answer"]["headline"] == headline


def test_pairs_and_their_running_interval_are_those_of_the_segments(measured: Path, data: Data) -> None:
    shown = by_arm(data["pairs"])["bf16"]
    for index, (number, speed) in enumerate(shown["points"]):
        medians = [
            segment(measured, f"pair-{index:03d}-{name}")["segment"]["median_s"] for name in ("baseline", "bf16")
        ]
        assert number == index + 1
        assert speed == pytest.approx(medians[0] / medians[1])
    verdict = json.loads((measured / "results.json").read_text())["arms"][1]["verdict"]
    decided = next(each for each in shown["running"] if each["round"] == shown["decided"])
    assert shown["decided"] == verdict["num_pairs"]
    assert decided["speed"] == pytest.approx(1 / verdict["ratio"])
    assert (decided["low"], decided["high"]) == pytest.approx((1 / verdict["high"], 1 / verdict["low"]))
    assert decided["floor"] == pytest.approx(verdict["floor"])


def test_every_segment_stands_at_its_time_beside_the_usual_one_of_its_arm(measured: Path, data: Data) -> None:
    files = [*measured.glob("segments/pair-*.json"), *measured.glob("segments/calibration-*.json")]
    failed = [file for file in files if json.loads(file.read_text())["failure"]]
    assert len(data["segments"]) == len(files) - len(failed)
    assert data["segments"] == sorted(data["segments"], key=lambda each: each["at_s"])
    own = sorted(each["beside_usual"] for each in data["segments"] if each["arm"] == "bf16")
    assert own[0] <= 0 <= own[-1] < 0.02


def test_losses_are_the_segments_and_their_distance_is_the_planted_one(data: Data) -> None:
    curves, beside = by_arm(data["losses"]["curves"]), by_arm(data["losses"]["beside"])
    assert curves["baseline"]["loss"] == pytest.approx([5 / x for x in curves["baseline"]["x"]])
    assert beside["bf16"]["share"] == pytest.approx([0.001] * len(beside["bf16"]["x"]))
    assert set(beside["slow"]["share"]) == {0.0}


def test_parts_of_a_step_add_up_and_stand_beside_the_baseline(data: Data) -> None:
    baseline, bf16 = data["breakdown"]
    assert (baseline["arm"], baseline["step_ms"]) == ("baseline", 100.0)
    assert baseline["parts"] == [["matrix products", 60.0], ["communication", 30.0], ["idle", 10.0]]
    assert sum(ms for _, ms in bf16["parts"]) == bf16["step_ms"] == 50.0


def test_the_guard_is_shown_with_every_number_and_infinity_is_none(data: Data) -> None:
    bf16, compiled, _, failed = data["sameness"]
    assert bf16["biases"][0]["mean"] == 0.001
    assert bf16["checks"] == [{"what": "losses", "found": None, "allowed": None, "passed": True}]
    assert compiled["checks"] == [{"what": "losses (step 3)", "found": 0.5, "allowed": 1e-5, "passed": False}]
    assert not failed["checked"]


def test_failed_segments_stand_with_their_reasons(data: Data) -> None:
    segments = [row for row in data["failures"] if row["output"]]
    assert [(row["arm"], row["kind"], row["reason"]) for row in segments] == [
        ("broken", "out of memory", "out of memory it was")
    ]
    assert data["failures"][-1]["kind"] == "given up"


def test_the_recipes_are_compared_key_by_key(data: Data) -> None:
    assert data["recipes"]["names"] == ["baseline", "bf16", "compiled", "slow", "broken"]
    rows = {row[0]: row[1:] for row in data["recipes"]["rows"]}
    assert rows["strategies.amp.dtype"] == [None, "bf16", None, None, None]
    assert rows["run.gc_every"] == ["100", "100", "100", "100", "7"]
    assert "model.decoder.dim" not in rows


def test_the_command_to_do_it_again_leaves_the_folder_out(data: Data) -> None:
    commands = dict(data["reproduce"])
    assert commands["The whole again, in a new folder"] == "stepladder compare synthetic --pairs 16"
    assert "recipes/bf16.toml" in commands["One of its arms, trained to the end"]
    assert dict(data["environment"])["false verdicts allowed"] == "5 %"


# ---- ladders, ablations, grids, climbs


def bench(folder: Path, name: str, *, passes: bool = True) -> tuple[Asked, Tools]:
    declared = Declared(profile=False, calibration_pairs=4)
    asked = Asked(
        recipe="synthetic", overrides=("strategies.amp=false",), arms=(), declared=declared, out=folder / name
    )
    tools = Tools(
        measure=Machine(step_s, failure=broken),
        guard=Judge(lambda baseline, arm: passes),
        make_plan=partial(make_plan, num_gpus=0),
    )
    return asked, tools


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder, an ablation and a grid that the real code has left."""
    folder = tmp_path_factory.mktemp("searched")
    rungs = tuple(map(parse_rung, (ARMS[0], "useless=run.gc_every=9", ARMS[3], ARMS[1], ARMS[2])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPLADDER_CACHE", str(folder / "cache"))
        patch.setattr("stepladder.launch.compare.experiment.minimum_detectable_effect", lambda *_, **__: 0.01)
        asked, tools = bench(folder, "ladder")
        climb_ladder(asked, rungs, tools=tools)
        asked, tools = bench(folder, "ablation")
        ablate(asked, (rungs[0], rungs[3]), tools=tools)
        asked, tools = bench(folder, "grid")
        measure_grid(asked, parse_grid(["strategies.amp.dtype=bf16", "run.gc_every=7,100"]), tools=tools)
    return folder


def test_a_ladder_is_a_waterfall_in_which_each_rung_begins_where_the_last_kept_one_ended(searched: Path) -> None:
    shown = data_of(load(searched / "ladder"))
    rows = shown["waterfall"]["rows"]
    assert [(row["name"], row["kept"]) for row in rows] == [
        ("bf16", True),
        ("useless", False),
        ("broken", False),
        ("compiled", True),
        ("slow", False),
    ]
    assert [row["from"] for row in rows] == pytest.approx([1, 2, 2, 2, 2.5], rel=0.02)
    assert rows[3]["to"] == shown["waterfall"]["product"] == pytest.approx(2.5, rel=0.02)
    assert rows[3]["low"] < 2.5 < rows[3]["high"]
    direct = shown["waterfall"]["direct"]
    assert direct["low"] < 2.5 < direct["high"]
    assert shown["answer"]["headline"] == (
        f"The finished stack is {direct['speed']:.2f}x as fast as the base: 2 of 5 rungs kept"
    )
    assert by_arm(shown["failures"])["broken"]["kind"] == "failed"
    assert [row["name"] for row in shown["left_out"]["rows"]] == ["bf16", "compiled"]
    assert [row["mark"][0] for row in shown["left_out"]["rows"]] == pytest.approx([2, 1.25], rel=0.02)
    assert shown["pairs"][0]["points"], "of the finished stack against the base"
    for row in rows:
        if row["page"]:
            assert (searched / "ladder").joinpath(*row["page"]).is_file(), "the page of the rung's own comparison"


def test_an_ablation_says_which_part_wins_the_most(searched: Path) -> None:
    headline = data_of(load(searched / "ablation"))["answer"]["headline"]
    assert re.fullmatch(r"bf16 wins the most: the stack is (1\.9\d|2\.0\d)x as fast with it", headline)


def test_a_grid_is_named_by_its_values(searched: Path) -> None:
    shown = data_of(load(searched / "grid"))
    assert shown["answer"]["headline"].endswith("x as fast: amp.dtype = bf16, run.gc_every = 100")
    assert shown["forest"]["rows"][0]["name"] == "amp.dtype = bf16, run.gc_every = 7"
    assert [row["badge"] for row in shown["forest"]["rows"]] == ["failed", "best"]


def test_a_climb_is_a_waterfall_with_its_notebook(searched: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(searched / "ladder", tmp_path / "climb")

    def climbed(told: Data) -> None:
        more = {"hypothesis": "it computes", "evidence": ["61 % matrix products"], "source": "advice", "bound": 0.5}
        more |= {"share_before": {"matrix products": 0.6, "idle": 0.4}, "stack_step_s": 0.1}
        told.update(kind="climb", steps=[row | more for row in told.pop("rungs")], leave_one_out=[])

    rewrite(folder, climbed)
    shown = data_of(load(folder))
    assert shown["answer"]["headline"].endswith("2 of 5 changes kept")
    assert shown["notebook"][0]["bound"] == "50.0 % of a step at most"
    assert shown["notebook"][0]["evidence"] == ["61 % matrix products"]
    assert shown["waterfall"]["rows"][0]["to"] == pytest.approx(2.0, rel=0.02)
    [profile] = shown["breakdown"]  # one, which was made before the first change
    assert profile["label"] == "before 1, bf16"
    assert profile["parts"] == [["matrix products", pytest.approx(60)], ["idle", pytest.approx(40)]]


def test_a_row_whose_folder_lies_outside_is_refused(searched: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(searched / "ladder", tmp_path / "ladder")
    rewrite(folder, lambda told: told["rungs"][0].update(folder="../../etc"))
    with pytest.raises(UsageError, match="lies outside"):
        page.page_of(folder)


# ---- what nobody may write into it


def test_the_policy_names_exactly_the_script_and_the_style_that_the_page_carries(measured: Path) -> None:
    text = page.page_of(measured)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    shipped = "".join(file.read_text() for file in Path(page.__file__).parent.glob("*.[cj]s*"))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttpRequest|innerHTML|\bsrc=", shipped)


def spoil(folder: Path) -> None:
    """Call an arm something that is markup, wherever it is named."""

    def renamed(told: Data) -> None:
        told["recipe"] = told["ended"] = HOSTILE
        arm = told["arms"][1]
        arm.update(name=HOSTILE, changes=[HOSTILE])
        arm["why"]["sentence"] = arm["parity"]["sentence"] = arm["verdict"]["sentence"] = HOSTILE
        told["arms"][4]["failure"] = HOSTILE
        told["command"] = [HOSTILE]

    rewrite(folder, renamed)
    experiment = json.loads((folder / "experiment.json").read_text())
    experiment["environment"]["versions"] = {HOSTILE: HOSTILE}
    (folder / "experiment.json").write_text(json.dumps(experiment))
    (folder / "recipes" / "slow.toml").write_text(f"name = '{HOSTILE}'\n")


def test_hostile_names_do_not_change_the_structure_of_the_page(folder: Path) -> None:
    calm = page.page_of(folder)
    spoil(folder)
    bad = page.page_of(folder)
    tags = re.compile(r"<[a-zA-Z/!][^>]*>")
    told = re.compile(r'(<script type="application/json" id="data">).*?(</script>)', re.DOTALL)
    assert tags.findall(told.sub(r"\1\2", bad)) == tags.findall(told.sub(r"\1\2", calm))
    assert bad.count("</script>") == 2


# ---- what is not there, or not ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "it is no table"),
        ("{}", "lacks 'calibration'"),
        ('{"kind": "guess"}', "kind = 'guess'"),
        ('{"kind": "ladder", "rungs": 3}', "is not what a comparison leaves"),
        ('{"kind": "ladder", "rungs": [{}]}', "lacks 'name'"),
        ('{"kind": "ladder"}', None),
        ('{"calibration": {"pair_sd": 1, "num_pairs": 8, "source": ""}, "arms": []}', "it has no arms"),
        ('{"calibration": {"pair_sd": 1, "num_pairs": 8, "source": ""}, "arms": [1]}', "not what a comparison leaves"),
    ],
)
def test_a_file_that_no_comparison_left_gives_one_sentence(tmp_path: Path, text: str, said: str | None) -> None:
    (tmp_path / "results.json").write_text(text)
    if said is None:
        assert data_of(load(tmp_path))["answer"]["headline"] == "None of 0 rungs was kept"
        return
    with pytest.raises(UsageError) as refused:
        page.page_of(tmp_path)
    [sentence] = refused.value.problems
    assert sentence.startswith(f"{tmp_path / 'results.json'}: ")
    assert said in sentence


def test_a_comparison_that_has_not_ended_says_how_it_does(folder: Path) -> None:
    (folder / "results.json").unlink()
    with pytest.raises(UsageError, match="has not ended yet; add --resume"):
        page.write_page(folder)


JUNK = st.sampled_from([None, True, -1, 0, 1e300, float("nan"), "", "x", HOSTILE, [], [1], {}, {"x": None}, [[]], [{}]])


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places in a tree of JSON."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inner for place in nodes(value, (*path, key)))][1 if not path else 0 :]


@settings(deadline=None, max_examples=25)
@given(number=st.integers(min_value=0, max_value=10**6), junk=JUNK)
def test_results_with_any_one_value_replaced_give_a_page_or_one_sentence(
    measured: Path, searched: Path, number: int, junk: Any
) -> None:
    folder = random.Random(number).choice([measured, searched / "ladder", searched / "ablation", searched / "grid"])
    file = folder / "results.json"
    before = file.read_text()
    told = json.loads(before)
    places = nodes(told)
    *way, last = places[number % len(places)]
    table = told
    for key in way:
        table = table[key]
    table[last] = junk
    try:
        file.write_text(json.dumps(told))
        said = page_or_sentences(folder)
    finally:
        file.write_text(before)
    assert said == 1


def page_or_sentences(folder: Path) -> int:
    """1 for a page with the scripts that it should have, else how many problems are told of."""
    try:
        return page.page_of(folder).count("</script>") - 1
    except UsageError as refused:
        return len([each for each in refused.problems if str(folder / "results.json") in each])


def test_without_segments_recipes_and_experiment_the_figures_are_still_there(folder: Path) -> None:
    for name in ("segments", "recipes"):
        shutil.rmtree(folder / name)
    (folder / "experiment.json").unlink()
    shown = data_of(load(folder))
    assert shown["answer"]["headline"].startswith("bf16 is")
    assert (shown["losses"], shown["segments"]) == (None, [])
    assert page.page_of(folder)


def test_a_page_that_cannot_be_written_is_a_note_and_no_failure(folder: Path) -> None:
    said: list[str] = []
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    page.leave_page(folder, said.append)
    assert len(said) == 1
    assert said[0].startswith("note: no page: ")
    assert not list(folder.glob(".partial*"))


def test_the_command_makes_the_page_anew_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").unlink()
    assert main(["compare", "--report", f"{folder}/"]) == ExitCode.DONE
    assert capsys.readouterr().out == f"report      {folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()
    assert main(["compare", "--report", str(folder), "--pairs", "4"]) == ExitCode.USAGE
    assert "--report beside pairs" in capsys.readouterr().err
    assert main(["compare", "--report", str(folder / "none")]) == ExitCode.USAGE
    assert "is no folder" in capsys.readouterr().err


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Generator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with open_browser(program) as opened:
        yield opened


def show(browser: Page, folder: Path, **more: int) -> Page:
    path = page.write_page(folder)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(path, **more)
    browser.until("document.documentElement.dataset.ready === 'yes'")
    browser.frame()
    return browser


def text_of(browser: Page, selector: str) -> str:
    return browser.run(f"document.querySelector({json.dumps(selector)}).innerText")


def num_colours(browser: Page, selector: str) -> int:
    """Different colours on a canvas; an empty one has one."""
    return browser.run(
        f"(c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
        f"(document.querySelector({json.dumps(selector)}))"
    )


def test_the_answer_comes_first_and_every_section_is_drawn(browser: Page, folder: Path) -> None:
    shown = show(browser, folder)
    assert shown.run("[...document.querySelectorAll('section')].map(each => each.id)") == [
        "answer", "intervals", "table", "pairs", "why", "losses", "sameness", "failures", "machine", "recipes",
        "environment", "reproduce", "notes",
    ]  # fmt: skip
    headline = data_of(load(folder))["answer"]["headline"]
    box = shown.box(".headline")
    assert text_of(shown, ".headline") == headline
    assert box["y"] + box["height"] < 400, "seen without scrolling"
    assert "not the same training" in text_of(shown, "#answer")
    assert "x [" in text_of(shown, "#intervals")
    assert "float32 proxy: failed" in text_of(shown, "#table")
    assert "out of memory it was" in text_of(shown, "#failures")
    assert "exposed communication" in text_of(shown, "#why")
    assert "strategies.amp.dtype" in text_of(shown, "#recipes")
    assert "stepladder compare synthetic --pairs 16" in text_of(shown, "#reproduce")
    canvases = shown.run("document.querySelectorAll('canvas').length")
    assert canvases == 6, "three arms' pairs, two of losses, the machine"
    assert num_colours(shown, "#pairs canvas") > 10
    assert num_colours(shown, "#machine canvas") > 10
    assert num_colours(shown, "#losses canvas") > 10
    assert shown.requests == [(folder / "report.html").as_uri()]
    assert shown.complaints == []


def test_places_of_marks_are_those_of_the_logarithm(browser: Page, folder: Path) -> None:
    """1 lies where the strong line is, and 1 / 1.3 as far to the left as 1.3 would lie to the right."""
    shown = show(browser, folder)
    rows = "[...document.querySelectorAll('#intervals .lane-row:not(.axis)')]"
    one = shown.run("parseFloat(document.querySelector('#intervals .tick.one').style.left)")
    mids = shown.run(f"{rows}.map(each => parseFloat(each.querySelector('.mid')?.style.left))")
    marks = [row["mark"] for row in data_of(load(folder))["forest"]["rows"]]
    assert mids[1] is None, "nothing is drawn of what is not the same training"
    assert (mids[0] - one) / (mids[2] - one) == pytest.approx(math.log(marks[0][0]) / math.log(marks[2][0]), rel=1e-3)


def test_pointing_at_a_pair_says_what_was_known_then(browser: Page, folder: Path) -> None:
    shown = show(browser, folder)
    rows = by_arm(data_of(load(folder))["pairs"])["bf16"]
    box = shown.box("#pairs canvas")
    shown.mouse("mouseMoved", box["x"] + box["width"] - 30, box["y"] + 100)
    last = rows["running"][-1]
    said = shown.run("document.querySelector('#tip').textContent")
    assert f"pair {last['round']}: {rows['points'][-1][1]:.3f}x" in said
    assert f"so far {last['speed']:.3f}x [{last['low']:.3f}, {last['high']:.3f}]" in said


def test_a_dark_scheme_is_drawn_dark_and_a_click_changes_it(browser: Page, folder: Path) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        shown = show(browser, folder)
        ground = "getComputedStyle(document.body).backgroundColor"
        assert shown.run(ground) == "rgb(19, 21, 25)"
        chip = "getComputedStyle(document.querySelector('.chip.t-good')).color"
        dark = shown.run(chip)
        shown.run("document.querySelector('#scheme').click()")
        assert shown.run(ground) == "rgb(247, 247, 245)"
        assert shown.run(chip) != dark
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("width", [390, 1024])
def test_a_narrow_window_scrolls_only_downwards(browser: Page, folder: Path, width: int) -> None:
    shown = show(browser, folder, width=width)
    assert shown.run("document.documentElement.scrollWidth") <= width


def test_names_that_are_markup_are_shown_as_text_and_run_nothing(browser: Page, folder: Path) -> None:
    spoil(folder)
    shown = show(browser, folder)
    assert HOSTILE in text_of(shown, "#answer")
    assert HOSTILE in text_of(shown, "h1")
    assert HOSTILE in text_of(shown, "#environment")
    assert shown.run("window.hacked") is None
    assert shown.run("document.querySelectorAll('script').length") == 2
    assert shown.run("[...document.querySelectorAll('a')].every(each => /^(#|file:)/.test(each.href) || each.hash)")
    assert shown.complaints == []


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("ladder", ["answer", "waterfall", "left-out", "table", "pairs"]),
        ("ablation", ["answer", "left-out", "table", "pairs", "why"]),
        ("grid", ["answer", "intervals", "table", "pairs", "why"]),
    ],
)
def test_ladders_ablations_and_grids_are_drawn(browser: Page, searched: Path, kind: str, first: list[str]) -> None:
    shown = show(browser, searched / kind)
    assert shown.run("[...document.querySelectorAll('section')].map(each => each.id)")[:5] == first
    assert shown.complaints == []
    if kind == "ladder":
        kept = shown.run(
            "[...document.querySelectorAll('#waterfall .fall.kept')].map(each => parseFloat(each.style.left))"
        )
        one = shown.run("parseFloat(document.querySelector('#waterfall .tick.one').style.left)")
        assert kept[0] == pytest.approx(one), "the first rung begins at 1"
        assert shown.run("document.querySelector('#waterfall a').href").endswith("/rungs/01-bf16/report.html")
