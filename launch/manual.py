"""Pages for the reader at the terminal: techniques, recipes, keys. All of it comes from docstrings and files."""

import dataclasses
import difflib
import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from ..strategies.catalogue import LABELS, describe_keys, pages, strategy_class
from ..strategies.plugins import installed
from . import recipe as recipes
from .errors import UsageError
from .schema import Recipe


def _width() -> int:
    return min(shutil.get_terminal_size((110, 24)).columns, 120)


def overview() -> str:
    """The table of techniques: what each is, what it saves, what it costs."""
    lines: list[str] = [
        "strategies in the order in which they are applied; `stepladder strategies NAME` for the page",
        "",
    ]
    found = pages()
    indent = 2 + max(len(page.name) for page in found)
    for page in found:
        lines.append(f"{page.name:<{indent}}{page.headline}")
        for label in ("Saves", "Costs"):
            text = f"{label.lower()}: {page.answers.get(label, '-')}"
            lines += textwrap.wrap(
                text, _width(), initial_indent=" " * indent, subsequent_indent=" " * (indent + 2 + len(label))
            )
    return "\n".join(lines)


def page(name: str) -> str:
    """Everything about one technique, and its recipe keys. Raises: UsageError."""
    by_name = {each.name: each for each in pages()}
    if name not in by_name:
        close = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(by_name)}"
        raise UsageError(f"{name}: no such strategy; {hint}")
    found = by_name[name]
    lines = [f"strategies.{name}: {found.headline}", ""]
    answers = [(label, found.answers.get(label, "-")) for label in LABELS]
    for label, answer in [*answers, ("Changes", f"{found.changes} (what a comparison checks)")]:
        lines += textwrap.wrap(answer, _width(), initial_indent=f"{label:<11}", subsequent_indent=" " * 11)
    lines += ["", "keys"]
    for key, kind, default, text in found.keys:
        lines.append(f"  {key} = {default}    ({kind})")
        lines += textwrap.wrap(text, _width(), initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def shipped_recipes() -> str:
    """Names of the shipped recipes with the first comment of each file."""
    lines: list[str] = []
    for name, path in recipes.shipped().items():
        first = path.read_text().splitlines()[0].lstrip("# ")
        lines.append(f"{name:<28}{first}")
    return "\n".join(lines)


def keys() -> str:
    """Every table and key of a recipe as Markdown."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for path, (key, kind, default, text) in _all_keys(Recipe, ""):
        where = f"{path}.{key}" if path else key
        lines.append("| " + " | ".join(_cell(each) for each in (f"`{where}`", kind, f"`{default}`", text)) + " |")
    return "\n".join(lines)


def _all_keys(kind: type[Any], path: str) -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    described = {row[0]: row for row in describe_keys(kind)}
    for each in dataclasses.fields(kind):
        hint = installed() if each.name == "strategies" else typing.get_type_hints(kind)[each.name]
        inner = (
            strategy_class(hint) if typing.get_args(hint) and dataclasses.is_dataclass(strategy_class(hint)) else hint
        )
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from _all_keys(inner, f"{path}.{each.name}" if path else each.name)
        else:
            yield path, described[each.name]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")
