"""Whether narrower numbers bias a training: paired runs of several seeds, and a test that must show sameness.

[Note: the bias test]
Narrow numbers move every step's loss a little, up as often as down. What must not be is a drift to one side. So both
arms are trained from the same weights on the same data, for several seeds, and each seed gives one difference: the mean
of ln(loss of the arm / loss of the baseline) over the second half of the steps. Its mean over seeds has an interval of
Student's t, and the burden of proof is on sameness:

- it fails if the interval lies beyond what is negligible: a bias was found;
- it passes if the whole interval lies within a margin (two one-sided tests). The margin is twice the deviation that the
  baseline's own seeds show (the A/A band), less than what another seed would often do; but at least what is negligible,
  and no more than ten times that, so that an arm of that bias or more passes in at most `ALPHA` of the cases, however
  few the seeds. Of a smaller margin this is true as it was drawn: few seeds tell a deviation roughly, and a bias of
  twice the true one passes more often than that;
- else there is a second look at twice as many seeds. Each look has half of the error.

The same is asked of the length of the gradients, and of the way that the weights have gone: they tell a wrong scale or
rate, which the loss shows late. All must pass, so the error is no larger. A training that amplifies rounding much, with
a high learning rate and small batches, has wide intervals; they are printed.
Negligible is 0.05 % of the loss for 16 bits, and 0.25 % for fewer, below which DeepSeek-V3 (arXiv:2412.19437) reports
FP8 to be of BF16.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...strategies.changes import Changes
from ..testimony import Testimony
from .guard_checks import update_length
from .quantiles import student_quantile, student_tail

ALPHA = 0.05
NUM_LOOKS = 2
_MOST = 10.0
"""Times what is negligible, beyond which no bias is allowed, whatever seeds do."""
_BAND = 2.0
"""Deviations of the baseline's seeds by which an arm may be off."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Relative biases that count as none."""

    loss: float
    grad_norm: float
    update: float


LIMITS = {
    Changes.PRECISION: Limits(loss=5e-4, grad_norm=0.02, update=0.01),
    Changes.LOW_PRECISION: Limits(loss=2.5e-3, grad_norm=0.05, update=0.03),
}


@dataclass(frozen=True, kw_only=True)
class Bias:
    """What is known of one bias. All values are relative: 0.01 is one percent."""

    what: str
    mean: float
    reach: float
    """Half the confidence interval."""
    negligible: float
    """Whatever is shown to be larger fails."""
    margin: float
    """Whatever is shown to be smaller passes."""
    sd: float
    """Between seeds."""
    num_seeds: int

    @property
    def shown(self) -> bool:
        """Whether the bias is shown to be smaller than the margin, and none was found."""
        return abs(self.mean) + self.reach < self.margin and not self.refuted

    @property
    def refuted(self) -> bool:
        """Whether it is shown to be larger than what is negligible."""
        return abs(self.mean) - self.reach > self.negligible

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
        allowed = self.negligible if self.refuted else self.margin
        return f"{self.what} {100 * self.mean:+.3f} ± {100 * self.reach:.3f} % (allowed ± {100 * allowed:.3f} %)"


def biases(pairs: Sequence[tuple[Testimony, Testimony]], limits: Limits, *, alpha: float) -> Iterator[Bias]:
    """The biases of an arm from pairs of a baseline and an arm, one for each seed, two at least."""
    bases, arms = zip(*pairs, strict=True)
    looked_at: list[tuple[str, Callable[[Testimony], float], float]] = [
        ("loss", _mean_log_loss, limits.loss),
        ("length of the gradient", _log_norm, limits.grad_norm),
        ("length of the update", lambda each: _log(update_length(each)), limits.update),
    ]
    unknown = any(norm is None for each in (*bases, *arms) for norm in each.grad_norms)
    for what, of, limit in looked_at:
        if of is not _log_norm or not unknown:
            yield _bias(what, list(map(of, bases)), list(map(of, arms)), limit, alpha)


def tail(values: Sequence[Any]) -> Sequence[Any]:
    """The second half of the steps."""
    return values[len(values) // 2 :]


def _bias(what: str, before: Sequence[float], after: Sequence[float], negligible: float, alpha: float) -> Bias:
    """A bias from logarithms for each seed, two at least, without and with it; what is not finite is infinite."""
    told: dict[str, Any] = {"what": what, "negligible": negligible, "num_seeds": len(before)}
    if not all(map(math.isfinite, (*before, *after))):
        return Bias(mean=math.inf, reach=0.0, sd=math.inf, margin=negligible, **told)
    differences = [b - a for a, b in zip(before, after, strict=True)]
    sd = statistics.stdev(differences)
    reach = student_quantile(alpha, len(differences) - 1) * sd / math.sqrt(len(differences))
    margin = min(max(_BAND * statistics.stdev(before), negligible), _MOST * negligible)
    return Bias(mean=statistics.fmean(differences), reach=reach, sd=sd, margin=margin, **told)


def _mean_log_loss(testimony: Testimony) -> float:
    return statistics.fmean(map(_log, tail(testimony.losses)))


def _log_norm(testimony: Testimony) -> float:
    """Of the median over the steps, for a single spike says nothing of a scale."""
    return _log(statistics.median(norm for norm in testimony.grad_norms if norm is not None))


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.inf
