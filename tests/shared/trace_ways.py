"""The ways in which `stepladder trace` looks at a file, each with what must be true of it whatever the file holds."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

from stepladder.profiling.trace import analysis, source, text
from stepladder.profiling.trace.difference import difference, summed
from stepladder.profiling.trace.job import Reading, open_trace
from stepladder.profiling.trace.page import content_of
from stepladder.profiling.trace.perfetto import write_annotated
from stepladder.profiling.trace.report.write import page_of

DATA = Path(__file__).parent.parent / "profiling" / "trace" / "data"
WHOLE = DATA / "cpu_only" / "rank-0.json.gz"
Way = Callable[[Path], object]


def everything(path: Path) -> None:
    """All tables, the text and the page."""
    makers = [*analysis.chosen(detail=True, drawing=True), analysis.of_attribution]
    reading = Reading(detail=True, cache=False, num_processes=1)
    found = analysis.analyse([path], makers, reading=reading, with_path=True)
    list(text.summary(found))
    page_of(content_of(found, title=path.name))


def in_many_pieces(path: Path) -> None:
    """Cut wherever it can be cut."""
    with patch.object(source, "PIECE_BYTES", 3000), patch.object(source, "_READ_BYTES", 1000):
        open_trace(path, Reading(detail=True, cache=False))


def from_its_cache(path: Path) -> None:
    """The second look has the tables of the first."""
    reading = Reading(detail=True, num_processes=1)
    shutil.rmtree(path.parent / ".stepladder-cache", ignore_errors=True)
    try:
        first, again = (analysis.analyse([path], reading=reading).tables for _ in range(2))
        differing = [name for name, table in first.items() if not table.equals(again[name])]
        assert not differing, f"tables of the second look differ: {differing}"
    finally:
        shutil.rmtree(path.parent / ".stepladder-cache", ignore_errors=True)


def as_hta(path: Path) -> None:
    """Tables as HTA makes them."""
    found = analysis.analyse([path], analysis.COMPAT, reading=Reading(cache=False, num_processes=1))
    assert all(str(table) for table in found.tables.values())


def for_perfetto(path: Path) -> None:
    """What is written is whole JSON."""
    target = path.with_name("annotated.json")
    try:
        write_annotated(open_trace(path, Reading(cache=False)), target)
        assert json.loads(target.read_bytes())["traceEvents"]
    finally:
        target.unlink(missing_ok=True)


def against_a_whole_one(path: Path) -> None:
    """The changes add up to the difference of the steps."""
    reading = Reading(detail=True, cache=False, num_processes=1)
    before, after = (
        analysis.analyse([each], (analysis.of_attribution,), reading=reading).tables["attribution"]
        for each in (WHOLE, path)
    )
    found = difference(before, after)
    list(text.difference_lines(summed(found), found))
    parts = found["step_ns_after"].sum() - found["step_ns_before"].sum()
    assert found["change_ns"].sum() == parts, "the changes do not add up"


def beside_another_rank(path: Path) -> None:
    """One of two ranks."""
    other = path.with_name("rank-1.json.gz")
    shutil.copy(WHOLE, other)
    try:
        found = analysis.analyse([path, other], reading=Reading(cache=False, num_processes=1))
        list(text.summary(found))
        assert found.ranks
    finally:
        other.unlink()


WAYS: Sequence[Way] = (
    in_many_pieces,
    from_its_cache,
    as_hta,
    for_perfetto,
    against_a_whole_one,
    beside_another_rank,
)
