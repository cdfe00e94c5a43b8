import itertools
import math
import statistics

import numpy as np
import pytest

from stepladder.launch.compare.estimate import (
    SPREAD_LEVEL,
    bootstrap_interval,
    centre_and_error,
    estimate,
    is_steady,
    p_value,
    summarise,
)
from stepladder.launch.compare.quantiles import student_quantile


@pytest.mark.parametrize("num_pairs", [2, 3, 4, 7, 8, 13])
def test_the_centre_is_the_median_of_the_averages_of_every_two_pairs(num_pairs: int) -> None:
    values = np.random.default_rng(num_pairs).standard_normal((5, num_pairs))
    centre, _ = centre_and_error(values)
    for row, found in zip(values.tolist(), centre, strict=True):
        averages = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(row, 2)]
        assert found == pytest.approx(statistics.median(averages))


@pytest.mark.parametrize("num_pairs", [3, 4, 6, 9])
def test_the_error_comes_from_the_averages_that_hold_zero_as_often_as_all_signs_say(num_pairs: int) -> None:
    """Brute force: of all ways to set the signs, as many leave zero below the chosen average as the tail says."""
    size = np.random.default_rng(0).exponential(size=num_pairs)
    signed = size * np.array(list(itertools.product((-1, 1), repeat=num_pairs)))
    i, j = np.triu_indices(num_pairs)
    averages = np.sort((signed[:, i] + signed[:, j]) / 2, axis=1)
    tails = (averages > 0).mean(axis=0)
    rank = max(int(np.sum(tails <= SPREAD_LEVEL / 2)) - 1, 0)
    spread = averages[:, -1 - rank] - averages[:, rank]
    _, error = centre_and_error(signed)
    assert error == pytest.approx(spread / (2 * student_quantile(float(tails[rank]), num_pairs - 1)))


def test_two_pairs_have_the_interval_of_students_t() -> None:
    found = estimate([0.01, 0.03])
    assert math.log(found.ratio) == pytest.approx(0.02)
    assert math.log(found.high) == pytest.approx(0.02 + 12.706 * 0.01, rel=1e-4)


def test_shifting_and_stretching_pairs_shifts_and_stretches_the_estimate() -> None:
    values = np.random.default_rng(1).standard_normal((3, 9))
    centre, error = centre_and_error(values)
    moved, stretched = centre_and_error(5 - 2 * values)
    assert moved == pytest.approx(5 - 2 * centre)
    assert stretched == pytest.approx(2 * error)


@pytest.mark.parametrize("num_pairs", [2, 3, 4, 5, 6, 8, 16])
def test_intervals_hold_the_truth_as_often_as_they_say_also_for_few_pairs(num_pairs: int) -> None:
    values = np.random.default_rng(num_pairs).standard_normal((8000, num_pairs))
    centre, error = centre_and_error(values)
    held = np.abs(centre) <= student_quantile(0.025, num_pairs - 1) * error
    assert held.mean() == pytest.approx(0.95, abs=0.012)


def test_one_disturbed_pair_hardly_moves_the_estimate_and_ruins_the_mean() -> None:
    values = np.random.default_rng(2).normal(0.0, 0.01, 12)
    struck = values.copy()
    struck[5] = 0.9
    assert abs(math.log(estimate(struck.tolist()).ratio) - math.log(estimate(values.tolist()).ratio)) < 0.005
    assert abs(struck.mean() - values.mean()) > 0.05


def test_the_p_value_is_where_the_interval_touches_one() -> None:
    values = [0.01, 0.02, 0.05, 0.03, 0.015]
    touching = estimate(values, level=estimate(values).p_value)
    assert touching.low == pytest.approx(1.0)


def test_resampling_pairs_gives_an_interval_from_eight_pairs_on_only() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.01, 40)
    assert estimate(values[:7].tolist()).bootstrap is None
    found = estimate(values.tolist())
    assert found.bootstrap is not None
    assert math.log(found.bootstrap[0]) == pytest.approx(math.log(found.low), abs=0.0015)
    assert math.log(found.bootstrap[1]) == pytest.approx(math.log(found.high), abs=0.0015)
    assert bootstrap_interval(values) == found.bootstrap


def test_equal_times_have_no_error_and_are_no_difference() -> None:
    found = estimate([0.0] * 4)
    assert (found.ratio, found.low, found.high, found.p_value) == (1, 1, 1, 1)
    assert p_value(0.1, 0.0, 4) == 0


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match=r"pairs = 1: an interval needs two"):
        estimate([0.1])


def test_warm_up_ends_when_the_steps_have_settled() -> None:
    times_s = [1 + 2 * 0.7**step for step in range(60)]
    found = summarise(times_s, num_steps=20)
    assert found is not None
    assert found.steady
    first = next(n for n in range(10, 60) if abs(math.log(times_s[n - 3] / times_s[n - 8])) <= 0.01 or n == 59)
    assert found.num_warmup_steps <= first
    assert found.median_s == pytest.approx(statistics.median(times_s[found.num_warmup_steps :][:20]))
    assert found.median_s < 1.01


def test_warm_up_of_even_steps_is_the_least_one_and_noise_does_not_prolong_it_for_ever() -> None:
    even = summarise([0.5] * 30, num_steps=20)
    assert even is not None
    assert (even.num_warmup_steps, even.median_s, even.p95_s, even.steady) == (10, 0.5, 0.5, True)
    generator = np.random.default_rng(4)
    lengths = [summarise(np.exp(generator.normal(0, 0.05, 80)).tolist(), num_steps=20) for _ in range(200)]
    assert statistics.mean(each.num_warmup_steps for each in lengths if each) < 13


def test_steps_that_never_settle_are_measured_at_last_and_said_to_be_unsteady() -> None:
    found = summarise([1.1**step for step in range(60)], num_steps=20)
    assert found is not None
    assert (found.num_warmup_steps, found.steady) == (40, False)


def test_a_segment_without_enough_steps_is_not_one_yet() -> None:
    assert summarise([1.0] * 29, num_steps=20) is None
    assert not is_steady([1.0] * 9)


def test_slow_steps_show_in_the_p95_and_not_in_the_median() -> None:
    found = summarise([1.0] * 10 + ([1.0] * 9 + [2.0]) * 2, num_steps=20)
    assert found is not None
    assert (found.median_s, found.p95_s) == (1.0, 2.0)
