"""Hardware counters come with their values and with the operators that launched their kernels."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepladder.profiling.spans import Span
from stepladder.profiling.trace.counters_cupti import hardware_counters
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.tables import Trace

FMA, ADD, CYCLES = (
    "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum",
    "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum",
    "sm__cycles_active.avg",
)


def event(cat: str, name: str, start: int, end: int, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": end - start, "args": args}


def trace_of(folder: Path, *events: dict[str, Any]) -> Trace:
    path = folder / "trace.json"
    path.write_text(json.dumps({"traceEvents": list(events)}))
    return read_trace(path, num_threads=1)


HOST = [
    event("user_annotation", Span.FORWARD.value, 0, 100),
    event("cpu_op", "aten::linear", 0, 50),
    event("cpu_op", "aten::addmm", 5, 40),
    event("cuda_runtime", "cudaLaunchKernel", 10, 12, correlation=1),
    event("cpu_op", "aten::relu", 60, 90),
    event("cuda_runtime", "cudaLaunchKernelExC", 70, 72, correlation=2),
    event("cuda_runtime", "cudaDeviceSynchronize", 92, 95, correlation=3),
]


def test_the_kth_range_belongs_to_the_kth_launch(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        *HOST,
        event("cuda_profiler_range", "relu", 30, 34, 0, **{FMA: "0", ADD: 7, CYCLES: 2.5}),
        event("cuda_profiler_range", "gemm", 20, 29, 0, **{FMA: 100, ADD: 10, "note": "no number", CYCLES: 4}),
    )
    table = hardware_counters(trace)
    assert table.columns[-3:] == [FMA, ADD, CYCLES] or set(table.columns[-3:]) == {FMA, ADD, CYCLES}
    fixed = ["name", "dur_ns", "operator", "top_operator", "operators", "flop", FMA, CYCLES]
    assert table.select(fixed).rows() == [
        ("gemm", 9000, "aten::addmm", "aten::linear", ["aten::linear", "aten::addmm"], 210.0, 100.0, 4.0),
        ("relu", 4000, "aten::relu", "aten::relu", ["aten::relu"], 7.0, 0.0, 2.5),
    ]


@pytest.mark.parametrize(
    ("calls", "known"), [(["cuLaunchKernel", "cuLaunchKernelEx"], True), (["cudaLaunchKernel"], False)]
)
def test_launches_of_the_driver_count_too_and_a_count_that_does_not_fit_names_no_operator(
    tmp_path: Path, calls: list[str], known: bool
) -> None:
    launches = [
        event("cuda_driver", name, 10 + turn, 11 + turn, correlation=turn + 1) for turn, name in enumerate(calls)
    ]
    ranges = [event("cuda_profiler_range", "k", 50 + turn, 51 + turn, 0, **{CYCLES: turn}) for turn in range(2)]
    table = hardware_counters(trace_of(tmp_path, event("cpu_op", "aten::mm", 0, 40), *launches, *ranges))
    assert table[CYCLES].to_list() == [0.0, 1.0]
    assert table["operator"].to_list() == (["aten::mm"] * 2 if known else [None] * 2)
    assert table["flop"].to_list() == [None, None]


def test_a_trace_without_counters_gives_an_empty_table(tmp_path: Path) -> None:
    table = hardware_counters(trace_of(tmp_path, *HOST))
    assert table.height == 0
    assert {"name", "operator", "flop"} <= set(table.columns)
