"""A first breakdown of the step by span: how long each phase kept the host of a rank busy.

Reads the `user_annotation` events of Kineto traces. Spans nest, so a span's own time is its duration without the spans
inside it: a table of own times adds up to the step. On a GPU this is host time; what the device did in it is another
question, which needs its kernels.
"""

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .errors import TraceError
from .spans import PROFILER_STEP, Span

MAX_TRACE_BYTES = 1 << 30
"""Largest trace, unpacked, that is read here: this first table parses in memory."""

_OTHER = "other"
_RANK_FILE = re.compile(r"rank-(\d+)\.step-(\d+)\.pt\.trace\.json(\.gz)?")


@dataclass(frozen=True, kw_only=True)
class RankBreakdown:
    """Where one rank's host time went, over the complete steps of its trace.

    Units: milliseconds for each step. `own_ms` has every span that occurred, and `other` for the rest of the step.
    """

    rank: int
    num_steps: int
    step_ms: float
    own_ms: Mapping[str, float]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Events of a Kineto trace, plain or gzip.

    Raises: TraceError if the file is missing, damaged, not a trace, or larger than `MAX_TRACE_BYTES` unpacked.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_TRACE_BYTES + 1)
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such trace") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}: damaged or unreadable ({error}); record it again") from error
    if len(raw) > MAX_TRACE_BYTES:
        raise TraceError(f"{path}: larger than {MAX_TRACE_BYTES >> 20} MiB unpacked; record fewer steps")
    try:
        trace = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not a complete JSON trace ({error}); record it again") from error
    events = cast(dict[str, Any], trace).get("traceEvents") if isinstance(trace, dict) else None
    if not isinstance(events, list):
        raise TraceError(f"{path}: no 'traceEvents' list; is it a Kineto trace?")
    return [cast(dict[str, Any], event) for event in cast(list[Any], events) if isinstance(event, dict)]


def rank_breakdown(events: Iterable[Mapping[str, Any]], rank: int) -> RankBreakdown:
    """Own time of each span for each step of one rank.

    Raises: TraceError if the trace has no profiler step.
    """
    steps: list[tuple[float, float]] = []
    spans: list[tuple[float, float, str]] = []
    names = {span.value for span in Span}
    for event in events:
        if event.get("cat") != "user_annotation" or event.get("ph") != "X":
            continue
        name, start, duration = event.get("name"), _microseconds(event.get("ts")), _microseconds(event.get("dur"))
        if not isinstance(name, str) or start is None or duration is None or duration < 0:
            continue
        if name.startswith(PROFILER_STEP):
            steps.append((start, start + duration))
        elif name in names:
            spans.append((start, start + duration, Span(name).label))
    if not steps:
        raise TraceError(f"rank {rank}: no '{PROFILER_STEP}' in the trace; was profile.step() called?")
    first, last = min(start for start, _ in steps), max(end for _, end in steps)
    own = _own_times([span for span in spans if first <= span[0] and span[1] <= last])
    total_us = sum(end - start for start, end in steps)
    own_ms = {label: us / 1000 / len(steps) for label, us in own.items()}
    step_ms = total_us / 1000 / len(steps)
    own_ms[_OTHER] = max(0.0, step_ms - sum(own_ms.values()))
    return RankBreakdown(rank=rank, num_steps=len(steps), step_ms=step_ms, own_ms=own_ms)


def _microseconds(value: object) -> float | None:
    """A time that can be reckoned with: a number, and less than 30 000 years."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e18 else None


def _own_times(spans: Sequence[tuple[float, float, str]]) -> dict[str, float]:
    """Duration of each span without the spans that lie inside it, summed by label; one sweep with a stack."""
    own: dict[str, float] = defaultdict(float)
    open_spans: list[tuple[float, str]] = []  # (end, label), innermost last
    for start, end, label in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_spans and open_spans[-1][0] <= start:
            open_spans.pop()
        own[label] += end - start
        if open_spans:
            own[open_spans[-1][1]] -= min(end, open_spans[-1][0]) - start
        open_spans.append((end, label))
    return dict(own)


def read_folder(folder: Path) -> list[RankBreakdown]:
    """Breakdown of every rank's newest trace in a folder, in order of rank.

    Raises: TraceError if there is no trace, or one cannot be read.
    """
    newest: dict[int, tuple[int, Path]] = {}
    for path in folder.glob("rank-*"):
        if match := _RANK_FILE.fullmatch(path.name):
            rank, step = int(match[1]), int(match[2])
            newest[rank] = max(newest.get(rank, (-1, path)), (step, path))
    if not newest:
        raise TraceError(f"{folder}: no trace named like rank-0.step-9.pt.trace.json.gz")
    return [rank_breakdown(read_events(path), rank) for rank, (_, path) in sorted(newest.items())]


def table(ranks: Sequence[RankBreakdown]) -> str:
    """The breakdown as text: a row for each span, a column for each rank (at most eight), milliseconds and share."""
    shown = ranks[:8]
    labels = [span.label for span in Span if any(span.label in rank.own_ms for rank in ranks)] + [_OTHER]
    steps = ", ".join(sorted({str(rank.num_steps) for rank in ranks}))
    lines = [f"host time of a step by span, own time, mean of {steps} profiled steps"]
    lines.append(f"{'span':<16}" + "".join(f"{f'rank {rank.rank}':>11} ms     %" for rank in shown))
    for label in labels:
        cells = (f"{rank.own_ms.get(label, 0.0):>14.3f} {_share(rank, label):>5.1f}" for rank in shown)
        lines.append(f"{label:<16}" + "".join(cells))
    lines.append(f"{'step':<16}" + "".join(f"{rank.step_ms:>14.3f} {100:>5.1f}" for rank in shown))
    if len(ranks) > len(shown):
        lines.append(f"({len(ranks) - len(shown)} more ranks in the traces folder)")
    return "\n".join(lines)


def _share(rank: RankBreakdown, label: str) -> float:
    """Percentage of the step."""
    return 100 * rank.own_ms.get(label, 0.0) / rank.step_ms if rank.step_ms else 0.0
