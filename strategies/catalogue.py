"""The table of techniques and the pages behind it, read from the strategies' docstrings: the user's manual."""

import ast
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any

from .changes import declared
from .plugins import installed

LABELS = ("Problem", "Mechanism", "Saves", "Costs", "When", "When not", "Measure", "Source")


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the manual says about one strategy."""

    name: str
    headline: str
    answers: dict[str, str]
    changes: str
    """What it may change about the numbers, as it declares."""
    keys: list[tuple[str, str, str, str]]
    """(key, type, default, what it does)"""


def pages() -> list[Page]:
    """A page for every strategy that can be named in a recipe, in order of application."""
    return [_page(each.name, strategy_class(each.type)) for each in fields(installed())]


def strategy_class(annotation: Any) -> type[Any]:
    """The class in `Class | None`."""
    return next(each for each in typing.get_args(annotation) if each is not types.NoneType)


def _page(name: str, kind: type[Any]) -> Page:
    text = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    headline, _, rest = text.partition("\n")
    parts = re.split(rf"^({'|'.join(sorted(LABELS, key=len, reverse=True))}): ", rest, flags=re.MULTILINE)
    answers = {label: " ".join(answer.split()) for label, answer in zip(parts[1::2], parts[2::2], strict=True)}
    changes = declared(kind).sentence()
    return Page(name=name, headline=headline.rstrip("."), answers=answers, changes=changes, keys=describe_keys(kind))


def describe_keys(kind: type[Any]) -> list[tuple[str, str, str, str]]:
    """(key, type, default, text) of each field of a config dataclass; the text is the string below the field."""
    texts = _field_texts(kind)
    hints = typing.get_type_hints(kind)
    return [(each.name, type_name(hints[each.name]), _default(each), texts.get(each.name, "")) for each in fields(kind)]


def _field_texts(kind: type[Any]) -> dict[str, str]:
    """The string literal that follows each annotated field in the class body."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0]).body
    texts: dict[str, str] = {}
    for node, following in pairwise(body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[node.target.id] = " ".join(str(following.value.value).split())
    return texts


def type_name(hint: Any) -> str:
    """A type as the manual prints it: `int`, `"full" | "selective"`, `list of str`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(f'"{value}"' for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " | ".join(type_name(each) for each in arguments if each is not types.NoneType)
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is Mapping:
        return "table"
    return str(getattr(hint, "__name__", hint))


def _default(each: Any) -> str:
    if each.default is MISSING:
        return "required"
    if each.default is None:
        return "-"
    return str(each.default).lower() if isinstance(each.default, bool) else str(each.default)
