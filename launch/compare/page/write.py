"""A folder of results -> its page."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ....profiling.capture import publish
from ...errors import ExitCode, UsageError
from ..store import RESULTS
from .load import NOT_OURS, load, not_understood

PAGE = "report.html"
_SHARED = "profiling.trace.report"
SCRIPTS = (
    "scale.js",
    "answer.js",
    "ladder.js",
    "pairs.js",
    "losses.js",
    "parts.js",
    "record.js",
    "frame.js",
    "compare.js",
)
"""In the order in which they stand on the page, after `base.js`; `frame.js` is that of reports of traces."""


def page_of(folder: Path) -> str:
    """The text of the page. Raises: UsageError if the folder holds no results, or none that can be understood."""
    from ....profiling.trace.report.standalone import shipped, standalone
    from .content import data_of

    found, package = load(folder), __package__ or ""
    shared = f"{package.split('.')[0]}.{_SHARED}"
    scripts = [shipped(shared if name in ("base.js", "frame.js") else package, name) for name in ("base.js", *SCRIPTS)]
    style = shipped(shared, "page.css") + shipped(package, "compare.css")
    try:
        data = data_of(found)
        return standalone(data["title"], style=style, scripts=scripts, data=data)
    except NOT_OURS as error:
        raise not_understood(folder / RESULTS, error) from error


def write_page(folder: Path) -> Path:
    """Write the page of a folder, whole or not at all; return where it lies. Raises: UsageError."""
    page, path = page_of(folder), folder / PAGE
    try:
        publish(path, lambda partial: partial.write_text(page, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); make room or choose another folder") from error
    return path


def leave_page(folder: Path, say: Callable[[str], None]) -> None:
    """The same at the end of a comparison, which has not failed if its page has: that is a note."""
    try:
        write_page(folder)
    except UsageError as error:
        say(f"note: no page: {error.problems[0]}")
    except Exception as error:  # a mistake of ours here must not cost a night of measuring its table
        say(f"note: no page: {type(error).__name__}: {error}")


def make_anew(options: argparse.Namespace) -> int:
    """`stepladder compare --report FOLDER`: the page from what lies there. Raises: UsageError."""
    said = vars(options) | {"report": None, "command": None}
    if others := [key for key, value in said.items() if value not in (None, False, [])]:
        raise UsageError(
            f"--report beside {others[0]}: only makes a page of results that are there; leave the rest out"
        )
    print(f"report      {write_page(options.report)}")
    return ExitCode.DONE
