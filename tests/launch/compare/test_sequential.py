import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from stepladder.launch.compare.estimate import Array, centre_and_error, p_value
from stepladder.launch.compare.noise import NOISE_SETTINGS, TWO_SPEEDS, paired_differences, segment_medians
from stepladder.launch.compare.quantiles import student_quantile
from stepladder.launch.compare.sequential import Found, Looks, Outcomes, Protocol, Scales, decide, measure, noise_floor
from stepladder.launch.compare.spending import nominal_levels

ONE_LOOK = Protocol(max_pairs=4)


def scales(num_experiments: int, pair_sd: float, largest: float = 0.0) -> Scales:
    """Calibrations whose single pairs hardly differed, so that signed ranks are not asked, unless they are given."""
    return Scales(pair_sd=np.full(num_experiments, pair_sd), largest=np.full(num_experiments, largest), num_pairs=8)


def decided(arms: list[Array], protocol: Protocol, pair_sd: float = 0.0, *, over: bool = False) -> Outcomes:
    looks = [measure(each, protocol.looks_of(each.shape[1], over=over)) for each in arms]
    return decide(looks, protocol, scales(len(arms[0]), pair_sd), over=over)


def test_looks_are_every_second_pair_and_end_with_the_last() -> None:
    assert Protocol().looks == (4, 6, 8, 10, 12, 14, 16)
    assert Protocol(max_pairs=7).looks == (4, 6, 7)
    assert Protocol(max_pairs=4).looks == (4,)
    assert Protocol().looks_of(9, over=False) == (4, 6, 8)
    assert Protocol().looks_of(9, over=True) == (4, 6, 8, 9)
    assert Protocol().looks_of(3, over=True) == ()


def test_one_arm_is_what_a_loop_over_its_looks_finds() -> None:
    """The plainest form of the rules, for one experiment at a time, beside the one for many."""
    protocol, pair_sd = Protocol(), 0.009
    differences = np.random.default_rng(0).normal(0.008, 0.01, (300, 16))
    found = decided([differences], protocol, pair_sd)
    both, same = nominal_levels(protocol.looks, 0.05), nominal_levels(protocol.looks, 0.10)
    for experiment, values in enumerate(differences):
        expected, stop = Found.NOTHING, len(protocol.looks) - 1
        for look, n in enumerate(protocol.looks):
            centre, error = (float(each[0]) for each in centre_and_error(values[None, :n]))
            floor = student_quantile(0.025, 7) * pair_sd / math.sqrt(n)
            wider = max(error, pair_sd / math.sqrt(n))
            if p_value(centre, error, n) < both[look] and abs(centre) > floor:
                expected = Found.SLOWER if centre > 0 else Found.FASTER
            elif abs(centre) + student_quantile(same[look] / 2, n - 1) * wider < math.log(1.01):
                expected = Found.SAME
            if expected:
                stop = look
                break
        assert (found.found[experiment, 0], found.look[experiment, 0]) == (expected, stop)
    assert {Found.SLOWER, Found.SAME, Found.NOTHING} <= set(found.found[:, 0].tolist())


def test_at_one_look_several_arms_are_judged_by_the_procedure_of_holm() -> None:
    generator = np.random.default_rng(1)
    arms = [generator.normal(effect, 0.01, (400, 4)) for effect in (0.0, 0.02, 0.04, 0.08)]
    found = decided(arms, replace(ONE_LOOK, margin=1e-6)).found
    partly = 0
    for experiment in range(400):
        estimates = [centre_and_error(arm[experiment][None, :]) for arm in arms]
        p_values = [p_value(float(centre[0]), float(error[0]), 4) for centre, error in estimates]
        expected = [False] * 4
        for rank, arm in enumerate(np.argsort(p_values).tolist()):
            if p_values[arm] >= 0.05 / (4 - rank):
                break
            expected[arm] = True
        assert (found[experiment] != Found.NOTHING).tolist() == expected
        partly += 0 < sum(expected) < 4
    assert partly > 100


def test_an_arm_found_at_an_early_look_leaves_its_error_to_the_others_at_later_ones() -> None:
    clear = np.full((1, 16), 0.5) + np.linspace(-1, 1, 16) * 1e-3
    values = np.random.default_rng(5).normal(0.0, 0.01, 16)
    centre, error = (float(each[0]) for each in centre_and_error(values[None, :]))
    protocol = Protocol(margin=1e-6, look_every=16)
    levels = [nominal_levels(protocol.looks, alpha)[-1] for alpha in (0.05, 0.025)]
    between = error * sum(student_quantile(level / 2, 15) for level in levels) / 2
    close = (values + between - centre)[None, :]  # found at the whole level and not at half of it
    assert decided([close], protocol).found.tolist() == [[Found.SLOWER]]
    assert decided([close, clear], protocol).found.tolist() == [[Found.SLOWER, Found.SLOWER]]
    assert decided([close, values[None, :]], protocol).found[0, 0] == Found.NOTHING
    assert decided([close, clear], protocol).num_open.tolist() == [[1, 2]]


def test_nothing_below_the_noise_floor_is_found_however_certain_the_pairs_are() -> None:
    certain = np.full((1, 16), 0.004) + np.linspace(-1, 1, 16) * 1e-6
    assert decided([certain], replace(Protocol(), margin=0.001)).found[0, 0] == Found.SLOWER
    assert noise_floor(np.array(0.01), 8, 16) > 0.004
    assert decided([certain], replace(Protocol(), margin=0.001), pair_sd=0.01).found[0, 0] == Found.NOTHING


def test_equal_arms_are_the_same_only_if_the_calibration_is_quiet_enough_for_the_margin() -> None:
    equal = np.zeros((1, 16))
    assert decided([equal], Protocol(), pair_sd=0.001).found[0, 0] == Found.SAME
    assert decided([equal], Protocol(), pair_sd=0.05).found[0, 0] == Found.NOTHING


def ranks_by_brute_force(values: Array) -> float:
    """Share of all patterns of signs that are as uneven as this one."""
    ranks = np.argsort(np.argsort(abs(values))) + 1
    signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    return float((abs(signs @ ranks) >= abs(np.sign(values) @ ranks)).mean())


@pytest.mark.parametrize("num_pairs", [4, 6, 10])
def test_where_equal_pairs_differed_as_much_the_signed_ranks_have_to_tell_a_difference_too(num_pairs: int) -> None:
    drawn = np.random.default_rng(7).normal(0.03, 0.02, (60, num_pairs))
    drawn[:, -1] = -0.001
    protocol = Protocol(margin=1e-6, max_pairs=num_pairs, look_every=num_pairs, alpha=0.2)
    trusting = decide([measure(drawn, (num_pairs,))], protocol, scales(60, 0.0)).found[:, 0]
    doubting = decide([measure(drawn, (num_pairs,))], protocol, scales(60, 0.0, largest=1.0)).found[:, 0]
    by_ranks = np.array([ranks_by_brute_force(values) <= 0.2 for values in drawn])
    assert (trusting != Found.NOTHING).any()
    assert np.array_equal(doubting != Found.NOTHING, (trusting != Found.NOTHING) & by_ranks)
    beyond = scales(60, 0.0, largest=0.001)
    assert np.array_equal(decide([measure(drawn, (num_pairs,))], protocol, beyond).found[:, 0], trusting)


@pytest.mark.parametrize("setting", TWO_SPEEDS)
def test_equal_arms_whose_processes_have_two_speeds_differ_in_fewer_than_one_in_twenty(setting: str) -> None:
    """Their pairs fall into heaps, between which the averages of pairs scatter less than they should."""
    generator = np.random.default_rng(8)
    drawn = segment_medians(TWO_SPEEDS[setting], generator, num_experiments=2000, num_segments=48)
    differences = paired_differences(drawn, generator)
    looks, told = measure(differences[:, 8:], Protocol().looks), Scales.of(differences[:, :8])
    found, without = (
        abs(decide([looks], Protocol(), each).found[:, 0]) == 1
        for each in (told, replace(told, largest=0 * told.largest))
    )
    assert 0 < found.mean() < 0.05
    assert without.mean() > found.mean()


def test_faster_and_slower_are_mirror_images() -> None:
    arms = np.random.default_rng(2).normal(0.02, 0.01, (50, 16))
    forth, back = decided([arms], Protocol()), decided([-arms], Protocol())
    assert (forth.found == Found.SLOWER).any()
    assert np.array_equal(np.where(abs(forth.found) == 1, -forth.found, forth.found), back.found)
    assert np.array_equal(forth.look, back.look)


def test_a_budget_that_ends_early_makes_the_last_pairs_a_look() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.012, (200, 7))
    going_on, ended = decided([values], Protocol()), decided([values], Protocol(), over=True)
    assert (going_on.found != 0).mean() < (ended.found != 0).mean()
    before = going_on.found != 0
    assert np.array_equal(going_on.found[before], ended.found[before])


@pytest.mark.parametrize("setting", ["typical", "noisy", "neighbours"])
def test_equal_arms_on_a_drifting_machine_differ_in_fewer_than_one_in_twenty(setting: str) -> None:
    generator, noise = np.random.default_rng(4), NOISE_SETTINGS[setting]
    drawn = segment_medians(noise, generator, num_experiments=1500, num_segments=48)
    differences = paired_differences(drawn, generator)
    told = Scales.of(differences[:, :8])
    looks = measure(differences[:, 8:], Protocol().looks)
    found = decide([looks], Protocol(), told)
    differing = (found.found == Found.FASTER) | (found.found == Found.SLOWER)
    assert 0 < differing.mean() < 0.05
    helped = decide([looks.shifted(-0.05)], Protocol(), told)
    assert (helped.found == Found.FASTER).mean() > 0.9


def test_no_pairs_and_no_arms_find_nothing() -> None:
    none = Looks(num_pairs=(), centre=np.zeros((1, 0)), error=np.zeros((1, 0)), differences=np.zeros((1, 0)))
    found = decide([none], Protocol(), scales(1, 0.0))
    assert (found.found.tolist(), found.look.tolist()) == ([[0]], [[-1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_pairs": 3}, "max_pairs = 3: too few for any verdict; allow 4"),
        ({"look_every": 0}, "look_every = 0: must be 1 or more"),
        ({"alpha": 0.5}, r"alpha = 0\.5: must lie between"),
        ({"margin": 0.0}, r"margin = 0\.0: must lie between"),
    ],
)
def test_an_impossible_protocol_is_refused_in_one_sentence(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Protocol(), **change)
