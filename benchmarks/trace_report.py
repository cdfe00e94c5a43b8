"""What `trace.py` makes of its measurements: a table, and whether the limits are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_S, MAX_MB = 5.0, 500.0
"""Of a trace of 1 GiB, at the pace of `Row.pace`."""
MAX_MEMORY_SHARE = 1 / 5
"""Of HTA's memory, on a trace of 1 GiB."""
MAX_SECOND_S = 1.0
MAX_GROWTH = 1.15
"""Memory of a job with many ranks over that of one with an eighth of them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trace, measured; seconds are of whole processes, megabytes 10^6 bytes."""

    name: str
    packed_mb: float
    large: bool
    times_faster: float
    """Than HTA, at least; 0 if nothing is asked."""
    anchor_s: float
    """What HTA took for such a trace where the limits in seconds were set; 0 if it is not known."""
    wall_s: float
    peak_mb: float
    second_s: float
    second_mb: float
    whole_s: float
    whole_mb: float
    hta: dict[str, Any]
    """seconds by part, failed, versions, wall_s, peak_mb; empty where it was not asked."""

    @property
    def faster(self) -> float | None:
        """HTA's time over ours."""
        return self.hta["wall_s"] / self.wall_s if self.hta else None

    @property
    def pace(self) -> float:
        """How long this machine, in this run, takes for what took a second where the limits were set; told by HTA."""
        return self.hta["wall_s"] / self.anchor_s if self.hta and self.anchor_s else 1.0

    @property
    def memory_share(self) -> float | None:
        """Our memory over HTA's."""
        return self.peak_mb / self.hta["peak_mb"] if self.hta else None

    def line(self, width: int) -> str:
        """The row of a table."""
        line = f"{self.name:<{width}}{self.packed_mb:>9.1f}{self.wall_s:>9.2f}{self.peak_mb:>9.0f}{self.second_s:>9.2f}"
        line += f"{self.whole_s:>9.2f}{self.whole_mb:>9.0f}"
        if not self.hta:
            return line + f"{'-':>9}" * 4
        line += f"{self.hta['wall_s']:>9.2f}{self.hta['peak_mb']:>9.0f}{self.faster:>8.1f}x{self.memory_share:>9.2f}"
        return line + (f"  HTA fails: {', '.join(self.hta['failed'])}" if self.hta["failed"] else "")


def table(rows: Sequence[Row]) -> str:
    """A line for each trace."""
    width = max(len(row.name) for row in rows) + 2
    heads = ("gz MB", "s", "MB", "again s", "whole s", "whole MB", "HTA s", "HTA MB", "faster", "memory")
    return "\n".join(
        [f"{'trace':<{width}}" + "".join(f"{head:>9}" for head in heads), *(row.line(width) for row in rows)]
    )


def verdict(rows: Sequence[Row], jobs: Sequence[Row], *, whole: bool) -> tuple[str, bool]:
    """One line with every limit and what was measured, and whether all are kept; small traces are not judged.

    Seconds are judged at the pace of the machine for which they were set, if HTA has told how this one compares: the
    same virtual machine is up to three times slower from one hour to the next.
    """
    large = [row for row in rows if row.large]
    pace = min((row.pace for row in large), default=1.0)
    growth = jobs[-1].peak_mb / jobs[0].peak_mb
    checks = [
        (max(row.wall_s for row in large) / pace, MAX_S, "{:.1f} s (at most {:g})"),
        (max(row.peak_mb for row in large), MAX_MB, "{:.0f} MB (at most {:g})"),
        (max(row.second_s for row in large) / pace, MAX_SECOND_S, "second look {:.2f} s (at most {:g})"),
        (growth, MAX_GROWTH, f"{jobs[-1].name} need {{:.2f}} times the memory of {jobs[0].name} (at most {{:g}})"),
    ]
    shares = [row.memory_share for row in large if row.memory_share is not None]
    if shares:
        checks.append((max(shares), MAX_MEMORY_SHARE, "{:.2f} of HTA's memory (at most {:g})"))
    said = [f"seconds divided by {pace:.2f}, for so much slower than at its anchors is HTA here"] if pace != 1 else []
    said += [text.format(value, limit) for value, limit, text in checks]
    kept = all(value <= limit for value, limit, _ in checks)
    for row in large:
        if row.faster is not None:
            said.append(f"{row.name}: {row.faster:.1f} times faster than HTA (at least {row.times_faster:g})")
            kept &= row.faster >= row.times_faster
    judged = ("all limits are kept" if kept else "limits are missed") if whole else "small traces, not judged"
    return f"verdict: {judged}: " + "; ".join(said), kept or not whole
