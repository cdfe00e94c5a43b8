"""Reads a ladder: a TOML file with a recipe, the protocol, and the rungs in order."""

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from .. import recipe as recipes
from ..errors import UsageError
from ..reader import Problems, read_table
from .arms import NAME, changes_of_table, split_changes
from .rungs import Rung
from .settings import Settings, beside

_RUNGS = "rungs"


def shipped_ladders() -> dict[str, Path]:
    """Ladders that come with the package, by name."""
    folder = Path(str(resources.files(f"{recipes.PACKAGE}.recipes"))) / "ladders"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_ladder(name: str) -> Path:
    """A file, or a shipped ladder by its name. Raises: UsageError."""
    known = shipped_ladders()
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    raise UsageError(f"--ladder {name}: there is no such file; shipped ladders are {', '.join(known)}")


def is_ladder(path: Path) -> bool:
    """Whether a TOML file describes a ladder."""
    try:
        return _RUNGS in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def read_ladder(path: Path, *, recipe: str | None = None) -> tuple[Settings, tuple[Rung, ...]]:
    """What a file describes; `recipe` replaces its own. Raises: UsageError with every problem of its keys."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); correct it there") from error
    given = tree.pop(_RUNGS, [])
    if recipe is not None:
        tree["recipe"] = recipe
    problems = Problems({key: path.name for key in ("", *tree)})
    settings = cast(Settings | None, read_table(Settings, tree, "", problems))
    found = list(problems.sentences)
    rungs: list[Rung] = []
    if not isinstance(given, list) or not given:
        found.append(f"{path.name}: rungs: there are none; add [[rungs]] with name = and set =")
        given = []
    for index, table in enumerate(cast(list[Any], given), start=1):
        wrong = list(_problems(table))
        found += [f"{path.name}: rungs, number {index}: {each}" for each in wrong]
        if not wrong:
            rungs.append(Rung(name=table["name"], set=changes_of_table(table["set"])))
    if found or settings is None:
        raise UsageError(*found)
    return (settings if recipe is not None else replace(settings, recipe=beside(path, settings.recipe))), tuple(rungs)


def _problems(table: Any) -> Iterator[str]:
    if not isinstance(table, dict):
        yield f"{table!r}: must be a table with name and set"
        return
    values = cast(dict[str, Any], table)
    for key in values:
        if key not in ("name", "set"):
            yield f"{key}: unknown key; a rung has a name and what it sets"
    name, change = values.get("name"), values.get("set")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield f"name = {name!r}: use up to 50 letters, digits, dots, dashes and underscores"
    if not isinstance(change, dict) or not change:
        yield f"set = {change!r}: must be a table of changed keys, as set = {{ strategies.amp = {{}} }}"


def parse_rung(text: str) -> Rung:
    """`NAME=a.b=c,d.e=f`. Raises: UsageError."""
    name, equals, rest = text.partition("=")
    changes = split_changes(rest)
    if not equals or not changes or not all("=" in change for change in changes) or not NAME.fullmatch(name.strip()):
        raise UsageError(
            f"--rung {text}: not of the form NAME=a.b=value; write for example --rung bf16=strategies.amp={{}}"
        )
    return Rung(name=name.strip(), set=tuple(changes))
