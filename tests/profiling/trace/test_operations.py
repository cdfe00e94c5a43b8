"""Operators and kernels by name, and what changed between two ranks; against HTA's trace difference."""

import json
from pathlib import Path

import polars as pl
import pytest

from stepladder.profiling.trace.kinds import Kind
from stepladder.profiling.trace.launchers import launchers
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.operations import OPERATORS, Where, compare_operations, operations, operators

DATA = Path(__file__).parent / "data"
ORACLE = json.loads((DATA / "hta_operations.json").read_text())
WHERE: tuple[Where, ...] = ("all", "host", "device")


@pytest.mark.parametrize("where", WHERE)
def test_counts_durations_and_changes_are_htas(where: Where) -> None:
    traces = [read_trace(DATA / "sampled_2rank" / f"rank-{rank}.json.gz", num_threads=1) for rank in (0, 1)]
    table = compare_operations(*(operations(trace, where=where, compat=True) for trace in traces))
    sides = [pl.col(f"{what}_{side}") for side in ("before", "after") for what in ("count", "total_ns")]
    assert sorted(table.select(*sides).rows()) == [tuple(row) for row in ORACLE["compare"][where]]
    if where == "all":
        assert dict(sorted(table.group_by("change").len().rows())) == ORACLE["changes"]
        assert table.filter(pl.col("change") == "added")["name"].to_list() == ORACLE["added"]


def test_a_run_is_unchanged_against_itself_and_steps_are_told_apart() -> None:
    trace = read_trace(DATA / "sampled_2rank" / "rank-0.json.gz", num_threads=1)
    steps = trace.steps["step"].to_list()
    tables = [operations(trace, step=step) for step in steps]
    assert tables[0].equals(operations(trace))
    assert not tables[0].equals(tables[1])
    same = compare_operations(tables[0], tables[0])
    assert set(same["change"]) == {"unchanged"}
    assert not any(same["change_ns"])
    kernels = sum(table.filter("on_device")["count"].sum() for table in tables)
    assert 0 < kernels <= trace.device.height


def test_without_steps_it_is_the_whole_trace_and_short_events_are_rounded_only_as_hta_does() -> None:
    trace = read_trace(DATA / "vllm_decode_graph" / "rank-0.json.gz", num_threads=1)
    whole = operations(trace)
    assert whole["count"].sum() == trace.events.height
    assert whole["total_ns"].sum() == trace.events["dur"].sum()
    rounded = operations(trace, compat=True)
    assert set(rounded["total_ns"] % 1000) == {0}
    assert rounded["total_ns"].sum() < whole["total_ns"].sum()


@pytest.mark.parametrize("name", ["cpu_only", "amd_mi250_minitoy", "vllm_decode_graph"])
def test_the_own_time_of_operators_is_what_no_operator_inside_takes(name: str) -> None:
    trace = read_trace(DATA / name / "rank-0.json.gz", num_threads=1)
    calls = trace.of(Kind.OPERATOR).with_columns(pl.col("name").cast(pl.String)).rows(named=True)
    own = {call["row"]: call["dur"] for call in calls}
    for call in calls:
        around = [
            other["row"]
            for other in calls
            if other["row"] < call["row"]
            and other["track"] == call["track"]
            and other["ts"] + other["dur"] >= call["ts"] + call["dur"]
        ]
        if around:
            own[max(around)] -= call["dur"]
    started = launchers(trace).with_columns(trace.device["dur"]).rows(named=True)
    wanted: dict[str, list[int]] = {}
    for call in calls:
        sums = wanted.setdefault(call["name"], [0] * 5)
        mine = [kernel["dur"] for kernel in started if kernel["operator"] == call["row"]]
        for place, value in enumerate((1, call["dur"], own[call["row"]], len(mine), sum(mine))):
            sums[place] += value
    table = operators(trace)
    assert dict(table.schema) == OPERATORS
    assert {row[0]: list(row[1:]) for row in table.rows()} == wanted
    assert table["own_ns"].to_list() == sorted(table["own_ns"], reverse=True)
