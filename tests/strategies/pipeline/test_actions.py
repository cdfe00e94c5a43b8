"""Action tables as text: what is read, and what is refused with a sentence."""

from pathlib import Path

import pytest

from stepladder.strategies.pipeline.actions import Action, TableError, parse_cell, read_table, table_of, table_problems
from stepladder.strategies.pipeline.schedule import order_table

GOOD = ["0F0,0F1,,0B0,0B1", "1F0,1I0,1F1,1W0,1B1"]


def written(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def problems(tmp_path: Path, lines: list[str], num_ranks: int = 2, num_microbatches: int = 2) -> list[str]:
    table = read_table(written(tmp_path, lines))
    return list(table_problems(table, num_ranks=num_ranks, num_microbatches=num_microbatches))


def test_cells_are_read_as_torch_writes_them() -> None:
    from torch.distributed.pipelining.schedules import _Action

    for text in ("2F0", "11B31", "0I7", "3W2", "(1F3;0B2)OVERLAP_F_B"):
        ours, torchs = parse_cell(text), _Action.from_str(text)
        assert torchs is not None
        parts = torchs.sub_actions or (torchs,)
        assert [(a.stage, a.kind, a.microbatch) for a in ours] == [
            (a.stage_index, a.computation_type.value, a.microbatch_index) for a in parts
        ]
    assert parse_cell("  ") == []


@pytest.mark.parametrize("cell", ["F0", "0X1", "0F", "0SEND_F1", "-1F0", "0F0B0", "(0F0;0F1", "(0F0)"])
def test_what_is_no_action_is_refused_with_its_place(cell: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"line 2, cell 1: .* is no action; write stage"):
        read_table(written(tmp_path, ["0F0", cell]))


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "binary")


def test_a_good_table_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD) == []
    assert read_table(tmp_path / "table.csv")[1][1] == Action(1, "I", 0)


@pytest.mark.parametrize(
    "schedule", ["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv", "dualpipev"]
)
def test_the_tables_of_the_schedules_have_no_problems(schedule: str) -> None:
    stages = 1 if schedule in ("gpipe", "1f1b") else 2
    table = order_table(schedule, None, 4, stages, 8)
    assert list(table_problems(table, num_ranks=4, num_microbatches=8)) == []


BAD = {
    "has 1 lines": ["0F0,0F1,0B0,0B1"],
    "0F1 is missing": ["0F0,0B0", GOOD[1]],
    "stage 0 needs 0B1, or 0I1 and 0W1": ["0F0,0F1,0B0,0I1", GOOD[1]],
    "stage 1 is on ranks": ["0F0,0F1,0B0,0B1,1F0", GOOD[1]],
    "0B0 comes before 0F0": ["0B0,0F0,0F1,0B1", GOOD[1]],
    "1W0 comes before 1I0": [GOOD[0], "1F0,1W0,1I0,1F1,1B1"],
    "the last stage must take the microbatches in order": [GOOD[0], "1F1,1F0,1B0,1B1"],
    "0F0 occurs 2 times": ["0F0,0F0,0F1,0B0,0B1", GOOD[1]],
    "0F2 is beyond the 2 microbatches": ["0F0,0F1,0F2,0B0,0B1", GOOD[1]],
    "has no action of stage 0, though of stage 20000000000": ["20000000000F0,20000000000B0", "1F0,1B0"],
    "has no action of stage 1, though of stage 2": ["0F0,0F1,0B0,0B1", "2F0,2F1,2B0,2B1"],
    "line 2 has no action": ["0F0,0F1,0B0,0B1", ""],
    "numbers of stages differ: line 1 has 2 and line 2 has 1; give every rank as many": [
        "0F0,0F1,2F0,2F1,2B0,2B1,0B0,0B1",
        "1F0,1F1,1B0,1B1",
    ],
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_table_says_what_is_wrong(said: str, tmp_path: Path) -> None:
    assert any(problem.startswith(said) for problem in problems(tmp_path, BAD[said])), problems(tmp_path, BAD[said])


def test_a_table_that_torch_made_loses_its_pauses_and_reductions() -> None:
    assert table_of({1: ["1F0", None, "1B0", "1REDUCE_GRAD"], 0: ["0F0"]}) == [
        [Action(0, "F", 0)],
        [Action(1, "F", 0), Action(1, "B", 0)],
    ]
