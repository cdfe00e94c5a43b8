"""Whose each nanosecond of a step is, and what changed between two runs; checked instant by instant."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepladder.profiling.spans import Span
from stepladder.profiling.trace.attribution import SCHEMA, attribute
from stepladder.profiling.trace.difference import by_rank, difference, summed
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.tables import Trace

Event = dict[str, Any]
DATA = Path(__file__).parent / "data"


def event(cat: str, name: str, start: int, end: int, *, tid: int = 1, **args: Any) -> Event:
    times = {"ts": start / 1000, "dur": (end - start) / 1000}
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "args": args} | times


def step(number: int, start: int, end: int) -> Event:
    return event("user_annotation", f"ProfilerStep#{number}", start, end)


def kernel(name: str, start: int, end: int, correlation: int = 0, *, stream: int = 7, cat: str = "kernel") -> Event:
    return event(cat, name, start, end, tid=stream, stream=stream, device=0, correlation=correlation)


def launch(start: int, end: int, correlation: int, *, tid: int = 1) -> Event:
    return event("cuda_runtime", "cudaLaunchKernel", start, end, tid=tid, correlation=correlation)


def trace_of(folder: Path, *events: Event, detail: bool = False) -> Trace:
    path = folder / "trace.json"
    path.write_text(json.dumps({"traceEvents": list(events)}))
    return read_trace(path, detail=detail, num_threads=1)


def owned(table: pl.DataFrame, *keys: str) -> dict[Any, int]:
    summed = table.group_by(keys).agg(pl.col("owned_ns").sum()).filter(pl.col("owned_ns") > 0)
    return {row[0] if len(keys) == 1 else row[:-1]: row[-1] for row in summed.rows()}


def test_empty_time_is_the_hosts_until_the_launch_is_called_and_the_launchs_from_there(tmp_path: Path) -> None:
    table = attribute(
        trace_of(
            tmp_path,
            step(0, 0, 1000),
            event("user_annotation", Span.DATA_WAIT.value, 0, 100),
            event("user_annotation", Span.FORWARD.value, 100, 900),
            event("cpu_op", "aten::mm", 190, 260),
            launch(200, 210, 1),
            launch(220, 230, 2),
            launch(600, 620, 3),
            kernel("gemm", 250, 400, 1),
            kernel("relu", 430, 500, 2),
            kernel("softmax", 650, 700, 3),
        )
    )
    assert owned(table, "phase", "part", "name") == {
        (Span.DATA_WAIT.value, "idle", "host"): 100,
        (Span.FORWARD.value, "idle", "host"): 100 + 100,
        (Span.FORWARD.value, "launch", "cudaLaunchKernel"): 50 + 50,
        (Span.FORWARD.value, "compute", "gemm"): 150,
        (Span.FORWARD.value, "idle", "queued"): 30,
        (Span.FORWARD.value, "compute", "relu"): 70,
        (Span.FORWARD.value, "compute", "softmax"): 50,
        (Span.FORWARD.value, "idle", "nothing follows"): 200,
        ("other", "idle", "nothing follows"): 100,
    }
    operators = dict(table.filter(pl.col("part") == "compute").select("name", "operator").rows())
    assert operators == {"gemm": "aten::mm", "relu": "aten::mm", "softmax": ""}


def test_computing_hides_an_exchange_and_an_exchange_hides_a_copy(tmp_path: Path) -> None:
    table = attribute(
        trace_of(
            tmp_path,
            step(0, 0, 100),
            kernel("first", 10, 30),
            kernel("second", 20, 40, stream=8),
            kernel("ncclDevKernel_AllReduce", 35, 60, stream=9),
            kernel("Memcpy HtoD", 50, 80, stream=10, cat="gpu_memcpy"),
        )
    )
    assert owned(table, "part", "name") == {
        ("compute", "first"): 20,
        ("compute", "second"): 10,
        ("communication", "ncclDevKernel_AllReduce"): 20,
        ("memory", "Memcpy HtoD"): 20,
        ("idle", "unknown"): 10,
        ("idle", "nothing follows"): 20,
    }
    assert table.filter(pl.col("name") == "second").select("count", "busy_ns").row(0) == (1, 20)


def test_a_host_without_a_device_owns_its_time_by_the_innermost_operator(tmp_path: Path) -> None:
    table = attribute(
        trace_of(
            tmp_path,
            step(0, 0, 100),
            event("user_annotation", Span.BACKWARD.value, 10, 90),
            event("cpu_op", "aten::linear", 10, 40),
            event("cpu_op", "aten::addmm", 15, 35),
            event("cpu_op", "AddmmBackward0", 50, 60, tid=2),
            event("user_annotation", "gloo:all_reduce", 55, 80, tid=3),
        )
    )
    assert owned(table, "phase", "part", "name") == {
        ("other", "idle", "no operator"): 20,
        (Span.BACKWARD.value, "compute", "aten::linear"): 10,
        (Span.BACKWARD.value, "compute", "aten::addmm"): 20,
        (Span.BACKWARD.value, "compute", "AddmmBackward0"): 10,
        (Span.BACKWARD.value, "communication", "gloo:all_reduce"): 20,
        (Span.BACKWARD.value, "idle", "no operator"): 10 + 10,
    }


KERNELS = st.lists(
    st.tuples(
        st.integers(0, 60), st.integers(0, 30), st.sampled_from(["a", "b", "nccl_c", "Memcpy d"]), st.integers(-5, 30)
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(KERNELS, st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_every_instant_has_the_owner_that_a_look_at_that_instant_finds(
    tmp_path: Path, kernels: list[tuple[int, int, str, int]], steps: list[int]
) -> None:
    events: list[Event] = []
    begin = 0
    for number, length in enumerate(steps):
        events.append(step(number, begin, begin + length))
        begin += length
    rows: list[tuple[int, int, int, str, int]] = []
    for number, (start, length, name, ahead) in enumerate(kernels, start=1):
        call = max(0, start - ahead) if ahead > 0 else -1
        if ahead > 0:
            events.append(launch(call, call, number))
        events.append(kernel(name, start, start + length, number, stream=number))
        if length:
            rows.append(({"nccl_c": 1, "Memcpy d": 2}.get(name, 0), start, start + length, name, call))
    expected: dict[tuple[str, str], int] = {}
    names = {0: "compute", 1: "communication", 2: "memory"}
    by_start = sorted(rows, key=lambda row: (row[1], row[1] - row[2]))
    for now in range(begin):
        running = [row for row in rows if row[1] <= now < row[2]]
        following = [row for row in by_start if row[1] > now]
        if running:
            first = min(running, key=lambda row: (row[0], row[1], row[1] - row[2]))
            key = (names[first[0]], first[3])
        elif not rows:
            key = ("idle", "no operator")
        elif not following:
            key = ("idle", "nothing follows")
        elif (call := following[0][4]) < 0:
            key = ("idle", "unknown")
        elif now < call:
            key = ("idle", "host")
        else:
            fell_idle = max((row[2] for row in rows if row[2] <= now), default=-1)
            key = ("idle", "queued") if call < fell_idle else ("launch", "cudaLaunchKernel")
        expected[key] = expected.get(key, 0) + 1
    table = attribute(trace_of(tmp_path, *events))
    assert owned(table, "part", "name") == expected
    assert table["owned_ns"].sum() == begin


NAMES = st.sampled_from(
    ["volta_sgemm_64x64_nt", "ampere_sgemm_128x64_nt", "relu_kernel", "triton_poi_fused_add_3", "x"]
)
ROWS = st.lists(
    st.tuples(NAMES, st.sampled_from(["", "aten::mm", "aten::add"]), st.integers(1, 9), st.integers(0, 1000)),
    max_size=12,
)


def frame(rows: list[tuple[str, str, int, int]], num_windows: int = 1, part: str = "compute") -> pl.DataFrame:
    found = [
        {"phase": "forward", "part": part, "name": name, "operator": operator, "shapes": "", "count": count}
        | {"busy_ns": time, "owned_ns": time, "position": place / 20, "num_windows": num_windows}
        for place, (name, operator, count, time) in enumerate(rows)
    ]
    return pl.DataFrame(found, schema=SCHEMA)


@settings(max_examples=80, deadline=None)
@given(ROWS, ROWS, st.integers(1, 7), st.integers(1, 7))
def test_the_changes_add_up_to_the_change_of_the_step_and_no_kernel_is_lost_or_counted_twice(
    before: list[tuple[str, str, int, int]], after: list[tuple[str, str, int, int]], steps: int, more_steps: int
) -> None:
    table = difference(frame(before, steps), frame(after, more_steps))
    step_before, step_after = (
        sum(row[3] for row in before) // steps,
        sum(row[3] for row in after) // more_steps,
    )
    assert summed(table, ()).row(0) == (step_before, step_after, step_after - step_before)
    assert table["by_count_ns"].sum() + table["by_duration_ns"].sum() == step_after - step_before
    assert table["count_before"].sum() == pytest.approx(sum(row[2] for row in before) / steps)
    assert table["count_after"].sum() == pytest.approx(sum(row[2] for row in after) / more_steps)


def test_a_kernel_is_found_again_under_another_name_and_what_has_no_partner_was_added_or_removed() -> None:
    before = frame(
        [
            ("volta_sgemm_64x64_nt", "aten::mm", 4, 400),
            ("triton_poi_fused_add_relu_3", "", 2, 100),
            (
                "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >(int)",
                "aten::add",
                6,
                60,
            ),
            ("fmha_cutlassF_f32_aligned_64x64_rf_sm80", "aten::attention", 1, 300),
            ("softmax_warp_forward", "aten::softmax", 1, 50),
        ]
    )
    after = frame(
        [
            ("ampere_sgemm_128x64_nt", "aten::mm", 4, 200),
            ("triton_poi_fused_add_relu_12", "", 2, 100),
            (
                "void at::native::vectorized_elementwise_kernel<2, at::native::CUDAFunctor_add<half> >(int)",
                "aten::add",
                9,
                90,
            ),
            ("pytorch_flash::flash_fwd_kernel", "aten::attention", 1, 450),
            ("dropout_kernel", "aten::dropout", 1, 20),
        ]
    )
    table = difference(before, after)
    found = {
        (row["name_before"] or row["name_after"])[:12]: (row["matched_by"], row["verdict"], row["change_ns"])
        for row in table.iter_rows(named=True)
    }
    assert found == {
        "volta_sgemm_": ("normal form", "faster", -200),
        "triton_poi_f": ("normal form", "same", 0),
        "void at::nat": ("normal form", "more often", 30),
        "fmha_cutlass": ("operator", "slower", 150),
        "softmax_warp": (None, "removed", -50),
        "dropout_kern": (None, "added", 20),
    }


def test_ranks_are_taken_together_or_one_by_one() -> None:
    runs = [
        pl.concat(
            [
                frame([("x", "", 1, time)], part=part).with_columns(rank=pl.lit(rank, pl.Int64))
                for rank, times in enumerate(ranks)
                for part, time in zip(("compute", "idle"), times, strict=True)
            ]
        )
        for ranks in (((10, 5), (20, 5)), ((10, 25), (20, 45)))
    ]
    assert summed(difference(runs[0], runs[1]), ()).row(0) == (20, 50, 30)
    each = by_rank(runs[0], runs[1])
    assert summed(each, ("rank", "part")).sort("rank", "part")["change_ns"].to_list() == [0, 20, 0, 40]
    assert by_rank(runs[0], runs[1].with_columns(rank=pl.lit(7, pl.Int64))).height == 0


@pytest.mark.parametrize(
    "name", ["sampled_2rank", "h100_qwen_18k", "cpu_only", "amd_mi250_minitoy", "vllm_decode_graph"]
)
def test_a_run_does_not_differ_from_itself_and_its_parts_are_its_step(name: str) -> None:
    folder = DATA / name if (DATA / name).is_dir() else Path(os.environ.get("STEPLADDER_TRACES", "")) / name
    if not (folder / "rank-0.json.gz").is_file():
        pytest.skip("needs the real traces: set STEPLADDER_TRACES to their folder")
    trace = read_trace(folder / "rank-0.json.gz", detail=True, num_threads=1)
    table = attribute(trace)
    length = trace.steps["dur"].sum() or table["owned_ns"].sum()
    assert table["owned_ns"].sum() == length > 0
    same = difference(table, table)
    assert same["change_ns"].abs().sum() == 0
    assert set(same["verdict"]) == {"same"}
    assert summed(same, ()).row(0)[0] == length // max(1, trace.steps.height)
