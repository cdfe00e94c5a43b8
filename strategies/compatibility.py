"""What works together, read from the strategies: who owns what, and every refusal. The documentation's table."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from .base import Owns
from .catalogue import strategy_class
from .plugins import installed
from .refusal import Refusal


def owners_of_things() -> dict[Owns, list[str]]:
    """For each thing the strategies that may take charge of it, with the setting if only some do."""
    found: dict[Owns, list[str]] = {thing: [] for thing in Owns}
    for name, kind in _strategies():
        always = kind().owns
        for thing in always:
            found[thing].append(name)
        for thing in getattr(kind(), "serves", ()):
            found[thing].append(f"{name} (if nobody else does)")
        for setting, variant in _variants(kind):
            for thing in variant.owns - always:
                found[thing].append(f"{name} with {setting}")
    return found


def refusals() -> list[tuple[str, Refusal]]:
    """Name of a strategy and what it refuses, in order of application."""
    return [(name, refusal) for name, kind in _strategies() for refusal in kind.conflicts]


def tables() -> str:
    """Both tables as Markdown."""
    lines = [
        "| what one strategy at most may own | who does |",
        "| --- | --- |",
        *(f"| {thing} | {', '.join(names) or 'nobody'} |" for thing, names in owners_of_things().items()),
        "",
        "| strategy | cannot work beside | why | instead |",
        "| --- | --- | --- | --- |",
    ]
    for name, refusal in refusals():
        own = f"{name}, `{refusal.setting}`" if refusal.setting else name
        lines.append(f"| {own} | {refusal.beside} | {refusal.why} | {refusal.instead} |".replace("||", "|"))
    return "\n".join(lines)


def _strategies() -> Iterator[tuple[str, type[Any]]]:
    for each in dataclasses.fields(installed()):
        yield each.name, strategy_class(each.type)


def _variants(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """The strategy with each of its choices taken alone."""
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        for choice in _choices(hints[each.name]):
            if choice != each.default:
                said = str(choice).lower() if isinstance(choice, bool) else repr(choice)
                yield f"`{each.name} = {said}`", kind(**{each.name: choice})


def _choices(hint: Any) -> tuple[Any, ...]:
    if hint is bool:
        return (False, True)
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return ()
