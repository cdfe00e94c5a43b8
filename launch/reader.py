"""Turns values from TOML into frozen dataclasses, strictly, and finds every problem at once."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ..strategies.catalogue import type_name


class Problems:
    """Collects sentences about keys, each with the file that the value came from."""

    def __init__(self, origins: Mapping[str, str]) -> None:
        self.origins = origins
        self.sentences: list[str] = []
        self.doubtful: set[str] = set()
        """Keys whose value is not what the user meant, because it was refused or its name was misspelt."""

    def add(self, path: str, said: str) -> None:
        """Note a problem of the value at `path`; `said` continues the path, from `: ` or ` = ` on."""
        origin = self.origins.get(path) or (self.origins.get("") if said.startswith(": missing") else None)
        self.sentences.append(f"{origin + ': ' if origin else ''}{path}{said}")
        self.doubtful.add(path)


def read_table(kind: type[Any], table: Mapping[str, Any], path: str, problems: Problems) -> Any:
    """An instance of the dataclass `kind`; None if it cannot be made.

    What is wrong goes to `problems` and its default takes its place: such an instance is good for finding more
    problems, not for running.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    keys = {each.name: each for each in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{path}.{key}" if path else key
        if key not in keys:
            problems.add(where, f": unknown key; {_suggestion(key, keys, path)}")
            meant = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            problems.doubtful |= {f"{path}.{each}" if path else each for each in meant}
            continue
        before = len(problems.sentences)
        read = _read_value(hints[key], value, where, problems)
        if read is not None or len(problems.sentences) == before:
            values[key] = read
    for key, each in keys.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and key not in table:
            where = f"{path}.{key}" if path else key
            problems.add(where, f": missing; {_example(where, hints[key])}")
    try:
        made = kind(**values)
    except TypeError:  # a required key is missing or was refused
        return None
    for problem in made.problems() if hasattr(made, "problems") else ():
        key = problem.split(":")[0].split(" ")[0]
        problems.add(f"{path}.{key}" if path else key, _rest(problem))
    return made


def _rest(problem: str) -> str:
    """The sentence after its key: the reader puts the path in front of the key."""
    key = problem.split(":")[0].split(" ")[0]
    return problem[len(key) :]


def _read_value(hint: Any, value: Any, path: str, problems: Problems) -> Any:
    """One value as its type; notes a problem and returns None if it does not fit."""
    hint, rules = _unwrap(hint)
    table = _table_type(hint)
    if table is not None:
        optional = types.NoneType in typing.get_args(hint)
        if isinstance(value, Mapping):
            return read_table(table, typing.cast(Mapping[str, Any], value), path, problems)
        if value is False and optional:
            return None
        off = f" or {path} = false to switch it off" if optional else ""
        problems.add(path, f" = {_show(value)}: must be a table; write {path} = {{}} for its defaults{off}")
        return None
    hint = _without_none(hint)
    hint, inner_rules = _unwrap(hint)
    checked, wrong = _scalar(hint, value)
    if wrong:
        problems.add(path, f" = {_show(value)}: must be {wrong}")
        return None
    broken = [problem for rule in (*rules, *inner_rules) for problem in rule.problems(checked)]
    for problem in broken:
        problems.add(path, f" = {_show(value)}: {problem}")
    return None if broken else checked


def _scalar(hint: Any, value: Any) -> tuple[Any, str]:
    """(the value, '') if it fits the type, else (None, what it must be)."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if isinstance(value, float) and str(value) in choices:
            value = str(value)  # a bare inf is a number in TOML
        if value in choices and type(value) in {type(choice) for choice in choices}:
            return value, ""
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        hint_text = f"; did you mean {close[0]!r}?" if close else ""
        return None, f"one of {', '.join(repr(choice) for choice in choices)}{hint_text}"
    if origin is Mapping:
        return (value, "") if isinstance(value, dict) else (None, "a table")
    if origin is tuple:
        if not isinstance(value, list):
            return None, "a list, in brackets"
        item, _ = _unwrap(typing.get_args(hint)[0])
        read = [_scalar(item, each) for each in typing.cast(list[Any], value)]
        wrong = next((said for _, said in read if said), "")
        return (None, f"a list, each {wrong}") if wrong else (tuple(each for each, _ in read), "")
    if hint is float and type(value) in (int, float):
        number = _as_float(value)
        return (number, "") if math.isfinite(number) else (None, "a finite number")
    if hint is int and type(value) is int and abs(value) >= 2**63:
        return None, "a whole number of at most 64 bits"
    names = {int: "a whole number", float: "a number", str: "a string, in quotes", bool: "true or false"}
    if type(value) is hint:
        return value, ""
    return None, names.get(hint, str(hint))


def _as_float(value: int | float) -> float:
    """The number as a float; infinite if a whole number is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type, rules) of an `Annotated` type."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *rules = typing.get_args(hint)
        return inner, tuple(rules)
    return hint, ()


def _without_none(hint: Any) -> Any:
    """`T` of `T | None`; the type itself otherwise."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(each for each in typing.get_args(hint) if each is not types.NoneType)
    return hint


def _table_type(hint: Any) -> type[Any] | None:
    """The dataclass that a field of this type holds, if any."""
    inner = _without_none(hint)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def _suggestion(key: str, keys: Mapping[str, Any], path: str) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{path or 'a recipe'} has {', '.join(keys)}"


def _example(path: str, hint: Any) -> str:
    table = _table_type(_unwrap(hint)[0])
    if table is None:
        return f"add {path} = <{type_name(_without_none(_unwrap(hint)[0]))}>"
    return f"add a table such as [{path}.{dataclasses.fields(table)[0].name}]"


def _show(value: Any) -> str:
    """A value as the user wrote it."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
