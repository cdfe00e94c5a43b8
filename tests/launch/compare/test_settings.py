import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stepladder.launch.compare.arms import ArmSpec, parse_arm, read_arms
from stepladder.launch.compare.declared import seconds_of, share_of
from stepladder.launch.compare.settings import Settings, is_experiment, read_experiment
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan

FILE = """
recipe = "tiny.toml"
pairs = 8
margin = "2%"
budget = "10m"
changes_workload = ["batch.microbatch_size"]

[arms]
file = "other.toml"
shipped = "demo"

[arms.fused]
strategies.adamw.implementation = "foreach"

[arms.many]
batch.microbatch_size = 8
strategies.ac = {}
"""


@pytest.fixture
def write(tmp_path: Path, tiny: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return make


def test_a_file_says_what_the_options_say(write: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("")
    settings, arms = read_experiment(write(FILE))
    assert settings.recipe == str(tmp_path / "tiny.toml")
    assert arms == (
        ArmSpec(name="file", recipe=str(tmp_path / "other.toml")),
        ArmSpec(name="shipped", recipe="demo"),
        ArmSpec(name="fused", changes=('strategies.adamw.implementation="foreach"',)),
        ArmSpec(name="many", changes=("batch.microbatch_size=8", "strategies.ac={}")),
    )
    asked = settings.asked(arms)
    assert asked.refused == ()
    assert asked.declared.protocol.max_pairs == 8
    assert asked.declared.protocol.margin == 0.02
    assert asked.budget_s == 600
    assert asked.changes_workload == ("batch.microbatch_size",)


def test_a_recipe_is_no_experiment(write: Callable[[str], Path], tiny: Path) -> None:
    assert not is_experiment(tiny)
    assert not is_experiment(tiny.parent / "absent.toml")
    assert not is_experiment(write("broken = "))
    assert is_experiment(write("recipe = 'demo'\n[arms.a]\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe = 'demo'\npears = 8\n[arms.a]\n", "did you mean 'pairs'"),
        ("[arms.a]\n", "recipe: missing"),
        ("recipe = 'demo'\npairs = 'x'\n[arms.a]\n", "pairs"),
        ("recipe = 'demo'\n[arms]\na = 3\n", "arms.a = 3: must be a table"),
        ("recipe = 'demo'\narms = 3\n", "arms = 3: must be tables"),
    ],
)
def test_mistakes_in_a_file_are_sentences(write: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_experiment(write(text))
    assert said in str(caught.value)


def test_mistakes_in_options_are_collected_for_those_of_the_arms() -> None:
    settings = Settings(recipe="demo", pairs=3, margin="much", budget="soon", ranks=0)
    asked = settings.asked((), ["before"])
    said = "\n".join(asked.refused)
    assert asked.refused[0] == "before"
    assert "--pairs 3: too few for any verdict; allow 4 at least" in said
    assert "--margin much: not a share" in said
    assert "--budget soon: not a time" in said
    assert "--ranks 0" in said


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_times_have_units(text: str, seconds: float) -> None:
    assert seconds_of(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "m", "-3s", "3 weeks", "0", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        seconds_of(text, "--budget")


def test_shares_are_percent_or_parts() -> None:
    assert share_of("1%", "--margin") == share_of("0.01", "--margin") == 0.01


def test_the_experiment_in_the_docs_is_one(write: Callable[[str], Path], tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text()
    block = page.split("what it says:\n\n")[1].split("\n\nThe folder")[0]
    (tmp_path / "mine.toml").write_text("")
    settings, arms = read_experiment(write(textwrap.dedent(block)))
    assert (settings.recipe, settings.pairs, settings.budget) == ("demo", 12, "30m")
    assert [arm.name for arm in arms] == ["mine", "foreach"]
    assert settings.asked(arms).refused == ()
    read_arms(settings.recipe, arms[1:], partial(make_plan, num_gpus=0))


def test_arms_on_the_page_are_arms_of_the_demo() -> None:
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text()
    (line,) = re.findall(r"stepladder compare demo (--arm .*) --budget 30m", page)
    specs = [parse_arm(each) for each in line.split() if each != "--arm"]
    assert len(read_arms("demo", specs, partial(make_plan, num_gpus=0))) == 3
    (code,) = re.findall(r"foreach = (ArmSpec\(.*\))\n", page)
    read_arms("demo", [eval(code, {"ArmSpec": ArmSpec})], partial(make_plan, num_gpus=0))
