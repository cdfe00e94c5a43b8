import itertools

import numpy as np
import pytest

from stepladder.launch.compare.signed_ranks import lower_tails, rank_p_values


@pytest.mark.parametrize("num_pairs", range(1, 10))
def test_the_tails_are_those_of_all_patterns_of_signs(num_pairs: int) -> None:
    patterns = itertools.product((0, 1), repeat=num_pairs)
    sums = np.array([sum(rank * sign for rank, sign in enumerate(each, 1)) for each in patterns])
    expected = [(sums <= limit).mean() for limit in range(num_pairs * (num_pairs + 1) // 2 + 1)]
    assert lower_tails(num_pairs) == pytest.approx(expected)


def test_one_sign_has_the_smallest_p_and_even_ranks_the_largest() -> None:
    values = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [-6.0, 5.0, -4.0, 3.0, -2.0, 1.0], [0.0] * 6])
    assert rank_p_values(values).tolist() == pytest.approx([2 / 64, 2 * lower_tails(6)[9], 1.0])
    assert np.array_equal(rank_p_values(-values), rank_p_values(values))


def test_equal_pairs_of_any_shape_undercut_a_level_no_more_often_than_it_says() -> None:
    generator = np.random.default_rng(0)
    for drawn in (generator.normal(0, 1, (4000, 12)), generator.choice([-1.0, 1.0], (4000, 12)) * 0.26):
        scattered = drawn + generator.normal(0, 1e-3, drawn.shape)
        assert (rank_p_values(scattered) <= 0.05).mean() < 0.06
