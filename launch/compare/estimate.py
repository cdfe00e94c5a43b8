"""From step times to a ratio with an interval: steps make a segment's median, pairs of segments make the estimate.

Steps of one process share what its start has drawn, so they are never counted as independent: the interval sees only
pairs.

The median over pairs is the one of Hodges and Lehmann (Annals of Mathematical Statistics 1963): the median of the
averages of every two pairs, each pair with itself too. It bears disturbed pairs as the plain median does, and needs as
few pairs as the mean does where nothing disturbs. Its standard error comes from the spread of the same averages: the
true value lies between two of them with a probability known from signed ranks, and so it does between two quantiles of
Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .quantiles import student_quantile, student_tail
from .signed_ranks import Array, lower_tails

MIN_WARMUP_STEPS = 10
WINDOW_STEPS = 5
STEADY_WITHIN = 0.01
SPREAD_LEVEL = 0.20
"""Two-sided probability outside of the averages that give the standard error: the further in, the more disturbed pairs
it bears, the further out, the fewer false alarms; tried were 0.05, 0.1, 0.2 and 0.32."""
MIN_BOOTSTRAP_PAIRS = 8
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The steady part of one process."""

    median_s: float
    p95_s: float
    num_steps: int
    """Steps measured."""
    num_warmup_steps: int
    steady: bool
    """Whether the warm-up had settled, rather than run into its limit."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A ratio of step times, candidate over baseline: below 1 is faster."""

    ratio: float
    low: float
    high: float
    p_value: float
    """Of no difference, two-sided, as if this had been the only look."""
    num_pairs: int
    bootstrap: tuple[float, float] | None = None
    """Percentile interval over resampled pairs; None below `MIN_BOOTSTRAP_PAIRS`, where it is known to be too short."""


def is_steady(
    times_s: Sequence[float], *, min_warmup_steps: int = MIN_WARMUP_STEPS, within: float = STEADY_WITHIN
) -> bool:
    """Whether warm-up may end here: the last five steps have the median of the five before.

    Equal means: within one percent, or within what the scatter of these ten steps explains. The measured window
    begins after it, so that the choice does not colour what is measured.
    """
    if len(times_s) < max(min_warmup_steps, 2 * WINDOW_STEPS):
        return False
    before, last = np.log(times_s[-2 * WINDOW_STEPS : -WINDOW_STEPS]), np.log(times_s[-WINDOW_STEPS:])
    centre_before, centre = float(np.median(before)), float(np.median(last))
    deviations = np.abs(np.concatenate([before - centre_before, last - centre]))
    scatter = 1.4826 * float(np.median(deviations)) * 1.2533 * math.sqrt(2 / WINDOW_STEPS)
    return abs(centre - centre_before) <= max(within, scatter)


def summarise(times_s: Sequence[float], *, num_steps: int, max_warmup_steps: int | None = None) -> Segment | None:
    """The segment in the step times of one process, or None as long as steps are missing.

    num_steps: to be measured after the warm-up. max_warmup_steps: where an unsteady warm-up ends; four times the least.
    """
    limit = max_warmup_steps or 4 * MIN_WARMUP_STEPS
    warmup = next((n for n in range(MIN_WARMUP_STEPS, limit + 1) if is_steady(times_s[:n])), limit)
    window = np.asarray(times_s[warmup : warmup + num_steps], dtype=np.float64)
    if len(window) < num_steps:
        return None
    return Segment(
        median_s=float(np.median(window)),
        p95_s=float(np.quantile(window, 0.95)),
        num_steps=num_steps,
        num_warmup_steps=warmup,
        steady=is_steady(times_s[:warmup]),
    )


def centre_and_error(differences: Array) -> tuple[Array, Array]:
    """Median over pairs and its standard error, for many experiments at once.

    differences: (experiments, pairs); both results (experiments,). The error is one of Student's t with one degree of
    freedom less than there are pairs, of which it needs two.
    """
    num_pairs = differences.shape[-1]
    i, j = np.triu_indices(num_pairs)
    averages = np.sort((differences[..., i] + differences[..., j]) / 2, axis=-1)
    rank, tail = _inner_rank(num_pairs)
    spread = averages[..., averages.shape[-1] - 1 - rank] - averages[..., rank]
    middle = (averages.shape[-1] - 1) / 2
    centre = (averages[..., math.floor(middle)] + averages[..., math.ceil(middle)]) / 2
    return centre, spread / (2 * student_quantile(tail, num_pairs - 1))


@cache
def _inner_rank(num_pairs: int) -> tuple[int, float]:
    """The average, counted from the smallest, below which the true value lies with the tail next to half the level."""
    tails = lower_tails(num_pairs)
    rank = max(int(np.searchsorted(tails, SPREAD_LEVEL / 2, side="right")) - 1, 0)
    return rank, float(tails[rank])


def estimate(differences: Sequence[float], *, level: float = 0.05, seed: int = 0) -> Estimate:
    """The ratio from logarithmic differences of pairs, candidate minus baseline, with an interval over pairs.

    level: two-sided probability outside the interval. Raises: ValueError below two pairs, where no interval exists.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"pairs = {len(values)}: an interval needs two at least; measure more")
    centre, error = (float(each[0]) for each in centre_and_error(values[None, :]))
    reach = student_quantile(level / 2, len(values) - 1) * error
    return Estimate(
        ratio=math.exp(centre),
        low=math.exp(centre - reach),
        high=math.exp(centre + reach),
        p_value=p_value(centre, error, len(values)),
        num_pairs=len(values),
        bootstrap=bootstrap_interval(values, level=level, seed=seed) if len(values) >= MIN_BOOTSTRAP_PAIRS else None,
    )


def p_value(centre: float, error: float, num_pairs: int) -> float:
    """Two-sided probability of a centre as far from zero, where there is no difference."""
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    return 2 * student_tail(abs(centre) / error, num_pairs - 1)


def bootstrap_interval(
    differences: Array, *, level: float = 0.05, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentiles of the ratio over resampled pairs."""
    generator = np.random.default_rng(seed)
    drawn = differences[generator.integers(0, len(differences), (resamples, len(differences)))]
    low, high = np.quantile(centre_and_error(drawn)[0], (level / 2, 1 - level / 2))
    return math.exp(low), math.exp(high)
