import math

import numpy as np
import pytest

from stepladder.launch.compare.spending import boundaries, crossing_probabilities, nominal_levels, spent

LOOKS = (4, 6, 8, 12, 16)


def test_one_look_is_the_usual_test() -> None:
    assert boundaries((16,), 0.05)[0] == pytest.approx(1.959964, abs=1e-5)
    assert nominal_levels((16,), 0.05)[0] == pytest.approx(0.05)


def test_the_recursion_reproduces_published_boundaries_and_the_cost_of_peeking() -> None:
    """O'Brien and Fleming at four looks, Pocock at five, and 1.96 at each of five (Jennison and Turnbull 2000)."""
    assert sum(crossing_probabilities((1, 2, 3, 4), (4.049, 2.863, 2.337, 2.024))) == pytest.approx(0.05, abs=1e-4)
    assert sum(crossing_probabilities(range(1, 6), (2.413,) * 5)) == pytest.approx(0.05, abs=1e-4)
    assert sum(crossing_probabilities(range(1, 6), (1.96,) * 5)) == pytest.approx(0.142, abs=5e-4)


def test_drawn_experiments_cross_each_boundary_as_often_as_is_spent() -> None:
    num_experiments = 200_000
    scores = np.cumsum(np.random.default_rng(0).standard_normal((num_experiments, 16), dtype=np.float32), axis=1)
    inside, gone = np.ones(num_experiments, dtype=bool), 0.0
    for look, limit in zip(LOOKS, boundaries(LOOKS, 0.05), strict=True):
        crossed = inside & (np.abs(scores[:, look - 1]) > limit * math.sqrt(look))
        expected = spent(look / 16, 0.05) - gone
        assert crossed.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / num_experiments))
        inside &= ~crossed
        gone += expected


def test_the_limits_fall_and_the_last_look_costs_little() -> None:
    found = boundaries(LOOKS, 0.05)
    assert list(found) == sorted(found, reverse=True)
    assert 1.96 < found[-1] < 2.15
    assert all(stricter > limit for stricter, limit in zip(boundaries(LOOKS, 0.025), found, strict=True))


def test_a_budget_that_ends_early_changes_no_look_before_and_spends_the_rest_at_the_last() -> None:
    planned, ended = boundaries(LOOKS, 0.05), boundaries((4, 6, 7), 0.05, 16)
    assert ended[:2] == pytest.approx(planned[:2])
    assert sum(crossing_probabilities((4, 6, 7), ended)) == pytest.approx(0.05)


@pytest.mark.parametrize(("looks", "alpha"), [((), 0.05), ((4, 4), 0.05), ((0, 4), 0.05), ((4,), 0.0), ((4,), 1.0)])
def test_impossible_looks_are_refused(looks: tuple[int, ...], alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^(looks|alpha) = .*: must .*; give"):
        boundaries(looks, alpha)
