"""Whether narrower numbers bias a training: paired runs of several seeds, and a test that must show sameness.

[Note: the bias test]
Narrow numbers move every step's loss a little, up as often as down. What must not be is a drift to one side. So both
arms are trained from the same weights on the same data, for several seeds, and each seed gives one difference: the mean
of ln(loss of the arm / loss of the baseline) over the second half of the steps. The burden of proof is on sameness: the
arm passes if the whole confidence interval of the mean lies within a margin (two one-sided t-tests), so an arm whose
bias is the margin or more passes in at most `ALPHA` of the cases, however few the seeds. The margin is twice the
deviation that the baseline's own seeds show (the A/A band), less than what another seed would often do, but between two
fixed limits. The same is asked of the length of the gradients and of the way that the weights have gone, which tell a
wrong scale or rate that the loss shows late; all three must pass, so the error is not larger. There are two looks, each
with half of the error: at `seeds`, and if that did not decide, at twice as many.
Limits of the loss: 0.05 to 0.5 % for 16 bits; 0.25 to 1 % for fewer, where DeepSeek-V3 (arXiv:2412.19437) reports less
than 0.25 % for FP8 against BF16.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...strategies.changes import Changes
from ..testimony import Testimony
from .guard_checks import update_length
from .quantiles import student_quantile, student_tail

ALPHA = 0.05
NUM_LOOKS = 2
_BAND = 2.0
"""Deviations of the baseline's seeds by which the loss may be off."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest relative biases that count as none."""

    loss: tuple[float, float]
    """Between them lies what another seed does."""
    grad_norm: float
    update: float


LIMITS = {
    Changes.PRECISION: Limits(loss=(5e-4, 5e-3), grad_norm=0.02, update=0.01),
    Changes.LOW_PRECISION: Limits(loss=(2.5e-3, 1e-2), grad_norm=0.05, update=0.03),
}


@dataclass(frozen=True, kw_only=True)
class Bias:
    """What is known of one bias. All values are relative: 0.01 is one percent."""

    what: str
    mean: float
    reach: float
    """Half the confidence interval."""
    margin: float
    sd: float
    """Between seeds."""
    num_seeds: int

    @property
    def shown(self) -> bool:
        """Whether the bias is shown to be smaller than the margin."""
        return abs(self.mean) + self.reach < self.margin

    @property
    def refuted(self) -> bool:
        """Whether it is shown to be larger."""
        return abs(self.mean) - self.reach > self.margin

    @property
    def passes_if_unbiased(self) -> float:
        """Probability with which an arm without bias, that scatters like this one, is shown to have none."""
        error = self.sd / math.sqrt(self.num_seeds)
        if error == 0:
            return float(self.margin > 0)
        return max(0.0, 1 - 2 * student_tail(max(0.0, self.margin - self.reach) / error, self.num_seeds - 1))

    @property
    def sentence(self) -> str:
        """The bias in words and figures."""
        return f"{self.what} {100 * self.mean:+.3f} ± {100 * self.reach:.3f} % (allowed ± {100 * self.margin:.3f} %)"


def biases(pairs: Sequence[tuple[Testimony, Testimony]], limits: Limits, *, alpha: float) -> Iterator[Bias]:
    """The biases of an arm from pairs of a baseline and an arm, one for each seed, two at least."""
    band = _BAND * statistics.stdev(statistics.fmean(map(math.log, tail(base.losses))) for base, _ in pairs)
    losses = [_mean_log_ratio(tail(base.losses), tail(arm.losses)) for base, arm in pairs]
    least, most = limits.loss
    yield _bias("loss", losses, min(max(band, least), most), alpha)
    norms = [_norm_ratio(base, arm) for base, arm in pairs]
    if known := [each for each in norms if each is not None]:
        yield _bias("length of the gradient", known, limits.grad_norm, alpha)
    updates = [_log_ratio(update_length(base), update_length(arm)) for base, arm in pairs]
    yield _bias("length of the update", updates, limits.update, alpha)


def tail(values: Sequence[Any]) -> Sequence[Any]:
    """The second half of the steps."""
    return values[len(values) // 2 :]


def _bias(what: str, values: Sequence[float], margin: float, alpha: float) -> Bias:
    """A bias from its value for each seed; what is not finite is infinite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Bias(what=what, mean=math.inf, reach=math.inf, margin=margin, sd=math.inf, num_seeds=len(values))
    sd = statistics.stdev(values)
    reach = student_quantile(alpha, len(values) - 1) * sd / math.sqrt(len(values))
    return Bias(what=what, mean=statistics.fmean(values), reach=reach, margin=margin, sd=sd, num_seeds=len(values))


def _mean_log_ratio(before: Sequence[float], after: Sequence[float]) -> float:
    ratios = [_log_ratio(a, b) for a, b in zip(before, after, strict=True)]
    return statistics.fmean(ratios) if all(map(math.isfinite, ratios)) else math.inf


def _norm_ratio(baseline: Testimony, arm: Testimony) -> float | None:
    """Median, for a single spike of one of the two says nothing of a scale; None if nobody knows them."""
    pairs = zip(baseline.grad_norms, arm.grad_norms, strict=True)
    known = [_log_ratio(a, b) for a, b in pairs if a is not None and b is not None]
    return statistics.median(known) if known else None


def _log_ratio(before: float, after: float) -> float:
    good = 0 < before < math.inf and 0 < after < math.inf
    return math.log(after / before) if good else math.inf
