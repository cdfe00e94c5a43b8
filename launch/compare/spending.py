"""How the allowed false alarms are spent over planned looks, so that looking often costs nothing.

The rule of Lan and DeMets (Biometrika 1983) with the spending function that resembles O'Brien and Fleming: almost
nothing at the first look, almost all of it at the last one. Boundaries by the recursion of Armitage, McPherson and
Rowe (1969): the score of the first n pairs walks in independent normal steps, and what has crossed is gone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .quantiles import normal_quantile, normal_tail

Array = NDArray[np.float64]

_GRID = 401
_FAR = 8.0
"""Standard deviations beyond which nothing is left."""


def spent(fraction: float, alpha: float) -> float:
    """Share of all error, two-sided, that may be spent when this fraction of the pairs is done."""
    if fraction >= 1:
        return alpha
    return 2 * normal_tail(normal_quantile(1 - alpha / 2) / math.sqrt(fraction)) if fraction > 0 else 0.0


@cache
def boundaries(looks: tuple[int, ...], alpha: float, max_pairs: int | None = None) -> tuple[float, ...]:
    """The |z| to be exceeded at each look, two-sided, with `alpha` over all looks together.

    looks: numbers of pairs, growing. The last of them spends all that is left, also where it comes before `max_pairs`
    (a budget that ends early, for reasons that have nothing to do with the data).
    """
    _refuse_bad(looks, alpha)
    end = max_pairs or looks[-1]
    inside, gone, found = _AT_START, 0.0, list[float]()
    for look in looks:
        target = alpha if look == looks[-1] else spent(look / end, alpha)
        found.append(_solve(partial(inside.beyond, look=look), target - gone))
        inside, gone = inside.after(found[-1], look=look), target
    return tuple(found)


def nominal_levels(looks: tuple[int, ...], alpha: float, max_pairs: int | None = None) -> tuple[float, ...]:
    """The two-sided p-value to be undercut at each look."""
    return tuple(2 * normal_tail(z) for z in boundaries(looks, alpha, max_pairs))


def crossing_probabilities(looks: Sequence[int], limits: Sequence[float]) -> list[float]:
    """Probability of each look to be the first beyond its limit, where there is no difference."""
    inside, found = _AT_START, list[float]()
    for look, limit in zip(looks, limits, strict=True):
        found.append(inside.beyond(limit, look=look))
        inside = inside.after(limit, look=look)
    return found


@dataclass(frozen=True, kw_only=True)
class _Inside:
    """Where the sum of unit normal differences can be that has stayed inside at all looks so far."""

    num_pairs: int
    scores: Array
    mass: Array
    """Probability of each score."""

    def beyond(self, z: float, *, look: int) -> float:
        """Probability of being inside until now and beyond z at this look."""
        step = math.sqrt(look - self.num_pairs)
        away = (z * math.sqrt(look) - self.scores) / step
        return 2 * math.fsum(m * normal_tail(x) for m, x in zip(self.mass.tolist(), away.tolist(), strict=True))

    def after(self, z: float, *, look: int) -> "_Inside":
        """The same after a look with this limit."""
        edge = min(z, _FAR) * math.sqrt(look)
        scores = np.linspace(-edge, edge, _GRID)
        step = math.sqrt(look - self.num_pairs)
        away = (scores[:, None] - self.scores[None, :]) / step
        density = np.exp(-0.5 * away * away) @ self.mass / (step * math.sqrt(2 * math.pi))
        return _Inside(num_pairs=look, scores=scores, mass=density * _simpson(scores))


_AT_START = _Inside(num_pairs=0, scores=np.zeros(1), mass=np.ones(1))


def _refuse_bad(looks: Sequence[int], alpha: float) -> None:
    if not looks or looks[0] < 1 or any(a >= b for a, b in pairwise(looks)):
        raise ValueError(f"looks = {tuple(looks)}: must be numbers of pairs that grow; give for example (4, 8, 12, 16)")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha}: must lie between 0 and 1; give 0.05")


def _solve(crossing: Callable[[float], float], target: float) -> float:
    """The limit that is crossed with this probability."""
    low, high = 0.0, _FAR * 2
    if target <= 0:
        return high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if crossing(middle) > target else (low, middle)
    return (low + high) / 2


def _simpson(grid: Array) -> Array:
    weights = np.full(len(grid), 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return weights * (grid[1] - grid[0]) / 3
