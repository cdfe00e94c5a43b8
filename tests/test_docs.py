"""What the documentation shows works: its strategy, its recipe fragments, its keys."""

import re
import sys
import tomllib
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.reader import Problems, read_table
from stepladder.launch.recipe import find, flatten
from stepladder.launch.schema import Recipe
from stepladder.strategies import Strategies
from stepladder.strategies.plugins import extended

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    return [
        (page.name, text)
        for page in PAGES
        for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    ]


def test_the_strategy_in_the_docs_works_as_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    (text,) = [text for page, text in blocks("python") if page == "strategies.md"]
    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    exec(compile(text, "docs/strategies.md", "exec"), module.__dict__)
    point = EntryPoint("gradient_noise", "documented:GradientNoise", "stepladder.strategies")

    kind: Any = extended([point])

    names = [each.name for each in kind.__dataclass_fields__.values()]
    assert names.index("gradient_noise") == names.index("clip") + 1
    strategy: Any = module.__dict__["GradientNoise"](deviation=0.5)
    parameter = torch.nn.Parameter(torch.zeros(1000))
    parameter.grad = torch.zeros(1000)
    from stepladder.strategies.base import Program

    def keep(program: Any, parameters: Any, *, want_norm: bool) -> Any:
        return parameters[0].grad.std()

    program = Program(model=torch.nn.Identity(), facts=Any, loss=Any, forward_backward=Any, clip_gradients=keep)
    noise = strategy.apply(program, None).clip_gradients(program, [parameter], want_norm=True)
    assert 0.4 < float(noise) < 0.6


def test_every_toml_fragment_has_known_keys() -> None:
    fragments = [(page, text) for page, text in blocks("toml") if "entry-points" not in text]
    assert fragments
    for page, text in fragments:
        tree = tomllib.loads(text)
        base = tree.pop("extends", None)
        whole = tomllib.loads(find(base or "demo").read_text())
        for where, value in flatten(tree):
            *parents, key = where.split(".")
            at = whole
            for parent in parents:
                at = at.setdefault(parent, {})
                at = at if isinstance(at, dict) else {}
            at[key] = value
        problems = Problems({})
        fields = {name: value for name, value in whole.items() if name != "strategies"}
        read_table(Recipe, fields, "", problems)
        read_table(Strategies, whole.get("strategies", {}), "strategies", problems)
        assert not problems.sentences, f"{page}: {problems.sentences}"


def test_every_command_in_the_docs_that_only_answers_runs(stepladder: Any) -> None:
    commands = set(
        re.findall(
            r"stepladder (strategies|recipes|keys|check|diff)\b([ a-z0-9_]*)`", "".join(p.read_text() for p in PAGES)
        )
    )
    known = {"": [], " demo": ["demo"], " ac": ["ac"]}
    tried = [
        (name, known[rest]) for name, rest in commands if rest in known and (rest or name not in ("check", "diff"))
    ]
    assert len(tried) >= 3
    for name, arguments in tried:
        answer = stepladder(name, *arguments)
        assert answer.returncode == 0, answer.stderr


def test_links_between_pages_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_compatibility_page_is_what_the_strategies_declare() -> None:
    from stepladder.strategies.compatibility import tables

    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert page.endswith(tables() + "\n"), "run stepladder compatibility and put its answer into the page"
