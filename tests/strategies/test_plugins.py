"""Third-party strategies take their declared place, and a broken one is a sentence."""

from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from stepladder.strategies import Strategies
from stepladder.strategies.errors import PluginError
from stepladder.strategies.plugins import GROUP, extended

MODULE = '''"""Does nothing, twice: a strategy of somebody else.

Problem: none.
Mechanism: none.
Saves: nothing.
Costs: nothing.
When: in a test.
When not: elsewhere.
Measure: whether this page is printed.
Source: tests/strategies/test_plugins.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from stepladder.strategies.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Twice:
    """Nothing, a number of times."""

    times: int = 2
    """How many times."""

    after: ClassVar[str] = "ac"
    conflicts: ClassVar[tuple[Refusal, ...]] = (Refusal(beside="amp", why="nobody knows", instead="remove one"),)
    owns: ClassVar[frozenset] = frozenset()

    def check(self, run) -> Iterator[str]:
        if self.times > 9:
            yield f"times = {self.times}: too often; use at most 9"

    def apply(self, program, run):
        return replace(program, reports=(*program.reports, lambda: [f"plugin: {self.times} times nothing"]))


@dataclass(kw_only=True)
class Mutable:
    after: ClassVar[str] = "ac"
    conflicts: ClassVar[tuple] = ()
    owns: ClassVar[frozenset] = frozenset()

    def check(self, run): return iter(())
    def apply(self, program, run): return program


class NotADataclass:
    after = "ac"


@dataclass(frozen=True)
class Lost:
    after: ClassVar[str] = "nowhere"
    conflicts: ClassVar[tuple] = ()
    owns: ClassVar[frozenset] = frozenset()

    def check(self, run): return iter(())
    def apply(self, program, run): return program


@dataclass(frozen=True)
class Unfinished:
    after: ClassVar[str] = "ac"
    conflicts: ClassVar[tuple] = ()
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like an installed distribution with one strategy."""
    (tmp_path / "somebody_else.py").write_text(MODULE)
    info = tmp_path / "somebody_else-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody-else\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntwice = somebody_else:Twice\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


def test_a_plugin_stands_right_behind_the_strategy_it_names(installed: Path) -> None:
    kind = extended([point("twice", "somebody_else:Twice")])
    before = [each.name for each in fields(Strategies)]
    names = [each.name for each in fields(kind)]
    assert names.index("twice") == names.index("ac") + 1
    assert [name for name in names if name != "twice"] == before
    assert kind().twice is None
    with pytest.raises(AttributeError):
        kind().twice = 1


def test_without_plugins_the_table_is_the_shipped_one() -> None:
    assert extended([]) is Strategies


BROKEN = {
    "NotADataclass": "not a dataclass",
    "Mutable": "not frozen",
    "Lost": "after = 'nowhere' names no strategy",
    "Unfinished": "has no owns, check, apply",
    "Missing": "cannot be loaded",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_does_not_fit_is_one_sentence(name: str, installed: Path) -> None:
    with pytest.raises(PluginError) as caught:
        extended([point("mine", f"somebody_else:{name}")])
    sentence = str(caught.value)
    assert BROKEN[name] in sentence
    assert "strategy mine of somebody_else:" in sentence
    assert "\n" not in sentence


def test_a_plugin_that_takes_a_name_or_has_an_impossible_one_is_one_sentence(installed: Path) -> None:
    with pytest.raises(PluginError, match="the name is taken"):
        extended([point("clip", "somebody_else:Twice")])
    with pytest.raises(PluginError, match="not a name that a recipe can spell"):
        extended([point("to-and-fro", "somebody_else:Twice")])
    with pytest.raises(PluginError, match="cannot be loaded"):
        extended([point("mine", "no_such_module:Twice")])


RECIPE = """
[model.decoder]
dim = 16
num_layers = 2
num_heads = 2
ffn_dim = 32
[data.synthetic]
[batch]
microbatch_size = 1
sequence_length = 8
[run]
num_steps = 1
device = "cpu"
[strategies.adamw]
[strategies.ac]
[strategies.twice]
times = 3
"""


def test_an_installed_plugin_is_checked_applied_and_in_the_manual(
    installed: Path, tmp_path: Path, stepladder: Callable[..., Any]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    here = {"PYTHONPATH": str(installed)}

    checked = stepladder("check", recipe, **here)
    assert checked.returncode == 0, checked.stderr
    assert "strategies  ac > twice > adamw" in checked.stdout

    refused = stepladder("check", recipe, "--set", "strategies.twice.times=10", "--set", "strategies.amp={}", **here)
    assert refused.returncode == 2
    assert "strategies.twice.times = 10: too often; use at most 9" in refused.stderr
    assert "strategies.twice: cannot work beside strategies.amp: nobody knows; remove one" in refused.stderr

    unknown = stepladder("check", recipe, "--set", "strategies.twice.tims=10", **here)
    assert unknown.returncode == 2
    assert "did you mean 'times'" in unknown.stderr

    assert "Does nothing, twice" in stepladder("strategies", **here).stdout
    page = stepladder("strategies", "twice", **here).stdout
    assert "whether this page is printed" in page
    assert "times = 2" in page

    ran = stepladder("run", recipe, "--out", tmp_path / "run", **here)
    assert ran.returncode == 0, ran.stderr
    assert "plugin: 3 times nothing" in ran.stdout


def test_a_broken_installed_plugin_ends_the_command_with_a_sentence(
    installed: Path, tmp_path: Path, stepladder: Callable[..., Any]
) -> None:
    info = installed / "somebody_else-1.0.dist-info"
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = somebody_else:Lost\n")
    done = stepladder("check", "demo", PYTHONPATH=str(installed))
    assert done.returncode == 2
    assert "names no strategy" in done.stderr
    assert "Traceback" not in done.stderr
