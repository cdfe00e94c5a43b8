"""Ladders, ablations, grids and climbs for a terminal. No multiplier is printed without the tier that it passed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .ablate import Ablation, LeftOut
from .grid import THE_RECIPE, Grid
from .ladder import Ladder
from .rungs import FAILED, REFUSED, Multiplier, Point, Row

Cell = Callable[[Row], str | None]


def ladder_table(ladder: Ladder) -> Iterator[str]:
    """Lines: the rungs, what became of each, the finished stack, and who needs whom."""
    yield from stack_table(ladder.base, ladder.rungs, ladder.final)
    if ladder.leave_one_out:
        yield ""
        yield from left_out_table(ladder.leave_one_out)
    yield ""
    yield f"stack       {ladder.stack}"
    yield _ended(ladder.results)


def stack_table(base: Point | None, rows: Sequence[Row], final: Row | None) -> Iterator[str]:
    """The table that is kept by hand elsewhere: a row for each change, and what was not kept in its place."""
    first = [] if base is None else [Row(index=0, name="base", verdict="", reason="", point=base)]
    last = [] if final is None else [final]
    shown = [*first, *rows, *last]
    steps = [str(row.index) if row.index else "" for row in shown]
    yield from _table(shown, _STACK, first=("step", steps))
    yield ""
    for row in rows:
        yield f"{row.index}. {row.name} ({', '.join(row.set)}): {'kept' if row.kept else 'dropped'}; {row.reason}"
        if row.why:
            yield f"  why: {row.why} (under the profiler)"
    if final:
        yield f"the finished stack, measured against the base in pairs of its own: {final.reason}"
        together = rows and next((row.cumulative for row in reversed(rows) if row.kept), None)
        if together and final.multiplier:
            yield f"  the product of the rungs is {together}; the direct comparison is the one to quote"


def left_out_table(rows: Sequence[LeftOut]) -> Iterator[str]:
    """What the finished stack is without each of its pieces."""
    yield "the finished stack without one of its pieces: how many times faster it is with it"
    yield from _table(rows, _LEFT_OUT)
    for row in rows:
        if row.interacts and row.interaction:
            more = "more" if row.interaction.times > 1 else "less"
            yield f"{row.name} wins {more} in company than when it was added: {row.interaction}"
        elif row.ratio is None:
            yield f"{row.name}: {row.verdict}; {row.reason}"


def ablation_table(ablation: Ablation) -> Iterator[str]:
    """Lines of a leave-one-out of its own."""
    if ablation.base:
        yield f"the whole stack: {1000 * ablation.base.step_s:.2f} ms/step"
    yield from left_out_table(ablation.pieces)
    yield ""
    for row in ablation.pieces:
        yield f"without {row.name} ({', '.join(row.changes or row.set)}): {row.reason}"
    yield _ended(ablation.results)


def grid_table(grid: Grid) -> Iterator[str]:
    """Lines: a row for each combination, the fastest that may be claimed, and why some are missing."""
    keys = list(grid.rows[0].values)
    cells: list[tuple[str, Cell]] = [(key, lambda row, key=key: getattr(row, "values")[key]) for key in keys]  # noqa: B009
    yield from _table(grid.rows, (*cells, *_GRID))
    yield ""
    for row in grid.rows:
        if row.verdict in (FAILED, REFUSED):
            yield f"{row.name}: {row.verdict}; {row.reason}"
    best = next((row for row in grid.rows if row.name == grid.best), None)
    if best:
        yield f"best: {best.name}, {', '.join(best.set)}: {best.reason}"
    else:
        yield "best: nothing is known to be faster than the recipe and the same training"
    yield _ended(grid.results)


def _ended(results: Mapping[str, Any]) -> str:
    return f"{results['ended']}; {results['spent_s'] / 60:.1f} minutes of segments"


def _table(
    rows: Sequence[Row], cells: Sequence[tuple[str, Cell]], *, first: tuple[str, Sequence[str]] | None = None
) -> Iterator[str]:
    """Aligned columns; those of which nothing is known are left out."""
    from ...profiling.trace.text import columns

    kept = [first] if first else []
    for head, cell in cells:
        values = [cell(row) for row in rows]
        if any(value is not None for value in values):
            kept.append((head, [value or "-" for value in values]))
    yield from columns([head for head, _ in kept], [[each[i] for _, each in kept] for i in range(len(rows))], left=2)


def _of_point(get: Callable[[Point], float | None], form: str) -> Cell:
    def cell(row: Row) -> str | None:
        value = get(row.point) if row.point else None
        return None if value is None else format(value, form)

    return cell


def _times(multiplier: Multiplier | None) -> str | None:
    return str(multiplier) if multiplier else None


def _parity(row: Row) -> str | None:
    if row.parity is None:
        return None
    if not row.parity["checked"]:
        return "not checked"
    return f"{row.parity['tier']}: {'passed' if row.parity['passed'] else 'failed'}"


def _verdict(row: Row) -> str | None:
    if not row.verdict:
        return None
    if row.verdict == "faster" and row.index:
        return "faster, kept" if row.kept else "faster, dropped"
    return row.verdict


def _left_out_times(row: Row) -> str | None:
    """What was measured: of a ladder's stack, whose sameness was shown, though not of each stack on the way."""
    return _times(row.multiplier or row.measured) if isinstance(row, LeftOut) else None


_MEASURED: tuple[tuple[str, Cell], ...] = (
    ("ms/step", _of_point(lambda point: 1000 * point.step_s, ".2f")),
    ("tokens/s", _of_point(lambda point: point.tokens_per_s, ",.0f")),
    ("MFU %", _of_point(lambda point: None if point.mfu is None else 100 * point.mfu, ".1f")),
    ("mem GiB", _of_point(lambda point: point.memory_gib, ".2f")),
)
_STACK: tuple[tuple[str, Cell], ...] = (
    ("technique", lambda row: row.name),
    ("times faster [95 %]", lambda row: _times(row.multiplier) if row.index else None),
    ("cumulative", lambda row: _times(row.cumulative)),
    *_MEASURED,
    ("run h", _of_point(lambda point: None if point.run_s is None else point.run_s / 3600, ".3g")),
    ("cost/run", _of_point(lambda point: point.cost_per_run, ",.2f")),
    ("parity", _parity),
    ("verdict", _verdict),
)
_LEFT_OUT: tuple[tuple[str, Cell], ...] = (
    ("piece", lambda row: row.name),
    ("in the stack [95 %]", _left_out_times),
    ("when added", lambda row: _times(getattr(row, "when_added", None))),
    ("interaction", lambda row: _times(getattr(row, "interaction", None))),
    ("parity", _parity),
)
_GRID: tuple[tuple[str, Cell], ...] = (
    ("times faster [95 %]", lambda row: _times(row.multiplier)),
    *_MEASURED,
    ("parity", _parity),
    ("verdict", lambda row: "the recipe" if row.verdict == THE_RECIPE else _verdict(row)),
)
