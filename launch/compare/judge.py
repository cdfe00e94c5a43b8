"""The verdict on each arm, from the pairs that are done: a pure function, that can be asked after every segment."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from .calibration import Calibration
from .estimate import MIN_BOOTSTRAP_PAIRS, Array, bootstrap_interval, centre_and_error, p_value
from .quantiles import student_quantile
from .sequential import Found, Outcomes, Protocol, decide, measure
from .signed_ranks import rank_p_values


class Kind(StrEnum):
    """What is known of an arm."""

    CONTINUE = "continue"
    """Nothing yet: measure more pairs."""
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    """No difference as large as the margin."""
    UNDECIDED = "undecided"
    """The pairs are used up."""


_KINDS = {Found.FASTER: Kind.FASTER, Found.SLOWER: Kind.SLOWER, Found.SAME: Kind.SAME}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of one arm. Ratios are times, candidate over baseline: below 1 is faster."""

    kind: Kind
    num_pairs: int
    """Pairs that it rests on: those up to the look that decided."""
    look: int
    """Looks made, the deciding one included."""
    num_looks: int
    """Looks planned."""
    ratio: float | None = None
    """Median over pairs, as are all that follow: None below two pairs."""
    low: float | None = None
    high: float | None = None
    """Interval over pairs, no shorter than the noise floor."""
    p_value: float | None = None
    """Of no difference, two-sided, from the pairs alone."""
    rank_p_value: float | None = None
    """The same from the signed ranks of the pairs, which decide where single equal pairs differed by as much."""
    level: float | None = None
    """What the p-value had to undercut at this look; None before the first."""
    floor: float | None = None
    """Relative difference that equal arms show on this machine over so many pairs."""
    bootstrap: tuple[float, float] | None = None
    """Percentile interval over resampled pairs, for comparison; None below 8 pairs."""

    @property
    def sentence(self) -> str:
        """The verdict in words and figures."""
        if self.ratio is None or self.low is None or self.high is None or self.p_value is None or self.floor is None:
            return f"{self.num_pairs} pairs: too few for an estimate"
        times = f"{1 / self.ratio:.3f}x [{1 / self.high:.3f}, {1 / self.low:.3f}]"
        needed = "" if self.level is None else f", needed {self.level:.2g} at look {self.look} of {self.num_looks}"
        said = f"{self.kind}: {times} over {self.num_pairs} pairs, p = {self.p_value:.2g}{needed}"
        if self.kind is not Kind.UNDECIDED:
            return said
        if abs(math.log(self.ratio)) <= math.log1p(self.floor):
            return f"{said}; within the noise floor of {100 * self.floor:.2f} %"
        if self.rank_p_value is not None and self.level is not None and self.p_value < self.level:
            return (
                f"{said}; by the signed ranks of the pairs p = {self.rank_p_value:.2g}, too much for such uneven noise"
            )
        return said


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What some pairs say, whether they were looked at or not. Ratios are times, candidate over baseline."""

    ratio: float
    low: float
    high: float
    p_value: float
    floor: float
    """Relative difference that equal arms show over so many pairs."""


def interval_of(differences: Sequence[float] | Array, protocol: Protocol, calibration: Calibration) -> Interval:
    """The estimate of two pairs or more, with its interval, which is no shorter than the noise floor."""
    values = np.asarray(differences, dtype=np.float64)
    centre, error = (float(each[0]) for each in centre_and_error(values[None, :]))
    floor = calibration.floor(len(values), protocol.alpha)
    reach = max(student_quantile(protocol.alpha / 2, len(values) - 1) * error, math.log1p(floor))
    return Interval(
        ratio=math.exp(centre),
        low=math.exp(centre - reach),
        high=math.exp(centre + reach),
        p_value=p_value(centre, error, len(values)),
        floor=floor,
    )


def judge(
    differences: Mapping[str, Sequence[float]], protocol: Protocol, calibration: Calibration, *, over: bool = False
) -> dict[str, Verdict]:
    """The verdict on each candidate from its logarithmic differences to the baseline, in order of rounds.

    All candidates of the experiment are named, those without a pair too: they share the error. An arm keeps the verdict
    of the look that decided it, whatever was measured afterwards. over: no pair will follow because the budget, not the
    data, says so; then the pairs that are there are the last look.
    """
    arms = {name: np.asarray(values, dtype=np.float64)[None, :] for name, values in differences.items()}
    looks = {
        name: measure(values, protocol.looks_of(values.shape[1], over=over)) if values.size else measure(values, ())
        for name, values in arms.items()
    }
    outcomes = decide(list(looks.values()), protocol, calibration.scales, over=over)
    return {
        name: _verdict(values[0], looks[name].num_pairs, outcomes, a, protocol, calibration, over=over)
        for a, (name, values) in enumerate(arms.items())
    }


def _verdict(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    made: tuple[int, ...],
    outcomes: Outcomes,
    a: int,
    protocol: Protocol,
    calibration: Calibration,
    *,
    over: bool,
) -> Verdict:
    look = int(outcomes.look[0, a])
    kind = _KINDS.get(Found(int(outcomes.found[0, a])))
    num_pairs = made[look] if kind else len(values)
    if kind is None:
        kind = Kind.UNDECIDED if over or len(values) >= protocol.max_pairs else Kind.CONTINUE
    num_looks = len(made) if over else len(protocol.looks)
    if num_pairs < 2:
        return Verdict(kind=kind, num_pairs=num_pairs, look=look + 1, num_looks=num_looks)
    used = values[:num_pairs]
    found = interval_of(used, protocol, calibration)
    level = None
    if look >= 0 and made[look] == num_pairs:
        level = protocol.levels(made, protocol.alpha / int(outcomes.num_open[0, a]), over=over)[look]
    return Verdict(
        kind=kind,
        num_pairs=num_pairs,
        look=look + 1,
        num_looks=num_looks,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        rank_p_value=float(rank_p_values(used[None, :])[0]),
        level=level,
        floor=found.floor,
        bootstrap=bootstrap_interval(used, level=protocol.alpha) if num_pairs >= MIN_BOOTSTRAP_PAIRS else None,
    )
