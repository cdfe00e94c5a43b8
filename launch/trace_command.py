"""`stepladder trace`: what the traces of a run say, as text, JSON, a report, or a trace for Perfetto."""

import argparse
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiling.errors import TraceError
from .errors import ExitCode, UsageError
from .outputs import STDOUT, check_target, show, show_text, writing
from .reading_bar import reading_bar

if TYPE_CHECKING:
    from ..profiling.trace.advice import Finding
    from ..profiling.trace.analysis import Analysis
    from ..profiling.trace.job import Reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="trace files, or folders of them")
    parser.add_argument(
        "--against", metavar="PATH", nargs="+", type=Path, help="traces of a run before: what made the difference"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write every table that is not only drawn; - for standard output"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the report, one page without a network")
    parser.add_argument("--perfetto", metavar="FILE", type=Path, help="write the first trace again, with counters")
    parser.add_argument("--compat", choices=["hta"], help="definitions of Meta's HTA, for the tables that it has")
    parser.add_argument(
        "--quick", action="store_true", help="times alone: no roofline, memory, operators, sequences, path"
    )
    parser.add_argument("--no-cache", action="store_true", help="read the text again, and leave no tables beside it")
    parser.add_argument("--processes", metavar="N", type=int, default=0, help="traces read at once (default: cores)")


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Analyse, and write what was asked for. Raises: UsageError for traces that cannot be read."""
    if options.processes < 0:
        raise UsageError(f"--processes {options.processes}: a number of processes; 0 for the number of cores")
    if options.against is not None:
        for name in ("html", "perfetto", "compat"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name}: is not for two runs, which make a table and --json; remove --against or it"
                )
    try:
        _check_targets(options)
        return _analysis(options) if options.against is None else _difference(options)
    except TraceError as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        show(["interrupted: the analysis is not complete"], to_stderr=True)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"the traces cannot be analysed: {error}") from error


def _check_targets(options: argparse.Namespace) -> None:
    """Raises: UsageError for a file that cannot be written, or is one of the traces; OSError."""
    from ..profiling.trace.files import is_among

    given = [*options.paths, *(() if options.against is None else options.against)]
    for name in ("json", "html", "perfetto"):
        path = getattr(options, name)
        if path is None or (name == "json" and path == STDOUT):
            continue
        check_target(path)
        if is_among(path, given):
            raise UsageError(f"--{name} {path}: lies among the traces, to be read as one; write it to another folder")


def _analysis(options: argparse.Namespace) -> int:
    from ..profiling.trace import analysis, text
    from ..profiling.trace.job import Reading

    if options.html is not None and options.compat:
        raise UsageError("--html: shows exact definitions; remove --compat or --html")
    reading = Reading(
        detail=not (options.quick or options.compat), cache=not options.no_cache, num_processes=options.processes
    )
    found, findings = _found(
        options.paths, reading, compat=bool(options.compat), drawing=options.html is not None, quiet=False
    )
    to_stdout = options.json == STDOUT
    if options.json is not None:
        advice = [finding.row() for finding in findings]
        tables = {name: table for name, table in found.tables.items() if name not in analysis.DRAWN}
        _write_tables(options.json, tables, ranks=list(found.ranks), notes=list(found.notes), advice=advice)
    if not to_stdout:
        if options.compat:
            show([*text.note_lines(found.notes), *_plain_tables(found)])
        else:
            show([*text.summary(found), *text.advice_lines(findings, found)])
    if options.html is not None:
        with writing(options.html):
            _write_report(options.html, found, findings, title=str(options.paths[0]))
        show([f"report: {options.html}"], to_stderr=to_stdout)
    if options.perfetto is not None:
        from ..profiling.trace.files import trace_files
        from ..profiling.trace.job import open_trace
        from ..profiling.trace.perfetto import write_annotated

        first = next(path for path in trace_files(options.paths) if path in found.files)
        trace = open_trace(first, reading)
        with writing(options.perfetto):
            notes = write_annotated(trace, options.perfetto)
        where = f"for https://ui.perfetto.dev: {options.perfetto}"
        show([*text.note_lines(notes), where], to_stderr=to_stdout)
    return ExitCode.DONE


def after_run(folder: Path) -> list[str]:
    """What a run's traces say when it is over; leaves the report in its folder."""
    from ..profiling.trace import text
    from ..profiling.trace.job import Reading

    report = folder / "report.html"
    # One after the other: the process still holds a training, which its children would begin anew.
    reading = Reading(detail=True, cache=False, num_processes=1)
    try:
        found, findings = _found([folder / "traces"], reading, compat=False, drawing=True, quiet=True)
        _write_report(report, found, findings, title=folder.name)
    except (TraceError, OSError) as error:
        return [f"no analysis: {error}"]
    return [*text.summary(found), *text.advice_lines(findings, found), "", f"report      {report}"]


def _found(
    paths: Sequence[Path], reading: "Reading", *, compat: bool, drawing: bool, quiet: bool
) -> tuple["Analysis", Sequence["Finding"]]:
    """The tables of some traces, and the advice that follows from them."""
    from ..profiling.trace import analysis
    from ..profiling.trace.advice import advise

    makers = analysis.COMPAT if compat else analysis.chosen(detail=reading.detail, drawing=drawing)
    with_path = not compat and (reading.detail or drawing)
    with nullcontext() if quiet else reading_bar() as progress:
        found = analysis.analyse(paths, makers, reading=reading, with_path=with_path, progress=progress)
    return found, [] if compat else advise(found)


def _write_report(path: Path, found: "Analysis", findings: Iterable["Finding"], *, title: str) -> None:
    from ..profiling.trace.page import content_of
    from ..profiling.trace.report import write_report

    write_report(path, content_of(found, title=title, advice=[finding.row() for finding in findings]))


def _difference(options: argparse.Namespace) -> int:
    """What made the step of `paths` longer or shorter than that of `--against`."""
    from ..profiling.trace import analysis, text
    from ..profiling.trace.difference import difference, summed
    from ..profiling.trace.job import Reading
    from ..profiling.trace.makers import of_events
    from ..profiling.trace.unlike import differences, have_device

    reading = Reading(detail=not options.quick, cache=not options.no_cache, num_processes=options.processes)
    with reading_bar() as progress:
        before, after = (
            analysis.analyse(paths, (analysis.of_attribution, of_events), reading=reading, progress=progress)
            for paths in (options.against, options.paths)
        )
    same_kind = have_device(before) == have_device(after)
    found = difference(before.tables["attribution"], after.tables["attribution"], matched=same_kind)
    notes = differences(before, after)
    notes += [f"{side}: {note}" for side, each in (("before", before), ("after", after)) for note in each.notes]
    if options.json is not None:
        _write_tables(options.json, {"difference": found}, notes=notes)
    if options.json != STDOUT:
        show([*text.note_lines(notes), *text.difference_lines(summed(found), found)])
    return ExitCode.DONE


def _plain_tables(found: "Analysis") -> list[str]:
    """All tables, as they are, line by line."""
    import polars as pl

    with pl.Config(tbl_rows=30, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=200):
        whole = [f"{name}\n{table}" for name, table in found.tables.items() if table.height]
    return "\n".join(whole).split("\n")


def _write_tables(path: Path, tables: Any, **more: Any) -> None:
    """Tables as lists of rows."""
    whole = more | {"tables": {name: table.rows(named=True) for name, table in tables.items()}}
    text = json.dumps(whole, indent=1, default=str, allow_nan=True)
    if path == STDOUT:
        show_text(text)
        return
    from ..profiling.capture import publish

    with writing(path):
        publish(path, lambda partial: partial.write_text(text + "\n"))
