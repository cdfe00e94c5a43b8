"""Memory over time, and who holds it at the peak, against a replay of the allocator."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stepladder.profiling.errors import TraceError
from stepladder.profiling.spans import Span
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.memory import (
    BEFORE,
    CATEGORIES,
    held_at_peak,
    memory_peaks,
    memory_timeline,
    read_memory_timeline,
)
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"


def operator(name: str, start: int, end: int, cat: str = "cpu_op") -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": end - start, "args": {}}


def allocation(at: int, address: int, size: int, total: int, *, device: int = 0) -> dict[str, Any]:
    args = {"Addr": address, "Bytes": size, "Device Type": 1, "Device Id": device}
    args |= {"Total Allocated": total, "Total Reserved": 4096}
    return {
        "ph": "i",
        "s": "t",
        "name": "[memory]",
        "cat": "cpu_instant_event",
        "pid": 1,
        "tid": 1,
        "ts": at,
        "args": args,
    }


def trace_of(folder: Path, *events: dict[str, Any]) -> Trace:
    path = folder / "trace.json"
    path.write_text(json.dumps({"traceEvents": list(events)}))
    return read_trace(path, detail=True, num_threads=1)


def test_the_peak_is_told_with_its_step_and_phase_and_with_who_allocated_what_is_held(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        operator("ProfilerStep#4", 0, 100, "user_annotation"),
        operator(Span.FORWARD.value, 5, 50, "user_annotation"),
        operator("aten::mm", 10, 20),
        operator("aten::empty", 11, 13),
        operator("aten::relu", 20, 30),
        operator("aten::empty", 80, 90),
        allocation(12, 100, 64, 1064),
        allocation(14, 200, 16, 1080),
        allocation(18, 200, -16, 1064),
        allocation(25, 200, 32, 1096),
        allocation(40, 300, -500, 596),
        allocation(85, 400, 8, 604),
        allocation(86, 1, 7, 7, device=1),
    )
    peak = memory_peaks(trace).row(0, named=True)
    assert {key: peak[key] for key in ("ts", "step", "phase", "peak_bytes", "first_bytes", "last_bytes")} == {
        "ts": 25_000,
        "step": 4,
        "phase": Span.FORWARD.value,
        "peak_bytes": 1096,
        "first_bytes": 1000,
        "last_bytes": 604,
    }
    assert (peak["num_allocations"], peak["allocated_bytes"]) == (4, 120)
    held = held_at_peak(trace).select("device", "phase", "operator", "num_blocks", "bytes")
    assert held.rows() == [
        (0, BEFORE, "", None, 1000),
        (0, Span.FORWARD.value, "aten::mm", 1, 64),
        (0, Span.FORWARD.value, "aten::relu", 1, 32),
        (1, "other", "aten::empty", 1, 7),
    ]
    assert memory_timeline(trace).filter(pl.col("device") == 0)["allocated"].to_list() == [
        1064,
        1080,
        1064,
        1096,
        596,
        604,
    ]


def test_what_is_held_is_what_a_replay_of_the_allocator_holds(tmp_path: Path) -> None:
    draw = random.Random(7)
    held: dict[int, int] = {}
    highest: tuple[int, dict[int, int]] = (-1, {})
    events = [operator(f"aten::op{number}", 10 * number, 10 * number + 9) for number in range(60)]
    for number in range(600):
        address = draw.randrange(12)
        if address in held:
            size = -held.pop(address)
        else:
            size = held[address] = draw.randrange(1, 1000)
        total = 5000 + sum(held.values())
        events.append(allocation(number, address, size, total))
        if total > highest[0]:
            highest = (total, dict(held))
    table = held_at_peak(trace_of(tmp_path, *events))
    assert table["bytes"].sum() == highest[0]
    assert table.filter(pl.col("phase") == BEFORE)["bytes"].to_list() == [5000]
    assert table["num_blocks"].sum() == len(highest[1])


def test_a_long_timeline_is_thinned_without_losing_its_peak(tmp_path: Path) -> None:
    totals = [1000 + (number * 7919) % 1009 for number in range(5000)]
    totals[3217] = 99_999
    trace = trace_of(
        tmp_path, operator("aten::x", 0, 1), *(allocation(i, i, 1, total) for i, total in enumerate(totals))
    )
    thin = memory_timeline(trace, max_points=50)
    assert thin.height == 50
    assert thin["allocated"].max() == 99_999
    assert thin["ts"].is_sorted()
    assert memory_timeline(trace).height == 4000


@pytest.mark.parametrize("name", ["h100_qwen_18k", "v100_ddp2_216k", "cpu_only"])
def test_on_real_traces_the_rows_of_a_peak_add_up_to_it(name: str) -> None:
    folder = DATA / name if (DATA / name).is_dir() else Path(os.environ.get("STEPLADDER_TRACES", "")) / name
    if not (folder / "rank-0.json.gz").is_file():
        pytest.skip("needs the real traces: set STEPLADDER_TRACES to their folder")
    trace = read_trace(folder / "rank-0.json.gz", detail=True, num_threads=1)
    peaks, held = memory_peaks(trace), held_at_peak(trace)
    keys = ["device_type", "device"]
    summed = held.group_by(keys).agg(pl.col("bytes").sum())
    assert summed.sort(keys).rows() == peaks.select(*keys, "peak_bytes").sort(keys).rows()
    assert memory_timeline(trace).height == 0 or name != "cpu_only"


ROWS = [
    [-1, 0, 100, 0],
    [-1, 0, 50, 1],
    [2000, 1, 30, 4],
    [2000, 1, 5, 3],
    [3000, 3, -5, 3],
    [4000, 2, -30, 4],
    [4000, 2, 30, 5],
]


def test_the_timeline_by_category_is_the_running_sum(tmp_path: Path) -> None:
    plain, packed = tmp_path / "memory.raw.json", tmp_path / "memory.raw.json.gz"
    plain.write_text(json.dumps(ROWS))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = read_memory_timeline(packed)
    assert table.equals(read_memory_timeline(plain))
    assert table["ts"].to_list() == [0, 1000, 2000]
    found = {name: table[name].to_list() for name in CATEGORIES if any(table[name])}
    assert found == {
        "parameter": [100, 100, 100],
        "optimizer_state": [50, 50, 50],
        "temporary": [5, 0, 0],
        "activation": [30, 30, 0],
        "gradient": [0, 0, 30],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[1]",
        "[[1, 2, 3]]",
        '[[1, 2, "3", 4]]',
        "[[1, 2, 3, 8]]",
        "[[1, 2, 3, -1]]",
        "[[1e400, 1, 1, 1]]",
    ],
)
def test_a_file_that_is_no_timeline_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(text)
    with pytest.raises(TraceError, match="memory timeline") as caught:
        read_memory_timeline(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TraceError, match="no such"):
        read_memory_timeline(tmp_path / "none.json")
    path.write_text("[]")
    assert read_memory_timeline(path).height == 0
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode())[:-9])
    with pytest.raises(TraceError, match="cannot be read"):
        read_memory_timeline(path)
