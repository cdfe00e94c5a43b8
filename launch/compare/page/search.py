"""What the page shows of ladders, ablations, grids and climbs: changes that were tried, and what was kept of them."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from . import evidence
from .load import Found
from .parts import breakdown
from .points import Row, Told, cumulative, in_words, interval, money, multiplier, name_of, table

_TONES = {"faster": "good", "slower": "bad", "undecided": "open", "not tried": "open"} | {
    verdict: "even" for verdict in ("same", "the recipe", "no faster")
}
_MOST_LINES = 8
"""Beyond which the answer names what was kept alone; the chart has all."""
_ROWS = {"ladder": "rungs", "climb": "steps", "grid": "rows"}


def sections(found: Found) -> Told:
    """The parts of the page that only these kinds have, and those that are made of rows instead of arms."""
    rows = [cast(Row, row) for row in found.results.get(_ROWS.get(found.kind, ""), ())]
    left_out = [cast(Row, row) for row in found.results.get("leave_one_out") or ()]
    final = cast(Row | None, found.results.get("final"))
    base = cast(Row, found.results.get("base") or {})
    stacked = found.kind in ("ladder", "climb")
    shown = rows or left_out
    return {
        "answer": _answer(found, rows, left_out, final, base),
        "waterfall": _waterfall(rows, final) if stacked else None,
        "forest": {"rows": [_mark(row, multiplier(row)) for row in rows], "margin": None}
        if found.kind == "grid"
        else None,
        "left_out": {"rows": [_left_out(row) for row in left_out], "margin": None} if left_out else None,
        "table": table(found.kind, shown, base, final),
        "notebook": [_try(row) for row in rows] if found.kind == "climb" else None,
        "breakdown": breakdown(found, rows, stacked=stacked),
        "sameness": _sameness([*rows, *([final] if final else [])]) or _sameness(left_out),
        "failures": _failures(found, [*rows, *left_out]),
        "notes": _notes(found, left_out),
    }


def _answer(found: Found, rows: list[Row], left_out: list[Row], final: Row | None, base: Row) -> Told:
    kept = [row for row in rows if row.get("kept")]
    if found.kind == "ablation":
        tone, headline = _most_needed(left_out)
    elif found.kind == "grid":
        tone, headline = _best(found, rows)
    else:
        tone, headline = _stacked(found, rows, kept, final)
    shown = left_out if found.kind == "ablation" else rows
    end = final or next((row for row in rows if row["name"] == found.results.get("best")), None)
    return {
        "tone": tone,
        "headline": headline,
        "lines": [*([_line(final) | {"arm": "the finished stack"}] if final else []), *_lines(shown)],
        "figures": _figures(base, cast(Row, (end or {}).get("point") or {})),
    }


def _stacked(found: Found, rows: list[Row], kept: list[Row], final: Row | None) -> tuple[str, str]:
    what = "rungs" if found.kind == "ladder" else "changes"
    if not kept:
        return "even", f"None of {len(rows)} {what} was kept"
    said = f"{len(kept)} of {len(rows)} {what} kept"
    times = multiplier(final or {})
    if times is None:
        last = cumulative(kept[-1].get("cumulative"))
        product = "" if last is None else f", their multipliers multiply to {last:.2f}x"
        return "open", f"{said}{product}; the finished stack itself has no multiplier"
    tone = "good" if times[1] > 1 else "even"
    return tone, f"The finished stack is {times[0]:.2f}x as fast as the base: {said}"


def _most_needed(left_out: list[Row]) -> tuple[str, str]:
    marks = {str(row["name"]): times for row in left_out if (times := multiplier(row)) is not None}
    if not marks:
        return "open", "No part of the stack could be compared with the stack without it"
    name = max(marks, key=lambda each: marks[each][0])
    if marks[name][1] <= 1:
        return "even", "No part of the stack is shown to make it faster"
    return "good", f"{name} wins the most: the stack is {marks[name][0]:.2f}x as fast with it"


def _best(found: Found, rows: list[Row]) -> tuple[str, str]:
    best = next((row for row in rows if row["name"] == found.results.get("best")), None)
    if best is None:
        return "even", f"None of {len(rows)} combinations is shown to be faster than the recipe"
    times = multiplier(best)
    said = "faster" if times is None else f"{times[0]:.2f}x as fast"
    return "good", f"The best of {len(rows)} combinations is {said}: {name_of(best)}"


def _lines(rows: list[Row]) -> list[Told]:
    kept = [row for row in rows if row.get("kept")]
    if len(rows) <= _MOST_LINES or not kept:
        return list(map(_line, rows))
    rest: Told = {"arm": f"{len(rows) - len(kept)} more", "badge": "not kept", "tone": "even", "changes": []}
    return [*map(_line, kept), rest | {"text": "tried, and no part of the result; each is below with its reason"}]


def _line(row: Row) -> Told:
    kept = ("best" if row.get("values") else "kept") if row.get("kept") else ""
    return {
        "arm": name_of(row),
        "badge": ", ".join(filter(None, [str(row["verdict"]), kept])),
        "tone": _tone(row),
        "text": str(row.get("reason") or ""),
        "changes": list(row.get("changes") or ()),
    }


def _tone(row: Row) -> str:
    return _TONES.get(str(row["verdict"]), "bad")


def _figures(base: Row, end: Row) -> list[Told]:
    told: list[Told] = []
    pairs = [
        ("time of a step", "step_s", 1000.0, ".4g", "ms"),
        ("tokens per second", "tokens_per_s", 1.0, ",.0f", ""),
        ("peak memory of a rank", "memory_gib", 1.0, ".2f", "GiB"),
        ("the whole run", "run_s", *_unit(base.get("run_s"))),
    ]
    for label, key, scale, form, unit in pairs:
        values = [format(scale * float(value), form) for each in (base, end) if (value := each.get(key)) is not None]
        if base.get(key) is not None:
            told.append({"label": label, "value": " → ".join(values), "note": unit})
    if costs := [cost for each in (base, end) if (cost := money(each.get("cost_per_run")))]:
        told.append({"label": "cost of the run", "value": " → ".join(costs), "note": ""})
    return told


def _unit(seconds: Any) -> tuple[float, str, str]:
    """Scale, form and name of the unit in which so long a time is told."""
    units = ((3600, "h"), (60, "min"))
    size, name = next(((size, name) for size, name in units if float(seconds or 0) >= 2 * size), (1, "s"))
    return 1 / size, ",.3g", name


def _waterfall(rows: list[Row], final: Row | None) -> Told:
    """From where to where each row has carried the stack; a row that was not kept carries it nowhere."""
    level, told = 1.0, list[Told]()
    for row in rows:
        times, whole = multiplier(row), row.get("cumulative")
        reached = cumulative(whole)
        spread = interval(cast(Any, whole)) if isinstance(whole, Mapping) else None
        if spread is None and times is not None:
            spread = (level * times[0], level * times[1], level * times[2])
        end = reached if row.get("kept") and reached is not None else level
        told.append(
            {
                "name": str(row["name"]),
                "technique": ""
                if "hypothesis" in row
                else ", ".join(map(str, row.get("set") or ())),  # which names it there
                "from": level,
                "to": end if row.get("kept") else times[0] * level if times else None,
                "low": spread[1] if spread else None,
                "high": spread[2] if spread else None,
                "kept": bool(row.get("kept")),
                "text": in_words(times),
                "badge": str(row["verdict"]),
                "tone": _tone(row),
                "reason": str(row.get("reason") or ""),
                "page": _page(row),
            }
        )
        level = end
    times = multiplier(final or {})
    direct = None if times is None else {"speed": times[0], "low": times[1], "high": times[2]}
    return {"rows": told, "product": level, "direct": direct, "page": _page(final or {})}


def _page(row: Row) -> list[str] | None:
    """Parts of the way to the page of the row's own comparison."""
    folder = row.get("folder")
    return [*str(folder).split("/"), "report.html"] if folder else None


def _mark(row: Row, times: tuple[float, float, float] | None) -> Told:
    return {
        "name": name_of(row),
        "mark": list(times) if times else None,
        "floor": None,
        "resampled": None,
        "text": in_words(times) or "no multiplier",
        "badge": "best" if row.get("values") and row.get("kept") else str(row["verdict"]),
        "tone": _tone(row),
        "pairs": row.get("num_pairs") or 0,
        "why_not": None if times else str(row.get("reason") or ""),
    }


def _left_out(row: Row) -> Told:
    """How much faster the stack is with it, and beside that how much it won when it was added.

    The sameness of the finished stack was shown; that of each stack on the way to it need not be, to say what is lost.
    """
    added, interaction = interval(row.get("when_added")), interval(row.get("interaction"))
    ratio = cast(Row | None, row.get("ratio"))
    times = multiplier(row)
    if times is None and ratio:
        times = float(ratio["ratio"]), float(ratio["low"]), float(ratio["high"])
    tone = {"good": "bad", "bad": "good"}.get(_tone(row), _tone(row)) if times else "bad"
    told = _mark(row, times) | {"twin": list(added) if added else None, "tone": tone}
    told["badge"] = f"{row['verdict']} without" if times else str(row["verdict"])
    if interaction:
        told["interaction"] = in_words(interaction)
        told["interacts"] = bool(row.get("interacts"))
    return told


def _try(row: Row) -> Told:
    """A page of the notebook."""
    bound = row.get("bound")
    return {
        "name": str(row["name"]),
        "tone": _tone(row),
        "badge": f"{row['verdict']}{', kept' if row.get('kept') else ''}",
        "hypothesis": str(row.get("hypothesis") or ""),
        "evidence": [str(each) for each in row.get("evidence") or ()],
        "source": str(row.get("source") or ""),
        "bound": None if bound is None else f"{100 * float(bound):.1f} % of a step at most",
        "change": [str(each) for each in row.get("set") or ()],
        "result": str(row.get("reason") or ""),
        "why": str(row.get("why") or ""),
        "page": _page(row),
    }


def _sameness(rows: Iterable[Row]) -> list[Told]:
    told: list[Told] = []
    for row in rows:
        parity = cast(Row | None, row.get("parity"))
        if parity:
            checked = parity.get("checked", True) is True
            told.append(
                {
                    "arm": str(row["name"]),
                    "tier": str(parity["tier"]),
                    "passed": parity["passed"] is True,
                    "checked": checked,
                    "sentence": str(parity["sentence"]),
                    "claims": [],
                    "checks": [],
                    "biases": [],
                }
            )
    return told


def _failures(found: Found, rows: Iterable[Row]) -> list[Told]:
    """Rows that came to nothing, then every failed segment of the comparisons inside."""
    told: list[Told] = [
        {
            "arm": str(row["name"]),
            "what": "the change",
            "kind": str(row["verdict"]),
            "reason": row.get("reason"),
            "output": None,
        }
        for row in rows
        if str(row["verdict"]) in ("failed", "refused")
    ]
    if found.compared:
        told += evidence.failures(found.compared)
    for folder, inner in found.inner.items():
        if found.compared and inner.path == found.compared.path:
            continue
        for failure in evidence.failures(inner):
            output = failure["output"] and f"{folder}/{failure['output']}"
            told.append(failure | {"output": output, "what": f"{folder}, {failure['what']}"})
    return told


def _notes(found: Found, left_out: list[Row]) -> list[str]:
    said = [f"It ended because {ended}." if (ended := found.results.get("ended")) else ""]
    said += [f"{row['name']}: {row['reason']}" for row in left_out if row.get("interacts")]
    return [each for each in said if each]
