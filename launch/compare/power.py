"""What a protocol can find with the noise of a calibration, told before anything is measured.

Found by running the protocol itself on drawn experiments: normal pairs whose true deviation is as uncertain as
a calibration over so many pairs leaves it.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from .calibration import Calibration
from .sequential import MIN_PAIRS, Found, Looks, Protocol, Scales, decide, measure

POWER = 0.90
"""Aimed at with normal pairs, so that four in five are found where pairs are disturbed too."""
MAX_PAIRS = 32
"""Beyond it, `pairs_needed` gives up: the machine should become quieter instead."""
_EXPERIMENTS = 2000
_LARGEST = math.log(4)


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What is to be expected of a comparison of an arm with a given effect."""

    found: float
    """Probability of the right verdict of a difference."""
    same: float
    """Probability of "no difference that matters"."""
    mean_pairs: float


def prospect(effect: float, calibration: Calibration, protocol: Protocol, *, num_arms: int = 1) -> Prospect:
    """Chances and cost for one of several arms whose step takes longer by this share.

    Of several arms, as if no other helped: with its own part of the error only, which is the hardest case of Holm.
    """
    share = replace(protocol, alpha=protocol.alpha / num_arms)
    looks, calibrated = _unit_experiments(protocol.looks, calibration.num_pairs)
    return _prospect(math.log1p(effect), looks, calibrated, calibration, share)


def minimum_detectable_effect(
    calibration: Calibration, protocol: Protocol, *, num_arms: int = 1, power: float = POWER
) -> float:
    """Smallest relative slow-down that is found with this probability (a speed-up of as much is found as often)."""
    share = replace(protocol, alpha=protocol.alpha / num_arms)
    looks, calibrated = _unit_experiments(protocol.looks, calibration.num_pairs)
    low, high = 0.0, _LARGEST
    if _prospect(high, looks, calibrated, calibration, share).found < power:
        return math.inf
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        found = _prospect(middle, looks, calibrated, calibration, share).found
        low, high = (middle, high) if found < power else (low, middle)
    return math.expm1(high)


def pairs_needed(
    effect: float, calibration: Calibration, protocol: Protocol, *, num_arms: int = 1, power: float = POWER
) -> int | None:
    """The `max_pairs` that finds this effect with this probability, or None if `MAX_PAIRS` do not."""
    choices = range(MIN_PAIRS, MAX_PAIRS + 1, 2)

    def enough(num_pairs: int) -> bool:
        allowed = replace(protocol, max_pairs=num_pairs)
        return prospect(effect, calibration, allowed, num_arms=num_arms).found >= power

    low, high = 0, len(choices)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(choices[middle]) else (middle + 1, high)
    return choices[low] if low < len(choices) else None


def _prospect(
    effect: float, looks: Looks, calibrated: Scales, calibration: Calibration, protocol: Protocol
) -> Prospect:
    sd = calibration.pair_sd / calibrated.pair_sd
    drawn = looks.scaled(sd).shifted(effect)
    largest = calibrated.largest * sd if calibration.largest is None else np.full(len(sd), calibration.largest)
    known = Scales(pair_sd=np.full(len(sd), calibration.pair_sd), largest=largest, num_pairs=calibration.num_pairs)
    outcomes = decide([drawn], protocol, known)
    sought = Found.SLOWER if effect >= 0 else Found.FASTER
    return Prospect(
        found=float(np.mean(outcomes.found == sought)),
        same=float(np.mean(outcomes.found == Found.SAME)),
        mean_pairs=float(np.mean(outcomes.pairs(drawn))),
    )


@cache
def _unit_experiments(num_pairs: tuple[int, ...], num_calibration_pairs: int) -> tuple[Looks, Scales]:
    """Looks at pairs of deviation one, and what calibrations of such pairs would say."""
    generator = np.random.default_rng(0)
    looks = measure(generator.standard_normal((_EXPERIMENTS, num_pairs[-1])), num_pairs)
    return looks, Scales.of(generator.standard_normal((_EXPERIMENTS, num_calibration_pairs)))
