"""Balanced cuts against every cut there is."""

import random
from itertools import combinations

import pytest

from stepladder.strategies.facts import Cuts
from stepladder.strategies.pipeline.cuts import balanced_cuts, blocks_of_stages, stage_costs


def every_cut(num_blocks: int, num_stages: int) -> list[tuple[int, ...]]:
    return list(combinations(range(1, num_blocks), num_stages - 1))


def squares(cuts: Cuts, starts: tuple[int, ...]) -> float:
    return sum(cost**2 for cost in stage_costs(cuts, starts))


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cut_has_a_cheaper_most_expensive_stage_nor_among_those_a_more_even_rest(seed: int) -> None:
    source = random.Random(seed)
    num_blocks = source.randint(2, 9)
    cuts = Cuts(
        block_costs=tuple(float(source.randint(1, 9)) for _ in range(num_blocks)),
        before_cost=float(source.choice((0, 3))),
        after_cost=float(source.choice((0, 2, 25))),
    )
    for num_stages in range(1, num_blocks + 1):
        found = balanced_cuts(cuts, num_stages)
        others = every_cut(num_blocks, num_stages)
        assert found in others
        least = min(max(stage_costs(cuts, other)) for other in others)
        assert max(stage_costs(cuts, found)) == least
        equal = [other for other in others if max(stage_costs(cuts, other)) == least]
        assert squares(cuts, found) == min(squares(cuts, other) for other in equal)


def test_a_heavy_output_projection_takes_blocks_from_the_last_stage() -> None:
    cuts = Cuts(block_costs=(1.0,) * 8, after_cost=2.0)
    assert [len(blocks) for blocks in blocks_of_stages(balanced_cuts(cuts, 2), 8)] == [5, 3]
    assert stage_costs(cuts, balanced_cuts(cuts, 2)) == [5.0, 5.0]


def test_when_one_stage_decides_the_others_are_even_all_the_same() -> None:
    cuts = Cuts(block_costs=(1.0,) * 7, after_cost=100.0)
    assert [len(blocks) for blocks in blocks_of_stages(balanced_cuts(cuts, 3), 7)] == [3, 3, 1]


def test_eighty_blocks_in_sixteen_stages_take_no_time_to_speak_of() -> None:
    cuts = Cuts(block_costs=(1.0,) * 80)
    assert [len(blocks) for blocks in blocks_of_stages(balanced_cuts(cuts, 16), 80)] == [5] * 16
