"""Planned looks at the pairs so far: stop for a win, a loss, or no difference that matters; with Holm for several arms.

A difference is found at a look if it passes the test at the level that the spending rule leaves for this look AND is
larger than the noise floor of the calibration AND is told by the signed ranks of the pairs too, or beyond all that
single pairs of the calibration differed by. No difference is found if the interval, at a level of a spending rule of
its own, lies within the margin. All functions take many experiments at once: the simulation runs what users run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .estimate import Array, centre_and_error
from .quantiles import student_quantile
from .signed_ranks import rank_p_values
from .spending import nominal_levels

MIN_PAIRS = 4
"""Below it Student's t is so wide at the levels of a first look that no verdict is possible."""

BEYOND = 1.25
"""A difference as many times as large as the largest of single pairs of equal arms needs no signed ranks, which cannot
be sure of anything below six pairs."""


class Found(IntEnum):
    """What the looks have found for one arm."""

    FASTER = -1
    NOTHING = 0
    SLOWER = 1
    SAME = 2


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is declared before the start."""

    max_pairs: int = 16
    look_every: int = 2
    """Pairs from one look to the next; a block of two keeps each look balanced."""
    alpha: float = 0.05
    """False verdicts of a difference allowed, over all looks and all arms together."""
    margin: float = 0.01
    """Differences smaller than this do not matter."""

    def __post_init__(self) -> None:
        if self.max_pairs < MIN_PAIRS:
            raise ValueError(
                f"max_pairs = {self.max_pairs}: too few for any verdict; allow {MIN_PAIRS} at least, 16 by default"
            )
        if self.look_every < 1:
            raise ValueError(f"look_every = {self.look_every}: must be 1 or more; 2 keeps each look balanced")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha = {self.alpha}: must lie between 0 and 0.5; give 0.05")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin = {self.margin}: must lie between 0 and 1; 0.01 is one percent")

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of pairs after which the data is looked at."""
        return (*range(MIN_PAIRS, self.max_pairs, self.look_every), self.max_pairs)

    def looks_of(self, num_pairs: int, *, over: bool) -> tuple[int, ...]:
        """The looks that so many pairs allow. over: no pair will follow, so that the last one is a look too."""
        made = tuple(look for look in self.looks if look <= num_pairs)
        return (*made, num_pairs) if over and num_pairs >= MIN_PAIRS and num_pairs not in made else made

    def levels(self, made: tuple[int, ...], alpha: float, *, over: bool) -> tuple[float, ...]:
        """Two-sided level of each look made, with `alpha` spent at the last one if it is over."""
        if not made:
            return ()
        return nominal_levels(made if over else self.looks, alpha, self.max_pairs)[: len(made)]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Estimates at the looks of one arm, for many experiments."""

    num_pairs: tuple[int, ...]
    centre: Array
    """(experiments, looks)"""
    error: Array
    """(experiments, looks)"""
    differences: Array
    """(experiments, pairs)"""

    def shifted(self, effect: float | Array) -> "Looks":
        """The same experiments with an arm whose log step time is longer by this; one figure, or one for each."""
        by = np.asarray(effect, dtype=np.float64)[..., None]
        return replace(self, centre=self.centre + by, differences=self.differences + by)

    def scaled(self, by: Array) -> "Looks":
        """The same experiments with pairs that scatter so many times as much, (experiments,)."""
        times = by[:, None]
        return replace(self, centre=self.centre * times, error=self.error * times, differences=self.differences * times)


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What the calibration of each experiment says of pairs of equal arms."""

    pair_sd: Array
    """Deviation of a pair, (experiments,)."""
    largest: Array
    """The largest difference of a pair, (experiments,)."""
    num_pairs: int
    """Of each calibration."""

    @staticmethod
    def of(differences: Array) -> "Scales":
        """From the pairs of the calibrations: (experiments, pairs)."""
        _, error = centre_and_error(differences)
        num_pairs = differences.shape[-1]
        return Scales(
            pair_sd=error * math.sqrt(num_pairs), largest=np.abs(differences).max(axis=-1), num_pairs=num_pairs
        )


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What was found, and when: (experiments, arms) each."""

    found: NDArray[np.int64]
    look: NDArray[np.int64]
    """Index of the look that decided, or of the last one made; -1 before the first."""
    num_open: NDArray[np.int64]
    """Arms without a difference found that shared the error at that look (the divisor of Holm)."""

    def pairs(self, looks: Looks) -> NDArray[np.int64]:
        """Pairs used by the first arm."""
        return np.asarray(looks.num_pairs)[self.look[:, 0]]


def measure(differences: Array, num_pairs: Sequence[int]) -> Looks:
    """Estimates after each of these numbers of pairs. differences: (experiments, pairs)."""
    found = [centre_and_error(differences[:, :n]) for n in num_pairs]
    shape = (len(differences), len(found))
    centre = np.stack([each for each, _ in found], axis=1) if found else np.zeros(shape)
    error = np.stack([each for _, each in found], axis=1) if found else np.zeros(shape)
    return Looks(num_pairs=tuple(num_pairs), centre=centre, error=error, differences=differences)


def noise_floor(scale: Array, num_calibration_pairs: int, num_pairs: int, alpha: float = 0.05) -> Array:
    """What the estimate of equal arms over so many pairs exceeds with probability alpha, by the calibration.

    scale: deviation of a pair in the calibration. It is an estimate itself, hence the t of its own number of pairs.
    """
    return student_quantile(alpha / 2, num_calibration_pairs - 1) * scale / math.sqrt(num_pairs)


def decide(arms: Sequence[Looks], protocol: Protocol, scales: Scales, *, over: bool = False) -> Outcomes:
    """Go through the looks in order."""
    num_experiments, num_arms = len(scales.pair_sd), len(arms)
    found = np.full((num_experiments, num_arms), Found.NOTHING, dtype=np.int64)
    last = np.full((num_experiments, num_arms), -1, dtype=np.int64)
    shared = np.full((num_experiments, num_arms), num_arms, dtype=np.int64)
    for look in range(max((len(arm.num_pairs) for arm in arms), default=0)):
        here = [a for a in range(num_arms) if look < len(arms[a].num_pairs)]
        undecided = found == Found.NOTHING
        for a in here:
            last[undecided[:, a], a] = look
        for _ in range(num_arms):  # Holm: each difference found leaves its share of the error to the others
            differing = (found == Found.FASTER) | (found == Found.SLOWER)
            num_open = np.maximum(num_arms - differing.sum(axis=1), 1)
            for a in here:
                _find_difference(arms[a], look, a, found, shared, num_open, scales, protocol, over)
        for a in here:
            still = found[:, a] == Found.NOTHING
            found[still & _within_margin(arms[a], look, scales.pair_sd, protocol, over), a] = Found.SAME
    return Outcomes(found=found, look=last, num_open=shared)


def _find_difference(
    arm: Looks,
    look: int,
    a: int,
    found: NDArray[np.int64],
    shared: NDArray[np.int64],
    num_open: NDArray[np.int64],
    scales: Scales,
    protocol: Protocol,
    over: bool,
) -> None:
    """Write what the test of one arm at one look finds into `found`."""
    made, num_pairs = arm.num_pairs, arm.num_pairs[look]
    critical = np.zeros(found.shape[1] + 1)
    for divisor in np.unique(num_open).tolist():
        level = protocol.levels(made, protocol.alpha / divisor, over=over)[look]
        critical[divisor] = student_quantile(level / 2, num_pairs - 1)
    still = found[:, a] == Found.NOTHING
    shared[still, a] = num_open[still]
    centre, error = arm.centre[:, look], arm.error[:, look]
    floor = noise_floor(scales.pair_sd, scales.num_pairs, num_pairs, protocol.alpha)
    passed = still & (np.abs(centre) > critical[num_open] * error) & (np.abs(centre) > floor)
    doubtful = np.flatnonzero(passed & (np.abs(centre) <= BEYOND * scales.largest))
    ranks = rank_p_values(arm.differences[doubtful, :num_pairs])
    passed[doubtful[ranks > protocol.alpha / num_open[doubtful]]] = False
    found[passed, a] = np.sign(centre[passed]).astype(np.int64)


def _within_margin(arm: Looks, look: int, scale: Array, protocol: Protocol, over: bool) -> NDArray[np.bool_]:
    """Whether the interval lies within the margin; it is no shorter than the calibration's noise allows."""
    num_pairs = arm.num_pairs[look]
    level = protocol.levels(arm.num_pairs, 2 * protocol.alpha, over=over)[look]
    error = np.maximum(arm.error[:, look], scale / math.sqrt(num_pairs))
    reach = np.abs(arm.centre[:, look]) + student_quantile(level / 2, num_pairs - 1) * error
    return reach < math.log1p(protocol.margin)
