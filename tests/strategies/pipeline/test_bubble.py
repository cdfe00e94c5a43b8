"""The bubble in closed form, simulated, and by hand."""

import itertools
from collections.abc import Sequence

import pytest

from stepladder.strategies.pipeline.actions import Action, Table, TableError, parse_cell
from stepladder.strategies.pipeline.bubble import formula, simulate
from stepladder.strategies.pipeline.schedule import order_table

GRID = [
    (schedule, ranks, stages, ranks * rounds)
    for (schedule, counts), ranks, rounds in itertools.product(
        {
            "gpipe": (1,),
            "1f1b": (1,),
            "interleaved_1f1b": (2, 3),
            "interleaved_zero_bubble": (1, 2, 3),
            "zbv": (2,),
            "dualpipev": (2,),
        }.items(),
        (2, 3, 4, 8),
        (1, 2, 3, 8),
    )
    for stages in counts
    if not (schedule in ("zbv", "dualpipev") and rounds == 1)
]


@pytest.mark.parametrize(("schedule", "ranks", "stages", "micro"), GRID)
def test_for_equal_stages_the_simulated_table_has_the_bubble_of_the_formula(
    schedule: str, ranks: int, stages: int, micro: int
) -> None:
    ones = [1.0] * ranks * stages
    found = simulate(order_table(schedule, None, ranks, stages, micro), ones, ones, ones)

    expected = formula(schedule, ranks, stages, micro)

    assert expected is not None
    assert found.bubble == pytest.approx(expected, abs=1e-12)
    assert found.busy == pytest.approx([3.0 * stages * micro] * ranks)


def test_one_forward_one_backward_by_hand() -> None:
    """Two ranks, two microbatches: forward 1, backward 2."""
    table: Table = [[*cells("0F0 0F1 0B0 0B1")], [*cells("1F0 1B0 1F1 1B1")]]
    found = simulate(table, [1, 1], [1, 1], [1, 1])
    assert found.length == 9  # F0 0-1; rank 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7; rank 0: B0 4-6, B1 7-9
    assert found.busy == (6, 6)
    assert found.bubble == pytest.approx(1 - 12 / 18)
    assert list(map(list, order_table("1f1b", None, 2, 1, 2))) == [list(row) for row in table]


def cells(text: str) -> Sequence[Action]:
    return [action for cell in text.split() for action in parse_cell(cell)]


def test_the_slowest_stage_sets_the_pace() -> None:
    """With many microbatches the others wait for it most of the time, and little else matters."""
    costs = [1.0, 1.0, 2.0, 1.0]
    found = simulate(order_table("1f1b", None, 4, 1, 400), costs, costs, costs)
    assert found.bubble == pytest.approx(1 - 5 / 8, abs=0.01)
    even = [1.25] * 4
    assert simulate(order_table("1f1b", None, 4, 1, 400), even, even, even).bubble < 0.01


def test_a_v_that_cannot_fill_up_has_no_formula_and_a_larger_bubble() -> None:
    ones = [1.0] * 8
    found = simulate(order_table("zbv", None, 4, 2, 4), ones, ones, ones)
    assert formula("zbv", 4, 2, 4) is None
    assert found.bubble > 3 / (3 * 2 * 4 + 3)
    assert formula("csv", 4, 2, 4) is None


def test_ranks_that_wait_for_each_other_are_found() -> None:
    table = [cells("0F0 0B0 0F1 0B1"), cells("1F1 1B1 1F0 1B0")]
    with pytest.raises(TableError, match=r"rank 0 would wait for ever before 0B0"):
        simulate(table, [1, 1], [1, 1], [1, 1])
