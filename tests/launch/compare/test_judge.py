import dataclasses
import json
import math

import numpy as np
import pytest

from stepladder.launch.compare.calibration import Calibration, assumed, calibrate
from stepladder.launch.compare.estimate import centre_and_error
from stepladder.launch.compare.judge import Kind, judge
from stepladder.launch.compare.sequential import Protocol

QUIET = Calibration(pair_sd=0.004, num_pairs=8, source="test")
PAIRS = np.random.default_rng(0).normal(math.log(0.9), 0.004, 16)


def test_an_arm_is_measured_on_until_a_look_decides_and_keeps_that_verdict() -> None:
    verdicts = [judge({"compile": PAIRS[:n].tolist()}, Protocol(), QUIET)["compile"] for n in range(17)]
    kinds = [each.kind for each in verdicts]
    first = kinds.index(Kind.FASTER)
    assert first in Protocol().looks
    assert kinds[:first] == [Kind.CONTINUE] * first
    assert len(set(verdicts[first:])) == 1
    assert verdicts[-1].num_pairs == first
    assert verdicts[-1].look == Protocol().looks.index(first) + 1


def test_a_verdict_agrees_with_its_own_figures() -> None:
    for seed in range(40):
        generator = np.random.default_rng(seed)
        values = generator.normal(generator.normal(0, 0.01), 0.008, 16).tolist()
        found = judge({"arm": values}, Protocol(), QUIET)["arm"]
        assert found.ratio is not None
        assert found.low is not None
        assert found.high is not None
        assert found.level is not None
        assert found.floor is not None
        assert found.p_value is not None
        assert found.low < found.ratio < found.high
        beyond = abs(math.log(found.ratio)) > math.log1p(found.floor)
        differs = found.kind in (Kind.FASTER, Kind.SLOWER)
        assert differs == (found.p_value < found.level and beyond)
        assert not differs or not found.low <= 1 <= found.high
        assert not differs or (found.kind is Kind.FASTER) == (found.ratio < 1)
        assert found.kind is not Kind.SAME or abs(math.log(found.ratio)) < 0.01


def test_pairs_that_are_used_up_without_an_answer_are_undecided_and_say_why() -> None:
    values = [0.004, 0.008] * 8
    found = judge({"arm": values}, Protocol(), Calibration(pair_sd=0.02, num_pairs=8, source="test"))["arm"]
    assert found.kind is Kind.UNDECIDED
    assert "within the noise floor of 1.19 %" in found.sentence
    assert judge({"arm": values[:5]}, Protocol(), QUIET, over=True)["arm"].kind is not Kind.CONTINUE


def test_pairs_in_heaps_are_undecided_where_their_signs_could_be_chance() -> None:
    equal = calibrate([0.0, 0.05, -0.05, 0.0002, -0.0001, 0.05, 0.0, -0.0499], source="drawn")
    values = [0.05] * 6 + [0.0498, 0.0502] * 3 + [-0.0499, -0.0502, -0.05, 0.0002]
    found = judge({"arm": values}, Protocol(look_every=16), equal)["arm"]
    assert found.kind is Kind.UNDECIDED
    assert found.p_value is not None
    assert found.level is not None
    assert found.p_value < found.level
    assert "by the signed ranks of the pairs p = 0.0" in found.sentence
    assert judge({"arm": values}, Protocol(look_every=16), QUIET)["arm"].kind is Kind.SLOWER


def test_few_pairs_have_no_verdict_whatever_they_show() -> None:
    for num_pairs in range(4):
        for over, kind in ((False, Kind.CONTINUE), (True, Kind.UNDECIDED)):
            found = judge({"arm": [-1.0, -1.001, -1.002][:num_pairs]}, Protocol(), QUIET, over=over)["arm"]
            assert (found.kind, found.level, found.look) == (kind, None, 0)
            assert (found.ratio is None) == (num_pairs < 2)
            assert found.sentence


def test_four_pairs_are_enough_for_a_large_gain() -> None:
    values = [math.log(1 / 2.4) + each for each in (0.01, -0.01, 0.004, 0.0)]
    found = judge({"bf16": values}, Protocol(), assumed())["bf16"]
    assert found.kind is Kind.FASTER
    assert found.sentence.startswith("faster: 2.39")
    assert "over 4 pairs" in found.sentence


def test_arms_of_one_experiment_have_verdicts_of_their_own_and_share_the_error() -> None:
    found = judge({"compile": PAIRS.tolist(), "noop": [0.0001, -0.0001] * 8, "failed": []}, Protocol(), QUIET)
    assert [each.kind for each in found.values()] == [Kind.FASTER, Kind.SAME, Kind.CONTINUE]
    alone = judge({"compile": PAIRS.tolist()}, Protocol(), QUIET)["compile"]
    assert found["compile"].level is not None
    assert alone.level is not None
    assert found["compile"].level < alone.level


def test_verdicts_and_calibrations_go_through_json() -> None:
    found = judge({"compile": PAIRS.tolist()}, Protocol(), QUIET)["compile"]
    back = json.loads(json.dumps(dataclasses.asdict(found)))
    assert back["kind"] == "faster"
    assert back["num_pairs"] == found.num_pairs
    calibration = calibrate([0.01, -0.01, 0.005, -0.004], source="this machine")
    assert json.loads(json.dumps(dataclasses.asdict(calibration)))["pair_sd"] == calibration.pair_sd


def test_equal_arms_exceed_the_floor_of_their_calibration_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(1).normal(0, 0.01, (6000, 20))
    _, error = centre_and_error(drawn[:, :8])
    centre, _ = centre_and_error(drawn[:, 8:])
    floors = [
        Calibration(pair_sd=each, num_pairs=8, source="drawn").floor(12) for each in (error * math.sqrt(8)).tolist()
    ]
    assert (np.abs(centre) > np.log1p(floors)).mean() == pytest.approx(0.05, abs=0.011)


def test_a_calibration_that_finds_a_difference_is_suspect() -> None:
    biased = calibrate([0.02, 0.021, 0.019, 0.02, 0.022, 0.018, 0.02, 0.021], source="drawn")
    assert biased.suspect is not None
    assert "calibration = 1.02" in biased.suspect
    assert calibrate([0.01, -0.01, 0.005, -0.004], source="drawn").suspect is None
    assert assumed().suspect is None


def test_a_calibration_of_too_few_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"calibration pairs = 3: too few for a noise floor; measure 4"):
        calibrate([0.1, 0.2, 0.3], source="drawn")
