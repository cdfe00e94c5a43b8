"""The noise floor of a machine and a recipe: the recipe against itself, in the design of a comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .estimate import Estimate, estimate
from .noise import NoiseModel
from .sequential import MIN_PAIRS, Scales, noise_floor

CALIBRATION_PAIRS = 8
_SUSPECT = 0.01


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What pairs of equal arms differ by."""

    pair_sd: float
    """Deviation of the logarithmic difference of one pair, without what disturbs few of them."""
    num_pairs: int
    source: str
    """Where it was measured, or that it was assumed."""
    largest: float | None = None
    """The largest logarithmic difference of a pair; None if that is not known."""
    estimate: Estimate | None = None
    """The ratio of the equal arms, which should be 1; None if assumed."""

    def floor(self, num_pairs: int, alpha: float = 0.05) -> float:
        """Relative difference that equal arms exceed over so many pairs with probability alpha."""
        return math.expm1(float(noise_floor(np.asarray(self.pair_sd), self.num_pairs, num_pairs, alpha)))

    @property
    def scales(self) -> Scales:
        """As the looks of one experiment take it; unknown pairs reach two deviations, as eight normal ones do."""
        largest = 2 * self.pair_sd if self.largest is None else self.largest
        return Scales(pair_sd=np.array([self.pair_sd]), largest=np.array([largest]), num_pairs=self.num_pairs)

    @property
    def suspect(self) -> str | None:
        """Why this calibration is not to be trusted, if it is not."""
        if self.estimate is None or self.estimate.p_value >= _SUSPECT:
            return None
        return (
            f"calibration = {self.estimate.ratio:.4f}: equal arms differ (p = {self.estimate.p_value:.4f}), so that "
            "the machine favours one of them; find out what else runs on it and calibrate again"
        )


def calibrate(differences: Sequence[float], *, source: str) -> Calibration:
    """The calibration from pairs of equal arms. Raises: ValueError if they are too few."""
    if len(differences) < MIN_PAIRS:
        raise ValueError(
            f"calibration pairs = {len(differences)}: too few for a noise floor; "
            f"measure {MIN_PAIRS} at least, {CALIBRATION_PAIRS} by default"
        )
    scales = Scales.of(np.asarray(differences, dtype=np.float64)[None, :])
    return Calibration(
        pair_sd=float(scales.pair_sd[0]),
        num_pairs=scales.num_pairs,
        source=source,
        largest=float(scales.largest[0]),
        estimate=estimate(differences),
    )


def assumed(noise: NoiseModel | None = None) -> Calibration:
    """A stand-in until one is measured, for plans; verdicts should rest on a measured one."""
    pair_sd = (noise or NoiseModel()).pair_sd
    return Calibration(pair_sd=pair_sd, num_pairs=CALIBRATION_PAIRS, source="assumed: typical noise")
