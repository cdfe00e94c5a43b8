import math
from statistics import NormalDist

import pytest

from stepladder.launch.compare.quantiles import normal_quantile, normal_tail, student_quantile, student_tail


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 4.0, 35.0, 1e4])
def test_students_tail_has_its_closed_forms_for_one_to_three_degrees(t: float) -> None:
    root = math.sqrt(3)
    assert student_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-9)
    assert student_tail(t, 2) == pytest.approx(1 / (2 + t * t) / (1 + t / math.sqrt(2 + t * t)), rel=1e-9)
    third = (math.atan2(root, t) - (t / root) / (1 + t * t / 3)) / math.pi
    assert student_tail(t, 3) == pytest.approx(third, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("degrees", [1, 3, 7, 15, 31])
@pytest.mark.parametrize("tail", [0.5, 0.1, 0.025, 2e-5, 1e-9])
def test_a_quantile_leaves_its_tail_beyond_it(degrees: int, tail: float) -> None:
    assert student_tail(student_quantile(tail, degrees), degrees) == pytest.approx(tail, rel=1e-9)
    assert student_tail(-student_quantile(tail, degrees), degrees) == pytest.approx(1 - tail, rel=1e-9)


def test_quantiles_are_those_of_the_printed_tables() -> None:
    printed = {(0.025, 3): 3.182, (0.025, 15): 2.131, (0.005, 7): 3.499, (0.0005, 4): 8.610}
    for (tail, degrees), value in printed.items():
        assert student_quantile(tail, degrees) == pytest.approx(value, abs=6e-4)


def test_many_degrees_are_normal() -> None:
    for z in (0.5, 1.96, 4.0):
        assert normal_tail(z) == pytest.approx(1 - NormalDist().cdf(z), rel=1e-9)
        assert student_tail(z, 1e7) == pytest.approx(normal_tail(z), rel=1e-4)
        assert normal_quantile(1 - normal_tail(z)) == pytest.approx(z)


def test_infinite_and_missing_statistics_have_tails_too() -> None:
    assert student_tail(math.inf, 3) == 0
    assert student_tail(-math.inf, 3) == 1
    assert math.isnan(student_tail(math.nan, 3))


def test_a_tail_beyond_the_middle_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tail = 0.7: must be"):
        student_quantile(0.7, 3)
