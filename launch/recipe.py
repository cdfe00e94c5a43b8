"""Reads a recipe: TOML with `extends`, overrides from the command line, and the name of a shipped one."""

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from ..strategies.errors import PluginError
from ..strategies.plugins import installed
from .errors import RecipeError, UsageError
from .reader import Problems, read_table
from .schema import Recipe

Tree = dict[str, Any]
PACKAGE = __name__.split(".")[0]
_CHOICES = ("model", "data")  # tables in which exactly one sub-table is on


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    folder = Path(str(resources.files(f"{PACKAGE}.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a recipe, given as a path or as the name of a shipped one. Raises: UsageError."""
    path, known = Path(name), shipped()
    try:
        if path.is_file():
            return path
        if name in known:
            return known[name]
        if name and path.exists():
            raise UsageError(f"{name}: is {'a folder' if path.is_dir() else 'no plain file'}; give a TOML file")
    except (OSError, ValueError) as error:
        raise UsageError(f"{name[:100]}: cannot be the name of a recipe ({_why(error)}); check it") from error
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped recipes are {', '.join(known)}"
    raise UsageError(f"{name}: no such recipe; {hint}")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with everything that it extends and the overrides. Raises: UsageError with every problem."""
    path = find(name)
    tree, origins = _load(path, seen=())
    origins[""] = path.name  # of what stands nowhere
    for override in overrides:
        _override(tree, origins, override)
    return parse(tree, origins)


def parse(tree: Tree, origins: Mapping[str, str]) -> Recipe:
    """A recipe from the values of a file. Raises: UsageError with every problem."""
    problems = Problems(origins)
    try:
        schema = _schema(installed())
    except PluginError as error:
        raise UsageError(str(error)) from error
    recipe = read_table(schema, tree, "", problems)
    for table in _CHOICES:
        given = tree.get(table)
        if isinstance(given, dict):
            on = [key for key, value in cast(Tree, given).items() if value is not False]
            if len(on) != 1:
                known = [each.name for each in dataclasses.fields(_choice_type(table))]
                said = f"{', '.join(on)} are on" if on else "none is on"
                problems.add(table, f": {said}; keep one of {', '.join(known)} (the others = false)")
    if problems.sentences:
        draft = recipe
        if not (draft and draft.model and draft.data and draft.model.chosen and draft.data.chosen):
            draft = None
        raise RecipeError(*problems.sentences, draft=draft, doubtful=frozenset(problems.doubtful))
    return cast(Recipe, recipe)


def _schema(strategies: type[Any]) -> type[Any]:
    """`Recipe`, its `strategies` typed with what is installed."""
    return dataclasses.make_dataclass(
        "Recipe",
        [("strategies", strategies, dataclasses.field(default_factory=strategies))],
        bases=(Recipe,),
        frozen=True,
        kw_only=True,
    )


def _choice_type(table: str) -> type[Any]:
    return next(cast(type[Any], each.type) for each in dataclasses.fields(Recipe) if each.name == table)


def _load(path: Path, seen: tuple[Path, ...]) -> tuple[Tree, dict[str, str]]:
    """Values of a file over those that it extends, and the file that each came from."""
    resolved = path.resolve()
    if resolved in seen:
        raise UsageError(f"{path}: extends itself, through {' -> '.join(each.name for each in (*seen, resolved))}")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5000 digits, 1000 brackets
        raise UsageError(f"{path}: not valid TOML ({error}); correct it there") from error
    base = tree.pop("extends", None)
    origins = {where: path.name for where, _ in flatten(tree)}
    origins |= {".".join(where.split(".")[:i]): path.name for where in origins for i in range(1, where.count(".") + 1)}
    if base is None:
        return tree, origins
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends = {base!r}: must be a file name, in quotes")
    beside = path.parent / base
    try:
        found = beside.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: extends = {base[:100]!r}: cannot be a file name ({_why(error)})") from error
    if not found and base not in shipped():
        raise UsageError(f"{path}: extends = {base!r}: no such file beside it and no shipped recipe of that name")
    below, below_origins = _load(beside if found else shipped()[base], (*seen, resolved))
    return _merge(below, tree), below_origins | origins


def _merge(below: Tree, above: Tree) -> Tree:
    """`above` over `below`: tables join, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        joins = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(cast(Tree, old), cast(Tree, value)) if joins else value
    return merged


def _override(tree: Tree, origins: dict[str, str], override: str) -> None:
    """Apply one `a.b=value`; the value is TOML, or a bare word."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: not of the form a.b=value; write for example --set run.num_steps=10")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text.strip()
    except (ValueError, RecursionError):
        value = text.strip()
    at = tree
    for key in keys[:-1]:
        below = at.get(key)
        if not isinstance(below, dict):  # absent, or switched off with false: the override switches it on
            below = at[key] = Tree()
        at = cast(Tree, below)
    at[keys[-1]] = value
    origins[".".join(keys)] = "--set"


def flatten(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of all leaves; an empty table is a leaf."""
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from flatten(cast(Mapping[str, Any], value), where)
        else:
            yield where, value


def resolved(recipe: Recipe) -> Tree:
    """The recipe with every default in it, as a tree that TOML can hold and `parse` reads back."""
    return _tree(recipe)


def _tree(config: Any) -> Tree:
    tree: Tree = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            tree[each.name] = _tree(value)
        elif isinstance(value, tuple):
            tree[each.name] = list(cast(tuple[Any, ...], value))
        elif value is not None:
            tree[each.name] = value
    return tree


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML text; running it repeats the run."""
    import tomli_w

    return tomli_w.dumps(resolved(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe, independent of formatting and order."""
    return hashlib.sha256(json.dumps(resolved(recipe), sort_keys=True).encode()).hexdigest()


def diff(before: Recipe, after: Recipe) -> list[str]:
    """What changes from one recipe to another: `strategies.ac.every: 1 -> 2`, a line each."""
    return list(_differences(resolved(before), resolved(after), ""))


def _differences(old: Tree, new: Tree, path: str) -> Iterator[str]:
    for key in [*old, *(key for key in new if key not in old)]:
        where = f"{path}.{key}" if path else key
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(cast(Tree, left), cast(Tree, right), where)
        elif left != right:
            yield f"{where}: {_said(left)} -> {_said(right)}"


def _said(value: Any) -> str:
    """A value in a diff; a table that is on only here in one line."""
    if value is None:
        return "off"
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {_said(each)}" for key, each in cast(Tree, value).items())
        return f"{{{inside}}}"
    return json.dumps(value)
