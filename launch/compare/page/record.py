"""What was run, on what, and how to run it again, as the page shows it."""

import shlex
import tomllib
from collections.abc import Mapping
from typing import Any, cast

from ...recipe import flatten
from ..arms import BASELINE
from .load import Compared, Found

Told = dict[str, Any]
_SHA = 12


def subtitle(found: Found) -> str:
    """When, where, and how long."""
    environment = _environment(found)
    machine: Mapping[str, Any] = found.results.get("machine") or {}
    parts = [
        str(environment.get("started", ""))[:16].replace("T", " "),
        str(machine.get("host") or environment.get("host") or ""),
        ", ".join(map(str, machine.get("gpus") or [])) or str(machine.get("processor") or ""),
        f"{float(found.results.get('spent_s') or 0) / 60:.1f} minutes of segments",
    ]
    return " · ".join(part for part in parts if part)


def recipes(found: Found) -> Told | None:
    """A row for each key in which an arm differs from the baseline, a column for each arm; and the recipes."""
    compared = found.compared
    if compared is None:
        return None
    trees = {name: dict(flatten(tomllib.loads(text))) for name, text in compared.recipes.items()}
    names = [arm.name for arm in compared.arms if arm.name in trees]
    if BASELINE not in trees:
        return {"names": [], "rows": [], "lines": _lines(compared), "texts": []}
    keys = list(dict.fromkeys(key for name in names for key in trees[name]))
    rows = [
        [key, *(_said(trees[name].get(key)) for name in names)]
        for key in keys
        if any(trees[name].get(key) != trees[BASELINE].get(key) for name in names)
    ]
    texts = [[name, compared.recipes[name]] for name in names]
    return {"names": names, "rows": rows, "lines": [] if rows else _lines(compared), "texts": texts}


def _lines(compared: Compared) -> list[str]:
    return [f"{arm.name}: {line}" for arm in compared.arms for line in arm.changes]


def _said(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def environment(found: Found) -> list[list[str]]:
    """Names and values, those that matter to a step time first."""
    told, machine = _environment(found), cast(Mapping[str, Any], found.results.get("machine") or {})
    git = cast(Mapping[str, Any], told.get("git") or {})
    rows = [
        ("host", machine.get("host") or told.get("host")),
        ("processor", machine.get("processor") or told.get("processor")),
        ("cores", machine.get("cores") or told.get("cpu_cores")),
        ("GPUs", ", ".join(map(str, machine.get("gpus") or [])) or "none"),
        ("platform", told.get("platform")),
        ("Python", told.get("python")),
        *((f"{name}", version) for name, version in dict(told.get("versions") or {}).items()),
        ("threads", machine.get("threads")),
        ("visible devices", machine.get("devices")),
        ("commit", git and f"{str(git.get('commit'))[:_SHA]}{', with changes' if git.get('dirty') else ''}"),
        *((name, value) for name, value in dict(told.get("variables") or {}).items()),
        ("begun", told.get("started")),
        *_protocol(found),
    ]
    return [[str(name), str(value)] for name, value in rows if value not in (None, "", {})]


def _protocol(found: Found) -> list[tuple[str, Any]]:
    if found.compared is None:
        return []
    declared = dict(found.compared.experiment.get("declared") or {})
    protocol = found.compared.protocol
    return [
        ("pairs at most", protocol.max_pairs),
        ("false verdicts allowed", f"{100 * protocol.alpha:g} %"),
        ("margin", f"{100 * protocol.margin:g} %"),
        ("seed of the order", declared.get("seed")),
        ("ranks", declared.get("ranks")),
        ("budget", f"{float(budget):.0f} s" if (budget := found.results.get("budget_s")) else None),
    ]


def reproduce(found: Found) -> list[list[str]]:
    """What it is for, and the command."""
    command: list[str] = list(map(str, found.results.get("command") or _environment(found).get("command") or []))
    rows = [["The whole again, in a new folder", shlex.join(_anew(command))]] if command else []
    folder = str(found.results.get("folder") or found.path)
    rows.append(["This page, from its folder", shlex.join(["stepladder", "compare", "--report", folder])])
    if (compared := found.compared) and compared.recipes:
        where = str(compared.results.get("folder") or compared.path)
        commands = [shlex.join(["stepladder", "run", f"{where}/recipes/{name}.toml"]) for name in compared.recipes]
        rows.append(["One of its arms, trained to the end", "\n".join(commands)])
    if stack := found.results.get("stack"):
        rows.append(["The finished stack, trained to the end", shlex.join(["stepladder", "run", f"{folder}/{stack}"])])
    return rows


def _anew(command: list[str]) -> list[str]:
    """Without the folder, and without going on."""
    kept: list[str] = []
    skip = False
    for word in command:
        if skip or word == "--resume" or word.startswith("--out="):
            skip = False
            continue
        if word == "--out":
            skip = True
            continue
        kept.append(word)
    return kept


def _environment(found: Found) -> Mapping[str, Any]:
    told = found.compared.experiment if found.compared else found.results
    return cast(Mapping[str, Any], told.get("environment") or {})
