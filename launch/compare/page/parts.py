"""What a step was made of on the way of a ladder or a climb, and in the one comparison of an ablation or a grid."""

from collections.abc import Iterable
from typing import cast

from . import evidence
from .load import Found
from .points import Row, Told


def breakdown(found: Found, rows: list[Row], *, stacked: bool) -> list[Told]:
    """Bars as `evidence.breakdown` makes them; stacked: the rows stand on one another."""
    if profiled := _profiled(rows):
        return profiled
    if stacked:
        return _breakdown(found, rows)
    return evidence.breakdown(found.compared) if found.compared else []


def _breakdown(found: Found, rows: Iterable[Row]) -> list[Told]:
    """The base, and the step after each row, kept or not, as it was profiled in the comparison of that row."""
    told: list[Told] = []
    for row in rows:
        inner = found.inner.get(str(row.get("folder")))
        made = evidence.breakdown(inner, label=str(row["name"])) if inner else []
        for part in made[:1] if not told else []:
            told.append(part | {"label": "base", "report": None})
        told += [part | {"report": None, "kept": bool(row.get("kept"))} for part in made[1:]]
    return told


def _profiled(rows: Iterable[Row]) -> list[Told]:
    """The step as a climb has profiled it on its way, before the first change that was tried after each profile."""
    told, last = list[Told](), None
    for row in rows:
        shares, step_s = cast(Row, row.get("share_before") or {}), row.get("stack_step_s")
        if shares and step_s and shares != last:
            parts = [[str(part), 1000 * float(share) * float(step_s)] for part, share in shares.items()]
            name = f"before {row['index']}, {row['name']}"
            told.append({"arm": name, "label": name, "step_ms": 1000 * float(step_s), "kernels": None, "parts": parts})
        last = shares or last
    return told
