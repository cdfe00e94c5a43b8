"""Which kernels an operator starts, in which order, how often; against a loop, and against HTA where the two agree."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from stepladder.profiling.trace.kinds import ON_DEVICE, Kind
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.sequences import SCHEMA, kernel_sequences
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"
NS_PER_US = 1000


def read(name: str, rank: int = 0) -> Trace:
    return read_trace(DATA / name / f"rank-{rank}.json.gz", num_threads=1)


def by_a_loop(trace: Trace, wanted: str, min_kernels: int) -> Counter[tuple[str, ...]]:
    """Each kernel is looked for under each operator."""
    host = trace.events.filter(pl.col("kind").is_in([Kind.OPERATOR.value, Kind.ANNOTATION.value]) & (pl.col("dur") > 0))
    calls = [(row["track"], row["ts"], row["ts"] + row["dur"], row["name"]) for row in host.iter_rows(named=True)]
    calls = [call for call in calls if wanted in call[3]]
    launches: dict[int, tuple[int, int]] = {}
    for row in trace.of(Kind.LAUNCH).iter_rows(named=True):
        if row["correlation"] > 0:
            launches.setdefault(row["correlation"], (row["track"], row["ts"]))
    started: dict[tuple[int, int, int, str], list[str]] = {}
    for row in trace.device.iter_rows(named=True):
        track, at = launches.get(row["correlation"], (-1, -1))
        around = [call for call in calls if call[0] == track and call[1] <= at < call[2]]
        if around:
            outermost = min(around, key=lambda call: (call[1], -call[2]))
            started.setdefault(outermost, []).append(row["name"])
    return Counter((call[3], *names) for call, names in started.items() if len(names) >= min_kernels)


@pytest.mark.parametrize("name", ["h100_qwen_18k", "amd_mi250_minitoy", "vllm_decode_graph", "sampled_2rank"])
@pytest.mark.parametrize(
    ("wanted", "min_kernels"), [("aten::linear", 1), ("Optimizer", 1), ("aten::", 2), ("execute", 3)]
)
def test_the_sequences_are_those_of_a_loop_over_kernels_and_operators(name: str, wanted: str, min_kernels: int) -> None:
    trace = read(name)
    table = kernel_sequences(trace, wanted, min_kernels=min_kernels, top=None)
    found = {(row["operator"], *row["kernels"]): row["count"] for row in table.iter_rows(named=True)}
    assert found == dict(by_a_loop(trace, wanted, min_kernels))
    assert table["count"].to_list() == sorted(table["count"], reverse=True)
    assert (table["num_kernels"] == table["kernels"].list.len()).all()


@pytest.mark.parametrize(
    ("wanted", "min_kernels"), [("autograd::engine", 1), ("autograd::engine", 3), ("Optimizer", 3)]
)
def test_where_all_outermost_operators_stand_at_one_depth_the_numbers_are_htas(wanted: str, min_kernels: int) -> None:
    """HTA leaves out the last step, and with it the calls from there on."""
    trace = read("sampled_2rank")
    last = trace.steps["ts"].max()
    on_device = pl.col("kind").is_in([kind.value for kind in ON_DEVICE])
    trace = dataclasses.replace(trace, events=trace.events.filter(on_device | (pl.col("ts") < last)))
    table = kernel_sequences(trace, wanted, min_kernels=min_kernels, top=None)
    found = table.select("num_kernels", "count", pl.col("kernel_ns", "operator_ns") // NS_PER_US).rows()
    oracle = json.loads((DATA / "hta_sequences.json").read_text())
    assert sorted(found) == [tuple(row) for row in oracle[f"{wanted} {min_kernels}"]]


def test_a_trace_without_such_an_operator_or_a_device_gives_an_empty_table() -> None:
    for table in (
        kernel_sequences(read("cpu_only"), ""),
        kernel_sequences(read("amd_mi250_minitoy"), "no such operator"),
        kernel_sequences(read("amd_mi250_minitoy"), "aten::linear", min_kernels=99),
    ):
        assert table.height == 0
        assert dict(table.schema) == SCHEMA
    assert kernel_sequences(read("h100_qwen_18k"), "aten::", min_kernels=1, top=3).height == 3
