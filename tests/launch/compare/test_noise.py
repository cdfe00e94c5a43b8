import math
from dataclasses import replace

import numpy as np
import pytest

from stepladder.launch.compare.noise import NoiseModel, machine, paired_differences, segment_medians, steps

QUIET = NoiseModel(step_sd=0.0, slow_step_share=0.0, process_sd=0.0, drift_sd=0.0)


def test_steps_have_the_spread_and_the_correlation_that_they_should() -> None:
    drawn = steps(NoiseModel(step_sd=0.02, correlation=0.46, slow_step_share=0), np.random.default_rng(0), 4000, 50)
    assert drawn.std() == pytest.approx(0.02, rel=0.02)
    assert drawn[:, -1].std() == pytest.approx(0.02, rel=0.05)
    assert np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1] == pytest.approx(0.46, abs=0.01)


def test_slow_steps_are_as_many_and_as_slow_as_said() -> None:
    drawn = steps(replace(QUIET, slow_step_share=0.03, slow_step_mean=0.1), np.random.default_rng(0), 2000, 50)
    assert (drawn > 0).mean() == pytest.approx(0.03, abs=0.003)
    assert drawn[drawn > 0].mean() == pytest.approx(0.1, abs=0.01)


def test_drift_ends_with_its_deviation_and_a_trend_with_its_height() -> None:
    drawn = machine(replace(QUIET, drift_sd=0.01, trend=0.05), np.random.default_rng(0), 8000, 16)
    assert drawn[:, -1].std() == pytest.approx(0.01, rel=0.04)
    assert drawn[:, -1].mean() - drawn[:, 0].mean() == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("length", [1.0, 4.0])
def test_disturbances_strike_their_share_and_last_their_length(length: float) -> None:
    noise = replace(QUIET, disturbed_share=0.1, disturbed_length=length)
    drawn = machine(noise, np.random.default_rng(0), 4000, 40) > 0
    assert drawn.mean() == pytest.approx(0.1, abs=0.006)
    after = drawn[:, 1:][drawn[:, :-1]].mean()  # disturbed again: the same one, or another at once
    assert after == pytest.approx(1 - 1 / length if length > 1 else 0.0, abs=0.02)


def test_a_pair_scatters_by_twice_the_variance_of_a_process() -> None:
    assert replace(QUIET, process_sd=0.007).pair_sd == pytest.approx(math.sqrt(2) * 0.007, rel=0.03)


def test_pairs_are_balanced_so_that_the_second_place_costs_no_arm() -> None:
    generator = np.random.default_rng(0)
    noise = replace(QUIET, second_slower=0.01)
    found = paired_differences(segment_medians(noise, generator, num_experiments=50, num_segments=12), generator)
    assert np.abs(found) == pytest.approx(0.01)
    assert found.reshape(50, 3, 2).sum(axis=-1) == pytest.approx(0.0)
    assert 0 < (found[:, 0] > 0).mean() < 1
