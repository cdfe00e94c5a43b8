"""What the analyses found, as tables for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from ..spans import PREFIX
from .advice import Finding, nothing_found
from .analysis import Analysis
from .collectives import collective_summary
from .critical_path.whatif import OVERLAPPED
from .job_text import job_lines
from .kernel_names import short_form
from .spelling import milliseconds, printable

PARTS = {
    "compute_ns": "compute",
    "overlapped_communication_ns": "overlapped",
    "exposed_communication_ns": "exposed",
    "copy_ns": "copies",
    "idle_ns": "idle",
}
"""Columns of a step, and the words for them; the five add up to the step."""
_MAX_ROWS = 10
_MAX_ADVICE = 5
_MAX_RANKS = 16


def summary(analysis: Analysis) -> Iterator[str]:
    """Lines: steps, phases, kernels, collectives, waits, what a step would gain. Says what is missing and why."""
    tables = analysis.tables
    ranks = ", ".join(map(str, analysis.ranks[:_MAX_RANKS])) + (", ..." if len(analysis.ranks) > _MAX_RANKS else "")
    yield f"{analysis.num_bytes / 1e6:.1f} MB of traces, ranks {ranks}"
    yield from note_lines(analysis.notes)
    yield from _steps(tables["steps"])
    yield from _phases(tables["phases"])
    yield from _kernels(tables["kernels"])
    yield from _collectives(collective_summary(tables["collectives"].drop("rank")))
    yield from _late(tables["collective_ranks"])
    yield from _waits(tables["waits"], on_host=not tables["kernels"].height)
    if tables["kernels"].height:  # without a device, all of a step is the host
        yield from _what_if(tables["what_if"])
    yield from job_lines(tables)


def note_lines(notes: Iterable[str]) -> Iterator[str]:
    """What was wrong with files, and what was left out."""
    return (f"note: {printable(note)}" for note in notes)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    """Aligned columns: the first so many to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _steps(steps: pl.DataFrame) -> Iterator[str]:
    if not steps.height:
        return
    on_host = bool((steps["device"] == -1).all())
    yield ""
    yield "a step, mean" + (" (host time: the traces have no device)" if on_host else "")
    by = steps.group_by("rank", "device", maintain_order=True).agg(pl.len(), pl.col("window_ns", *PARTS).mean())
    rows = [
        [
            str(row["rank"]) + (f"/{row['device']}" if by["rank"].n_unique() < by.height else ""),
            str(row["len"]),
            milliseconds(row["window_ns"]),
            *(cell for part in PARTS for cell in (milliseconds(row[part]), _percent(row[part], row["window_ns"]))),
        ]
        for row in by.head(_MAX_RANKS).rows(named=True)
    ]
    yield from columns(["rank", "steps", "step ms", *(cell for word in PARTS.values() for cell in (word, "%"))], rows)
    if by.height > _MAX_RANKS:
        yield f"({by.height - _MAX_RANKS} more rows)"


def _phases(phases: pl.DataFrame) -> Iterator[str]:
    if not phases.height:
        return
    num = phases.select(pl.struct("rank", "step", "device").n_unique()).item()
    total = pl.sum_horizontal(*PARTS)
    by = (
        phases.group_by("phase")
        .agg(pl.col(*PARTS).sum() / num)
        .with_columns(total=total)
        .sort("total", descending=True)
    )
    whole = _sum(by, "total")
    yield ""
    yield "its phases, mean of all ranks (time of a device by what launched it)"
    rows = [
        [
            _name(row["phase"]),
            milliseconds(row["total"]),
            _percent(row["total"], whole),
            *(milliseconds(row[part]) for part in PARTS),
        ]
        for row in by.head(_MAX_ROWS).rows(named=True)
    ]
    yield from columns(["phase", "ms", "%", *PARTS.values()], rows)
    if by.height > _MAX_ROWS:
        yield f"({by.height - _MAX_ROWS} more phases)"


def _kernels(kernels: pl.DataFrame) -> Iterator[str]:
    if not kernels.height:
        return
    by = kernels.group_by("kind", "name").agg(pl.col("count", "total_ns").sum()).sort("total_ns", descending=True)
    whole = _sum(by, "total_ns")
    yield ""
    yield f"kernels: {by['count'].sum()} of {by.height} names; the longest"
    rows = [
        [
            _name(short_form(row["name"])),
            row["kind"],
            str(row["count"]),
            milliseconds(row["total_ns"]),
            _percent(row["total_ns"], whole),
            f"{row['total_ns'] / row['count'] / 1e3:.1f}",
        ]
        for row in by.head(_MAX_ROWS).rows(named=True)
    ]
    yield from columns(["kernel", "kind", "count", "ms", "%", "us each"], rows, left=2)


def _collectives(found: pl.DataFrame) -> Iterator[str]:
    if not found.height:
        return
    yield ""
    yield "collectives, all ranks"
    rows = [
        [
            row["type"] + (" (host)" if row["on_host"] else ""),
            _name(row["group"] or "-", 16),
            str(row["size"] or "-"),
            str(row["count"]),
            "-" if row["num_bytes"] is None else f"{row['num_bytes'] / 1e6:.2f}",
            milliseconds(row["dur_ns"]),
            milliseconds(row["exposed_ns"]),
            "-" if row["bus_gb_s"] is None else f"{row['bus_gb_s']:.2f}",
            "-" if row["link_share"] is None else f"{100 * row['link_share']:.1f}",
        ]
        for row in found.head(_MAX_ROWS).rows(named=True)
    ]
    yield from columns(
        ["type", "group", "ranks", "count", "MB", "ms", "exposed", "bus GB/s", "% of link"], rows, left=2
    )


def _late(ranks: pl.DataFrame) -> Iterator[str]:
    if ranks.height < 2 or "cost_ns" not in ranks.columns:
        return
    worst = ranks.sort("cost_ns", descending=True).row(0, named=True)
    if worst["cost_ns"]:
        yield f"rank {worst['rank']} comes late most: the others waited {milliseconds(worst['cost_ns'])} ms for it"


def _waits(waits: pl.DataFrame, *, on_host: bool) -> Iterator[str]:
    if not waits.height:
        return
    yield ""
    yield "the host waits" + (" (the traces have no device)" if on_host else ": for a device, its batch, Python")
    rows = [
        [
            row["cause"],
            _name(row["call"], 28),
            _name(row["frame"] or row["operator"] or "-", 60),
            str(row["num"]),
            milliseconds(row["waited_ns"]),
            milliseconds(row["idle_ns"]),
        ]
        for row in waits.sort("waited_ns", descending=True).head(_MAX_ROWS).rows(named=True)
    ]
    yield from columns(["cause", "call", "where", "times", "ms", "then idle"], rows, left=3)


def _what_if(found: pl.DataFrame) -> Iterator[str]:
    standard = found.filter(pl.col("name").is_null() & (pl.col("change") != "nothing") & (pl.col("gain_ns") > 0))
    if not standard.height:
        return
    longest = max(found.filter(pl.col("change") == "nothing")["length_ns"].to_list(), default=0)
    yield ""
    yield (
        "a step of median length, from its begin on the host to the end of its last kernel"
        f" ({milliseconds(longest)} ms, with what is left of earlier steps), would gain at most"
    )
    by = standard.group_by("change").agg(pl.col("gain_ns", "gain_share").max()).sort("gain_ns", descending=True)
    wait = {OVERLAPPED: ", with its waiting for ranks"}
    rows = [
        [row["change"] + wait.get(row["change"], ""), milliseconds(row["gain_ns"]), f"{100 * row['gain_share']:.1f}"]
        for row in by.rows(named=True)
    ]
    yield from columns(["if", "ms", "%"], rows)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole if whole else 0:5.1f}"


def _name(name: str, width: int = 48) -> str:
    plain = printable(name).removeprefix(PREFIX)
    return plain if len(plain) <= width else plain[: width - 3] + "..."


def difference_lines(by_part: pl.DataFrame, found: pl.DataFrame) -> Iterator[str]:
    """What changed: by part, which adds up to the whole, and the rows that changed most."""
    before, after = (_sum(by_part, f"step_ns_{side}") for side in ("before", "after"))
    yield f"a step took {milliseconds(before)} ms and takes {milliseconds(after)} ms: {_signed(after - before)} ms"
    yield ""
    rows = [
        [
            row["part"],
            milliseconds(row["step_ns_before"]),
            milliseconds(row["step_ns_after"]),
            _signed(row["change_ns"]),
        ]
        for row in by_part.rows(named=True)
    ]
    rows.append(["all", milliseconds(before), milliseconds(after), _signed(after - before)])
    yield from columns(["part", "before", "after", "change ms"], rows)
    changed = found.filter(pl.col("verdict") != "same").head(2 * _MAX_ROWS)
    if changed.height:
        yield ""
        rows = [
            [
                row["verdict"],
                row["part"],
                _name(row["phase"] or "-", 24),
                _name(short_form(row["name_after"] or row["name_before"] or "-")),
                f"{row['count_before']:.1f}",
                f"{row['count_after']:.1f}",
                _signed(row["change_ns"]),
            ]
            for row in changed.rows(named=True)
        ]
        yield from columns(["verdict", "part", "phase", "what", "count before", "after", "change ms"], rows, left=4)


def _sum(table: pl.DataFrame, column: str) -> float:
    return float(table.select(pl.col(column).sum()).item())


def advice_lines(findings: Sequence[Finding], analysis: Analysis) -> Iterator[str]:
    """What to try, ranked by what it can win; or that there is nothing to say."""
    yield ""
    if not findings:
        yield nothing_found(analysis)
        return
    yield "advice, by what it can win at most"
    for place, finding in enumerate(findings[:_MAX_ADVICE], start=1):
        yield f"{place}. {printable(finding.title)}: at most {milliseconds(finding.wins_at_most_ns)} ms of a step"
        yield from (f"   seen: {printable(each)}" for each in finding.evidence)
        yield f"   cause: {printable(finding.cause)}"
        yield from (f"   try: {printable(line)}" for line in finding.remedy.splitlines())
        yield f"   then measure: {printable(finding.measure_next)}"
    if len(findings) > _MAX_ADVICE:
        yield f"({len(findings) - _MAX_ADVICE} more in the report)"


def _signed(ns: float) -> str:
    return f"{ns / 1e6:+.3f}"
