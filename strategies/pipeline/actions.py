"""Action tables: what each rank of a pipeline does, in order. The text is that of torch's pipeline CSV files.

A line for each rank, a cell for each action: stage, kind, microbatch, as `2F0`. Kinds: F forward, B backward, I the
gradients of the inputs only, W those of the weights. `(1F3;0B2)OVERLAP_F_B` is two actions that may overlap. An empty
cell is a pause.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
_PAIR = re.compile(r"\(([^()]*)\)OVERLAP_F_B")


class TableError(ValueError):
    """An action table that cannot be read; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work."""

    stage: int
    kind: str
    """F, B, I or W."""
    microbatch: int
    with_next: bool = field(default=False, compare=False)
    """First of a pair that may overlap: torch sends its result when the other one is done too."""

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Table: TypeAlias = Sequence[Sequence[Action]]
"""For each rank its actions in order; pauses are left out, for data arrive when they arrive."""


def parse_cell(cell: str) -> list[Action]:
    """The actions of a cell, none for an empty one. Raises: TableError."""
    cell = cell.strip()
    if pair := _PAIR.fullmatch(cell):
        actions = [action for part in pair[1].split(";") for action in parse_cell(part)]
        return [replace(action, with_next=True) for action in actions[:-1]] + actions[-1:]
    if not cell:
        return []
    if not (match := _ACTION.fullmatch(cell)):
        raise TableError(f"{cell!r} is no action; write stage, F, B, I or W, and microbatch, as 2F0")
    return [Action(int(match[1]), match[2], int(match[3]))]


def read_table(path: Path) -> Table:
    """The table in a CSV file. Raises: TableError, with the line and cell."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"cannot be read ({error})") from error
    table: list[list[Action]] = []
    for i, row in enumerate(rows):
        actions: list[Action] = []
        for j, cell in enumerate(row):
            try:
                actions += parse_cell(cell)
            except TableError as error:
                raise TableError(f"line {i + 1}, cell {j + 1}: {error}") from None
        table.append(actions)
    return table


def table_of(order: Mapping[int, Iterable[object]]) -> Table:
    """The table of one of torch's schedules: its `pipeline_order`."""
    return [
        [
            action
            for each in order[rank]
            if each is not None and "REDUCE" not in str(each)
            for action in parse_cell(str(each))
        ]
        for rank in sorted(order)
    ]


def table_problems(table: Table, *, num_ranks: int, num_microbatches: int) -> Iterator[str]:
    """Why a table cannot be run: its own sentences, without a key in front."""
    if len(table) != num_ranks:
        yield f"has {len(table)} lines, but mesh.pp = {num_ranks}; write one line for each rank"
        return
    holders: dict[int, set[int]] = {}
    done: Counter[Action] = Counter()
    for rank, row in enumerate(table):
        for action in row:
            holders.setdefault(action.stage, set()).add(rank)
            done[action] += 1
    num_stages = max(holders, default=-1) + 1
    if len(holders) < num_stages:
        missing = next(stage for stage in range(num_stages) if stage not in holders)
        yield f"has no action of stage {missing}, though of stage {num_stages - 1}; number the stages without gaps"
    if idle := [rank for rank, row in enumerate(table) if not row]:
        yield f"line {idle[0] + 1} has no action; give every rank a stage"
    yield from _balance_problems(table)
    for stage, ranks in sorted(holders.items()):
        if len(ranks) > 1:
            yield f"stage {stage} is on ranks {sorted(ranks)}; a stage has one rank"
    if twice := [action for action, count in done.items() if count > 1]:
        yield f"{twice[0]} occurs {done[twice[0]]} times; once is enough"
    if too_many := [action for action in done if action.microbatch >= num_microbatches]:
        yield (
            f"{too_many[0]} is beyond the {num_microbatches} microbatches of a step; "
            f"set strategies.accumulation.num_microbatches to what the table was written for"
        )
    for stage in sorted(holders):
        yield from _stage_problems(stage, done, num_microbatches)
    for row in table:
        yield from _order_problems(row, num_stages)


def _balance_problems(table: Table) -> Iterator[str]:
    """Ranks with another number of stages than the first one; a rank without any is another matter."""
    counts = {line: len({action.stage for action in row}) for line, row in enumerate(table, start=1) if row}
    first = next(iter(counts), 0)
    if other := next((line for line, count in counts.items() if count != counts[first]), None):
        said = " and ".join(f"line {line} has {counts[line]}" for line in (first, other))
        yield f"numbers of stages differ: {said}; give every rank as many"


def _stage_problems(stage: int, done: Mapping[Action, int], num_microbatches: int) -> Iterator[str]:
    """Forward and backward of each microbatch, the latter whole or in its two halves; the first that is missing."""
    for microbatch in range(num_microbatches):
        has = {kind for kind in "FBIW" if Action(stage, kind, microbatch) in done}
        if "F" not in has:
            yield f"{stage}F{microbatch} is missing; the step has {num_microbatches} microbatches"
            return
        if has - {"F"} not in ({"B"}, {"I", "W"}):
            yield f"stage {stage} needs {stage}B{microbatch}, or {stage}I{microbatch} and {stage}W{microbatch}"
            return


def _order_problems(row: Sequence[Action], num_stages: int) -> Iterator[str]:
    """What must come before on the same rank, and that the last stage takes the microbatches in order."""
    seen: set[Action] = set()
    needs = {"B": "F", "I": "F", "W": "I"}
    forwards = [action.microbatch for action in row if action.stage == num_stages - 1 and action.kind == "F"]
    if forwards != sorted(forwards):
        yield "the last stage must take the microbatches in order: the losses are looked up by their number"
    for action in row:
        before = replace(action, kind=needs[action.kind]) if action.kind in needs else None
        if before is not None and before not in seen:
            yield f"{action} comes before {before}; put it after"
            return
        seen.add(action)
