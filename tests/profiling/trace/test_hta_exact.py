"""The exact analyses are what a plain reading of the events gives; where there is nothing, they say nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_hta import check

from stepladder.profiling.errors import TraceError
from stepladder.profiling.trace import hta
from stepladder.profiling.trace.load import read_trace

DATA = Path(__file__).parent / "data"
TRACES = ("amd_mi250_minitoy", "cpu_only", "h100_qwen_18k", "sampled_2rank", "vllm_decode_graph")
ANALYSES = (
    hta.temporal_breakdown,
    hta.communication_overlap,
    hta.kernel_kinds,
    hta.kernel_names,
    hta.annotation_names,
    hta.idle_breakdown,
    hta.launches,
    hta.launch_statistics,
    hta.launch_distribution,
    hta.queue_points,
    hta.queue_lengths,
    hta.blocked_on_full_queue,
    hta.bandwidth_points,
    hta.memory_bandwidth,
)
KERNELS = ("gemm", "gemm_tn", "ncclDevKernel_AllReduce", "Memcpy HtoD (Pinned -> Device)", "Memset (Device)")
CALLS = ("cudaLaunchKernel", "cuLaunchKernelEx", "hipLaunchKernel", "cudaGraphLaunch")
Event = dict[str, Any]


def complete(name: str, category: str, start: int, dur: int, **args: object) -> Event:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start / 1000,
        "dur": dur / 1000,
        "pid": 0,
        "tid": 0,
        "args": args,
    }


def write(path: Path, events: list[Event], **header: object) -> Path:
    path.write_text(json.dumps({**header, "traceEvents": events}))
    return path


@st.composite
def traces(draw: st.DrawFn) -> list[Event]:
    """Work of a few streams and devices, some of it of one graph, some without a call, or too early for it."""
    scale = draw(st.sampled_from([1, 7, 10_000]))
    times = st.integers(0, 60).map(lambda time: time * scale)
    events = [
        complete(draw(st.sampled_from(CALLS)), "cuda_runtime", draw(times), draw(times) // 8, correlation=correlation)
        for correlation in range(1, draw(st.integers(1, 12)))
    ]
    for _ in range(draw(st.integers(0, 16))):
        name = draw(st.sampled_from(KERNELS))
        category = {"Memcp": "gpu_memcpy", "Memse": "gpu_memset"}.get(name[:5], "kernel")
        args: dict[str, Any] = {"device": draw(st.integers(0, 1)), "stream": draw(st.sampled_from([7, 20]))}
        args["correlation"] = draw(st.integers(1, 14))
        if category != "kernel":
            args["bytes"] = draw(st.integers(1, 1 << 20))
        events.append(complete(name, category, draw(times), draw(times) // 4, **args))
    for category in ("user_annotation", "gpu_user_annotation"):
        events += [complete("step", category, draw(times), draw(times)) for _ in range(draw(st.integers(0, 2)))]
    return [*draw(st.permutations(events)), complete("aten::add", "cpu_op", 0, 1)]


@pytest.mark.parametrize(
    "path",
    [path for name in TRACES for path in sorted((DATA / name).glob("*.gz"))],
    ids=lambda path: f"{path.parent.name}-{path.name.partition('.')[0]}",
)
def test_a_real_trace_is_analysed_exactly(path: Path) -> None:
    check(path, full_length=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces(), st.sampled_from([0, 1_700_000_000_000_000_123]))
def test_any_trace_is_analysed_exactly(tmp_path: Path, events: list[Event], base: int) -> None:
    check(write(tmp_path / "trace.json", events, baseTimeNanoseconds=base), full_length=2)


@pytest.mark.parametrize("compat", [False, True])
def test_without_work_on_a_device_there_are_empty_tables_of_the_usual_columns(compat: bool, tmp_path: Path) -> None:
    whole = read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz")
    lonely = read_trace(write(tmp_path / "trace.json", [complete("aten::add", "cpu_op", 0, 1)]))
    host = read_trace(DATA / "cpu_only" / "rank-0.json.gz")
    for analysis in ANALYSES:
        for trace in (lonely, host):
            table = analysis(trace, compat=compat)
            assert table.is_empty()
            assert table.schema == analysis(whole, compat=compat).schema, analysis
    assert hta.annotation_names(host, on_device=False, compat=compat).height > 0


def test_names_beyond_the_first_are_one_row_with_true_statistics(tmp_path: Path) -> None:
    durs = {"a": [50, 60], "b": [30], "c": [4, 8], "d": [6]}
    events = [
        complete(name, "kernel", 1000 * i, dur, device=0, stream=7)
        for name, each in durs.items()
        for i, dur in enumerate(each)
    ]
    table = hta.kernel_names(read_trace(write(tmp_path / "trace.json", events)), num_names=2)
    assert table.select("name", "count", "total_ns", "max_ns", "min_ns", "mean_ns", "std_ns").rows() == [
        ("a", 2, 110, 60, 50, 55.0, pytest.approx(50**0.5)),
        ("b", 1, 30, 30, 30, 30.0, 0.0),
        ("others", 3, 18, 8, 4, 6.0, 2.0),
    ]


def test_a_kernel_that_is_launched_after_the_last_step_began_counts(tmp_path: Path) -> None:
    events = [complete(f"ProfilerStep#{step}", "user_annotation", 100_000 * step, 100_000) for step in (0, 1)]
    for step in (0, 1):
        start = 100_000 * step + 10_000 + 250 * step  # only fractions of microseconds are rounded
        events.append(complete("cudaLaunchKernel", "cuda_runtime", start, 1000, correlation=step + 1))
        events.append(complete("gemm", "kernel", start + 5000, 30_500, device=0, stream=7, correlation=step + 1))
    trace = read_trace(write(tmp_path / "trace.json", events))
    assert hta.temporal_breakdown(trace)["compute_ns"].to_list() == [61_000]
    assert hta.temporal_breakdown(trace, compat=True)["compute_ns"].to_list() == [30_000]
    every_step = hta.compat_rows(trace, include_last_step=True)
    assert hta.temporal_breakdown(every_step)["compute_ns"].to_list() == [59_000]
    unrounded = hta.compat_rows(trace, rounding=False)
    assert hta.temporal_breakdown(unrounded)["compute_ns"].to_list() == [30_500]


def test_rows_of_one_reading_are_not_taken_for_the_other() -> None:
    rows = hta.exact_rows(read_trace(DATA / "cpu_only" / "rank-0.json.gz"))
    with pytest.raises(ValueError, match="compat = True"):
        hta.temporal_breakdown(rows, compat=True)


def test_a_correlation_of_everything_is_refused_in_htas_reading_and_harmless_otherwise(tmp_path: Path) -> None:
    events = [complete("cudaLaunchKernel", "cuda_runtime", i, 1, correlation=1) for i in range(1500)]
    events += [complete("gemm", "kernel", i, 1, device=0, stream=7, correlation=1) for i in range(1500)]
    trace = read_trace(write(tmp_path / "trace.json", events))
    with pytest.raises(TraceError, match="2250000 pairs"):
        hta.compat_rows(trace)
    assert hta.launches(trace)["num_kernels"].to_list() == [1500]


def test_htas_reading_does_not_mind_names_of_threads_before_the_first_event(tmp_path: Path) -> None:
    named = {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "python"}}
    events = [complete("aten::mm", "cpu_op", 2000, 9000), complete("aten::add", "cpu_op", 1000, 500)]
    events += [complete("gemm", "kernel", 4000, 1000, device=0, stream=7, correlation=3)]
    alone = hta.compat_rows(read_trace(write(tmp_path / "alone.json", events)))
    behind = hta.compat_rows(read_trace(write(tmp_path / "behind.json", [named, *events])))
    assert behind.device["call_ts"].to_list() == alone.device["call_ts"].to_list() == [1.0]
