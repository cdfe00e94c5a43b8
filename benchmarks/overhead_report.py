"""What `overhead.py` makes of its measurements: medians with quartiles, tables, a verdict."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

GOAL_US = 30.0
"""Microseconds a step of stepladder above the hand-written loop over a DataLoader, on the MLP with one rank."""
GOAL_START = 1.15
"""`stepladder run` over the bare script, process start to first step."""
BARE, BARE_LOADER, OURS = "bare", "bare-loader", "stepladder"

Series = Mapping[str, Sequence[float | None]]
"""What each arm measured, one entry a turn or start, the same place for the same moment; None where it crashed."""


@dataclass(frozen=True)
class Spread:
    """The middle of some values: median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None if there are no values."""
        if not values:
            return None
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
        return cls(median, low, high)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A case, measured."""

    steps_us: Series
    starts_s: Series

    def step(self, arm: str) -> Spread | None:
        """Time of a step."""
        return spread(self.steps_us, arm)

    def above(self, arm: str, yardstick: str = BARE) -> Spread | None:
        """Time of a step above that of another arm in the same turn."""
        return Spread.of([mine - other for mine, other in _pairs(self.steps_us, arm, yardstick)])

    def summary(self) -> dict[str, dict[str, Any]]:
        """All figures by arm, for the results file."""
        found: dict[str, dict[str, Any]] = {}
        for arm in self.steps_us:
            figures = {
                "step_us": self.step(arm),
                "over_bare_us": self.above(arm),
                "over_bare_loader_us": self.above(arm, BARE_LOADER),
                "start_s": spread(self.starts_s, arm),
                "start_ratio": ratio(self.starts_s, arm, BARE),
            }
            found[arm] = {name: asdict(each) if each else None for name, each in figures.items()}
        return found

    def table(self) -> str:
        """A line for each arm."""
        lines = [
            f"  {'arm':<12}{'us/step':>9}  {'over bare (quartiles)':>30}  {'over bare-loader (quartiles)':>30}"
            f"  {'first step':>10}  {'x bare':>6}"
        ]
        for arm in self.steps_us:
            step, start, times = self.step(arm), spread(self.starts_s, arm), ratio(self.starts_s, arm, BARE)
            if step is None or start is None:
                lines.append(f"  {arm:<12}  crashed")
                continue
            over = "  ".join(f"{_signed(self.above(arm, each), arm == each):>30}" for each in (BARE, BARE_LOADER))
            ratio_said = f"{times.median:>5.2f}x" if times else f"{'-':>6}"
            lines.append(f"  {arm:<12}{step.median:>9,.0f}  {over}  {start.median:>8.2f} s  {ratio_said}")
        return "\n".join(lines)


def spread(series: Series, arm: str) -> Spread | None:
    """An arm's figure."""
    return Spread.of([each for each in series[arm] if each is not None])


def ratio(series: Series, arm: str, yardstick: str) -> Spread | None:
    """How many times the figure of another arm at the same moment."""
    return Spread.of([mine / other for mine, other in _pairs(series, arm, yardstick)])


def _pairs(series: Series, arm: str, yardstick: str) -> list[tuple[float, float]]:
    both = zip(series[arm], series[yardstick], strict=True)
    return [(mine, other) for mine, other in both if mine is not None and other is not None]


def _signed(value: Spread | None, itself: bool) -> str:
    if value is None or itself:
        return "0" if itself else "-"
    return f"{value.median:+,.0f} ({value.low:+,.0f} .. {value.high:+,.0f})"


def start_table(starts_s: Series, yardstick: str) -> str:
    """The whole commands: a line for each."""
    lines: list[str] = []
    for command in starts_s:
        start, times = spread(starts_s, command), ratio(starts_s, command, yardstick)
        if start is None or times is None:
            lines.append(f"  {command:<16}crashed")
            continue
        beside = "" if command == yardstick else f"  {times.median:.2f}x ({times.low:.2f} .. {times.high:.2f})"
        lines.append(f"  {command:<16}{start.median:5.2f} s ({start.low:.2f} .. {start.high:.2f}){beside}")
    return "\n".join(lines)


def verdict(mlp: Outcome, start_ratios: Mapping[int, Spread | None]) -> str:
    """The last line: the MLP on one rank against its goal, and the start of the command by number of ranks.

    The yardstick is the loop that people write by hand, over a DataLoader, which every peer reads too; the loop that
    gathers its own batches is told beside it.
    """
    ours, loader = mlp.above(OURS, BARE_LOADER), mlp.above(OURS)
    started = {ranks: each.median for ranks, each in start_ratios.items() if each}
    if ours is None or loader is None or len(started) < len(start_ratios):
        return "overhead: FAIL an arm crashed before there was a figure; what it said stands above"
    theirs = {
        arm: over.median
        for arm in mlp.steps_us
        if arm not in (BARE, BARE_LOADER, OURS) and (over := mlp.above(arm, BARE_LOADER))
    }
    least = all(ours.median < over for over in theirs.values())
    good = least and ours.median <= GOAL_US and max(started.values()) <= GOAL_START
    peers = ", ".join(f"{arm} {over:+.0f}" for arm, over in theirs.items())
    start = ", ".join(
        f"{times:.2f}x on {ranks} {'rank' if ranks == 1 else 'ranks'}" for ranks, times in started.items()
    )
    return (
        f"overhead: {'PASS' if good else 'FAIL'} stepladder {ours.median:+.0f} us/step over a hand-written loop on the "
        f"MLP, 1 rank (goal {GOAL_US:.0f}; {peers}; over the loop without a DataLoader {loader.median:+.0f}); "
        f"start-up {start} (goal {GOAL_START})"
    )
