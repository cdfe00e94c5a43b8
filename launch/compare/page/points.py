"""The points and multipliers of rows, and the table of them that performance engineers keep by hand."""

from collections.abc import Callable, Mapping
from typing import Any, cast

Told = dict[str, Any]
Row = Mapping[str, Any]


def name_of(row: Row) -> str:
    """What a row is called: of a grid its values, whose names are mere numbers."""
    values = cast(Row, row.get("values") or {})
    return ", ".join(f"{key.removeprefix('strategies.')} = {value}" for key, value in values.items()) or str(
        row["name"]
    )


def multiplier(row: Row) -> tuple[float, float, float] | None:
    """How many times faster, and between what; None where none may be claimed."""
    return interval(row.get("multiplier"))


def in_words(times: tuple[float, float, float] | None) -> str | None:
    """`1.150x [1.100, 1.200]`."""
    return times and f"{times[0]:.3f}x [{times[1]:.3f}, {times[2]:.3f}]"


def interval(told: Any) -> tuple[float, float, float] | None:
    """The same of any multiplier."""
    if not told:
        return None
    return float(told["times"]), float(told["low"]), float(told["high"])


def cumulative(told: Any) -> float | None:
    """A cumulative multiplier, with or without its interval."""
    if told is None:
        return None
    return float(told["times"]) if isinstance(told, Mapping) else float(told)


def table(kind: str, rows: list[Row], base: Row, final: Row | None) -> Told:
    """The table that performance engineers keep by hand."""
    named: list[tuple[str, Row, Row]] = [("base", {}, base)]
    named += [(name_of(row), row, cast(Row, row.get("point") or {})) for row in rows]
    named += [("the finished stack", final, cast(Row, final.get("point") or {}))] if final else []
    columns: list[tuple[str, Callable[[str, Row, Row], str | None]]] = [
        ("step", lambda name, row, point: str(row["index"]) if row.get("index") else None),
        ("technique", lambda name, row, point: name),
        ("multiplier [95 %]", lambda name, row, point: in_words(multiplier(row))),
        (
            "cumulative",
            lambda name, row, point: _form(cumulative(row.get("cumulative")), ".3f", "x") if row is not final else None,
        ),
        ("ms/step", lambda name, row, point: _form(point.get("step_s"), ".2f", scale=1000)),
        ("p95 ms", lambda name, row, point: _form(point.get("p95_s"), ".2f", scale=1000)),
        ("tokens/s", lambda name, row, point: _form(point.get("tokens_per_s"), ",.0f")),
        ("MFU %", lambda name, row, point: _form(point.get("mfu"), ".1f", scale=100)),
        ("mem GiB", lambda name, row, point: _form(point.get("memory_gib"), ".2f")),
        ("compile s", lambda name, row, point: _form(point.get("compile_s"), ".1f")),
        ("run min", lambda name, row, point: _form(point.get("run_s"), ",.1f", scale=1 / 60)),
        ("cost/run", lambda name, row, point: money(point.get("cost_per_run"))),
        ("parity", lambda name, row, point: _parity(row)),
        ("verdict", lambda name, row, point: str(row["verdict"]) if row else None),
        (
            "best" if kind == "grid" else "kept",
            lambda name, row, point: ("yes" if row.get("kept") else "no") if "kept" in row else None,
        ),
    ]
    if kind == "ablation":
        columns = [each for each in columns if each[0] not in ("cumulative", "kept")]
    made = [(head, [cell(*each) for each in named]) for head, cell in columns]
    made = [(head, cells) for head, cells in made if any(cell is not None for cell in cells)]
    return {"heads": [head for head, _ in made], "rows": [[cells[i] for _, cells in made] for i in range(len(named))]}


def money(value: Any) -> str | None:
    """With two places, or if it is little with three figures."""
    return None if value is None else format(float(value), ",.2f" if float(value) >= 1 else ".3g")


def _form(value: Any, form: str, unit: str = "", *, scale: float = 1.0) -> str | None:
    return None if value is None else f"{format(scale * float(value), form)}{unit}"


def _parity(row: Row) -> str | None:
    parity = cast(Row | None, row.get("parity"))
    if not parity:
        return "not checked" if row else None
    if not parity.get("checked", True):
        return "not checked"
    return f"{parity['tier']}: {'passed' if parity['passed'] else 'failed'}"
