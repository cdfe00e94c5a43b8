import itertools
import math
from collections import Counter

import pytest

from stepladder.launch.compare.design import Slot, log_differences, next_slot, round_order, schedule

ARMS = ("base", "compile", "fused")


def test_two_arms_run_as_abba_or_baab_and_both_occur() -> None:
    orders = ["".join(slot.arm for slot in schedule("AB", seed=seed, num_rounds=2)) for seed in range(200)]
    found = Counter(orders)
    assert set(found) == {"ABBA", "BAAB"}
    assert 60 < found["ABBA"] < 140


def test_in_each_block_every_arm_comes_before_each_other_once_and_after_it_once() -> None:
    for block in range(20):
        rounds = [round_order(ARMS, 3, 2 * block + half) for half in range(2)]
        for a, b in itertools.combinations(ARMS, 2):
            assert sorted(order.index(a) < order.index(b) for order in rounds) == [False, True]


def test_what_changes_in_a_line_cancels_over_a_block() -> None:
    slots = list(schedule(ARMS, seed=5, num_rounds=2))
    medians_s = {slot: math.exp(0.01 * position) for position, slot in enumerate(slots)}
    for candidate in ARMS[1:]:
        assert sum(log_differences(medians_s, baseline="base", candidate=candidate)) == pytest.approx(0)


def test_an_experiment_that_is_cut_at_any_place_goes_on_with_the_same_segments() -> None:
    whole = list(schedule(ARMS, seed=7, num_rounds=5))
    assert len(whole) == 15
    for done in range(len(whole)):
        assert next_slot(ARMS, seed=7, num_rounds=5, done=whole[:done]) == whole[done]
    assert next_slot(ARMS, seed=7, num_rounds=5, done=whole) is None


def test_a_longer_budget_keeps_what_was_planned_before() -> None:
    short, long = (list(schedule(ARMS, seed=1, num_rounds=n)) for n in (4, 9))
    assert long[: len(short)] == short


def test_a_decided_arm_gives_up_its_places_and_moves_no_other() -> None:
    done: list[Slot] = []
    while (slot := next_slot(ARMS, seed=2, num_rounds=6, done=done, decided={"fused"})) is not None:
        done.append(slot)
    assert done == [slot for slot in schedule(ARMS, seed=2, num_rounds=6) if slot.arm != "fused"]


def test_a_pair_counts_when_both_of_its_segments_have_finished() -> None:
    medians_s = {
        Slot(round=r, arm=a): s for r, a, s in [(0, "base", 2.0), (0, "b", 1.0), (1, "b", 1.0), (2, "base", 1.0)]
    }
    assert log_differences(medians_s, baseline="base", candidate="b") == [math.log(0.5)]
    assert log_differences(medians_s, baseline="base", candidate="c") == []


@pytest.mark.parametrize("arms", [("base",), ("base", "base")])
def test_a_comparison_needs_two_different_names(arms: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"arms = .*: a comparison needs two arms"):
        list(schedule(arms, seed=0, num_rounds=1))
