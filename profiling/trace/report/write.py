"""Content -> one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from ...capture import publish
from ...spans import PREFIX, PROFILER_STEP
from .content import FRAMES, PARTS, Content
from .payload import packed
from .standalone import shipped, standalone

SCRIPTS = (
    "base.js",
    "steps.js",
    "heatmap.js",
    "lanes.js",
    "timeline.js",
    "input.js",
    "tables.js",
    "path.js",
    "memory.js",
    "roofline.js",
    "frame.js",
    "page.js",
)
"""In the order in which they stand on the page."""
MAX_TABLE_ROWS = 2000
MAX_PHASE_ROWS = 200_000
_SORTED = ("kernels", "operators", "sequences", "path", "gains", "held", "collectives", "roofline", "counters")
_LENGTHS = ("total_ns", "own_ns", "time_ns", "gain_ns", "dur_ns")
_TIMED = ("timeline", "critical", "across")


def write_report(path: Path, content: Content) -> None:
    """Write the report of a run, whole or not at all."""
    page = page_of(content)
    publish(path, lambda partial: partial.write_text(page, encoding="utf-8", newline="\n"))


def page_of(content: Content) -> str:
    """The text of the page."""
    package = __package__ or ""
    scripts = [shipped(package, name) for name in SCRIPTS]
    return standalone(content.title, style=shipped(package, "page.css"), scripts=scripts, data=data_of(content))


def data_of(content: Content) -> dict[str, Any]:
    """What the page's script reads."""
    notes = list(content.notes)
    frames: dict[str, Any] = {}
    for name in FRAMES:
        frame: pl.DataFrame | None = getattr(content, name)
        if frame is not None and len(frame):
            frames[name] = _normal(frame)
    zero_ns = _make_relative(frames)
    for name in ("phases", "host_phases"):
        if name in frames:
            frames[name] = _limited_phases(frames[name], notes)
    for name in _SORTED:
        if name in frames and len(frames[name]) > MAX_TABLE_ROWS:
            by = next((key for key in _LENGTHS if key in frames[name].columns), frames[name].columns[-1])
            notes.append(f"Of {len(frames[name]):,} rows of the table of {name} the first {MAX_TABLE_ROWS:,} are here.")
            frames[name] = frames[name].sort(by, descending=True, nulls_last=True).head(MAX_TABLE_ROWS)
    return {
        "title": content.title,
        "subtitle": content.subtitle,
        "notes": notes,
        "missing": {name: why for name in (*FRAMES, "advice") if (why := content.why_missing(name))},
        "advice": None if content.advice is None else [_finding(each) for each in content.advice],
        "peaks": {
            "tflops": sorted(content.peak_tflops.items(), key=lambda each: -each[1]),
            "gb_per_s": sorted(content.peak_gb_per_s.items(), key=lambda each: -each[1]),
        },
        "zero_ns": str(zero_ns),
        "prefixes": {"span": PREFIX, "step": PROFILER_STEP},
        "frames": {name: packed(frame) for name, frame in frames.items()},
    }


def _normal(frame: pl.DataFrame) -> pl.DataFrame:
    """Without rows of no step and without columns that only an analysis needs."""
    if "step" in frame.columns and "window_ns" in frame.columns:
        frame = frame.drop("start_ns", strict=False)
    if "step" in frame.columns and frame["step"].null_count() and set(PARTS) <= set(frame.columns):
        frame = frame.filter(pl.col("step").is_not_null())
    return frame


def _make_relative(frames: dict[str, pl.DataFrame]) -> int:
    """Count the times of the timeline and of the critical paths from their first event, so that a double holds them."""
    timed = [name for name in _TIMED if name in frames]
    zero_ns = min((cast(int, frames[name]["start_ns"].min()) for name in timed), default=0)
    for name in timed:
        frames[name] = frames[name].with_columns(pl.col("start_ns") - zero_ns)
    return zero_ns


def _limited_phases(phases: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """The phases of as many ranks as fit; a page for a thousand ranks has to open too."""
    if len(phases) <= MAX_PHASE_ROWS:
        return phases
    sizes = phases.group_by("rank").len().sort("rank")
    kept = sizes.filter(pl.col("len").cum_sum() <= MAX_PHASE_ROWS)["rank"]
    notes.append(f"Phases are here for the first {len(kept):,} of {len(sizes):,} ranks.")
    return phases.filter(pl.col("rank").is_in(kept.implode()))


def _finding(finding: object) -> dict[str, Any]:
    """One piece of advice, of plain values."""
    if is_dataclass(finding) and not isinstance(finding, type):
        finding = asdict(finding)
    given = cast(Mapping[str, Any], finding)
    wins = given.get("wins_at_most_ns")
    return {
        "title": str(given.get("title", "")),
        "evidence": _lines(given.get("evidence")),
        "cause": str(given.get("cause") or ""),
        "remedy": "\n".join(_lines(given.get("remedy"))),
        "measure_next": "\n".join(_lines(given.get("measure_next"))),
        "wins_at_most_ns": int(wins) if isinstance(wins, int | float) else None,
        "assumptions": _lines(given.get("assumptions")),
    }


def _lines(value: object) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return [f"{key}: {each}" for key, each in cast(Mapping[str, object], value).items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(each) for each in cast(Sequence[object], value)]
    return [str(value)]
