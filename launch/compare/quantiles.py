"""Tails of the normal and of Student's t distribution, far out and for few degrees of freedom; numpy has none."""

import math
from functools import cache
from statistics import NormalDist

_NORMAL = NormalDist()
_SMALLEST = 1e-300
_MAX_TERMS = 300


def normal_tail(z: float) -> float:
    """Probability above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def normal_quantile(probability: float) -> float:
    """The z below which lies this probability."""
    return _NORMAL.inv_cdf(probability)


def student_tail(t: float, degrees: float) -> float:
    """Probability above t with so many degrees of freedom."""
    if math.isnan(t):
        return math.nan
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    outside = _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return outside / 2 if t >= 0 else 1 - outside / 2


@cache
def student_quantile(tail: float, degrees: float) -> float:
    """The t above which lies this probability, which is at most one half."""
    if not 0 < tail <= 0.5:
        raise ValueError(f"tail = {tail}: must be above 0 and at most 0.5")
    low, high = 0.0, 1.0
    while student_tail(high, degrees) > tail:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_tail(middle, degrees) > tail else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function: its continued fraction on the side where that converges fast."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz's evaluation of the continued fraction of the incomplete beta function (DLMF 8.17.22)."""
    numerator, denominator = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            denominator = 1 / _away_from_zero(1 + term * denominator)
            numerator = _away_from_zero(1 + term / numerator)
            value *= numerator * denominator
        if abs(value - before) <= 1e-15 * abs(value):
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _SMALLEST else _SMALLEST
