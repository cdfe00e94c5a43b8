import math
from dataclasses import replace

import numpy as np
import pytest

from stepladder.launch.compare.calibration import Calibration
from stepladder.launch.compare.power import POWER, minimum_detectable_effect, pairs_needed, prospect
from stepladder.launch.compare.sequential import Found, Protocol, Scales, decide, measure

TYPICAL = Calibration(pair_sd=0.011, num_pairs=8, source="test")
KNOWN = Calibration(pair_sd=0.011, num_pairs=64, source="test")


def test_one_look_with_a_known_deviation_has_the_power_of_the_textbook() -> None:
    """2.8 deviations of the mean for four in five, 3.0 for 85 percent (normal); a little more for the median and t."""
    protocol = Protocol(max_pairs=16, look_every=16, margin=1e-6)
    assert protocol.looks == (4, 16)
    effect = math.log1p(minimum_detectable_effect(KNOWN, protocol, power=0.8))
    assert 2.8 < effect / (KNOWN.pair_sd / 4) < 3.25


def test_what_a_calibration_promises_is_found_in_drawn_experiments() -> None:
    """Without a margin the effect is told in proportion to the deviation, so that one figure does for all of them."""
    protocol, num_experiments = Protocol(margin=1e-6), 4000
    multiple = math.log1p(minimum_detectable_effect(TYPICAL, protocol)) / TYPICAL.pair_sd
    drawn = np.random.default_rng(1).normal(0, 0.02, (num_experiments, 24))
    scales = Scales.of(drawn[:, :8])
    looks = measure(drawn[:, 8:], protocol.looks).shifted(multiple * scales.pair_sd)
    found = decide([looks], protocol, scales)
    assert (found.found == Found.SLOWER).mean() == pytest.approx(POWER, abs=0.025)


def test_less_noise_more_pairs_and_fewer_arms_find_smaller_effects() -> None:
    usual = minimum_detectable_effect(TYPICAL, Protocol())
    assert minimum_detectable_effect(replace(TYPICAL, pair_sd=0.005), Protocol()) < usual
    assert minimum_detectable_effect(KNOWN, Protocol()) < usual
    assert minimum_detectable_effect(TYPICAL, Protocol(max_pairs=8)) > usual
    assert minimum_detectable_effect(TYPICAL, Protocol(), num_arms=4) > usual


def test_speed_ups_are_found_as_often_as_slow_downs_and_larger_ones_sooner() -> None:
    slower, faster = (prospect(math.expm1(each), TYPICAL, Protocol()) for each in (0.02, -0.02))
    assert slower.found == pytest.approx(faster.found, abs=0.03)
    assert prospect(0.1, TYPICAL, Protocol()).mean_pairs < slower.mean_pairs
    assert prospect(0.0, replace(TYPICAL, pair_sd=0.003), Protocol()).same > 0.9


def test_the_pairs_needed_are_the_fewest_that_suffice() -> None:
    needed = pairs_needed(0.02, TYPICAL, Protocol())
    assert needed is not None
    assert minimum_detectable_effect(TYPICAL, Protocol(max_pairs=needed)) <= 0.0202
    assert needed == 4 or minimum_detectable_effect(TYPICAL, Protocol(max_pairs=needed - 2)) > 0.0198


def test_an_effect_far_below_the_noise_cannot_be_bought_with_pairs() -> None:
    assert pairs_needed(0.001, replace(TYPICAL, pair_sd=0.05), Protocol()) is None
    assert minimum_detectable_effect(replace(TYPICAL, pair_sd=3.0), Protocol()) == math.inf
