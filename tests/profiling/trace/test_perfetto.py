"""The annotated trace: the source's events untouched, ours beside them, and always whole JSON."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.perfetto import PROCESS, counters_of, ranges_of, write_annotated

DATA = Path(__file__).parent / "data"
TRACES = sorted(DATA.glob("*/rank-0.json.gz"))


def document(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    return json.loads(gzip.decompress(text) if text[:2] == b"\x1f\x8b" else text, parse_constant=pytest.fail)


def kernel(name: str, ts: float, dur: float, stream: int = 7, **more: Any) -> dict[str, Any]:
    args = {"stream": stream, "device": 0, "correlation": 1}
    return {
        "ph": "X",
        "cat": "kernel",
        "name": name,
        "pid": 0,
        "tid": stream,
        "ts": ts,
        "dur": dur,
        "args": args,
    } | more


def written(path: Path, events: list[dict[str, Any]], **header: Any) -> Path:
    path.write_text(json.dumps({**header, "traceEvents": events}))
    return path


def ours(made: dict[str, Any]) -> list[dict[str, Any]]:
    [pid] = [e["pid"] for e in made["traceEvents"] if e.get("name") == "process_name" and e["args"]["name"] == PROCESS]
    return [event for event in made["traceEvents"] if event.get("pid") == pid]


@pytest.mark.parametrize("path", TRACES, ids=[path.parent.name for path in TRACES])
def test_a_real_trace_comes_through_unchanged_and_ours_is_added(path: Path, tmp_path: Path) -> None:
    trace = read_trace(path)
    assert write_annotated(trace, tmp_path / "annotated.json.gz") == []
    made, source = document(tmp_path / "annotated.json.gz"), document(path)
    events = source.pop("traceEvents")
    assert made["traceEvents"][: len(events)] == events
    assert {key: value for key, value in made.items() if key != "traceEvents"} == source
    added = ours(made)
    assert added == made["traceEvents"][len(events) :]
    assert {event["ph"] for event in added} <= {"M", "C", "X"}
    again = read_trace(tmp_path / "annotated.json.gz")
    assert again.steps.drop("track").equals(trace.steps.drop("track"))
    assert again.device["dur"].sum() == trace.device["dur"].sum()


def test_counters_and_ranges_stand_at_the_source_s_own_times_to_the_nanosecond(tmp_path: Path) -> None:
    base = 1_700_000_000_123_456_789
    events = [
        {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#4", "pid": 9, "tid": 9, "ts": 100.001, "dur": 50},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 9, "tid": 9, "ts": 101, "dur": 1}
        | {"args": {"correlation": 1}},
        kernel("a", 110.002, 10.003),
        kernel("nccl_b", 115.000, 20.000, stream=9),
    ]
    path = written(tmp_path / "t.json", events, baseTimeNanoseconds=base)
    trace = read_trace(path)
    assert trace.steps["ts"].to_list() == [base + 100_001]
    write_annotated(trace, tmp_path / "annotated.json")
    added = ours(document(tmp_path / "annotated.json"))
    assert [(e["name"], e["ts"], e["dur"]) for e in added if e["ph"] == "X"] == [("step 4", 100.001, 50.0)]
    running = [(e["ts"], e["args"]) for e in added if e["ph"] == "C" and e["name"] == "running"]
    assert sorted(running, key=lambda each: each[0]) == [
        (110.002, {"compute": 1.0}),
        (115.0, {"communication": 1.0}),
        (120.005, {"compute": 0.0}),
        (135.0, {"communication": 0.0}),
    ]
    queue = [(e["ts"], *e["args"].values()) for e in added if e["ph"] == "C" and e["name"].startswith("queue")]
    assert (101.0, 1.0) in queue
    assert (110.002, 0.0) in queue


def test_idle_times_are_what_no_kernel_of_the_device_covers(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.json", [kernel("a", 0, 10), kernel("b", 4, 2, 8), kernel("c", 25, 5), kernel("d", 30, 1)]
    )
    ranges = ranges_of(read_trace(path)).filter(pl.col("track") == "idle on GPU 0")
    assert ranges.select("start_ns", "dur_ns").rows() == [(10_000, 15_000)]


def test_the_number_of_running_kernels_agrees_with_counting_them() -> None:
    trace = read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz")
    counters = counters_of(trace).filter((pl.col("track") == "running") & (pl.col("series") == "compute"))
    kernels = trace.device.filter((pl.col("kind") == "compute") & (pl.col("dur") > 0))
    begin, end = kernels["ts"].to_numpy(), (kernels["ts"] + kernels["dur"]).to_numpy()
    assert len(counters) > 100
    for ts, value in counters.select("ts_ns", "value").gather_every(97).rows():
        assert value == ((begin <= ts) & (end > ts)).sum()


def test_our_process_has_a_number_that_is_not_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "t.json", [kernel("a", 0, 10, pid=1 << 30)])
    trace = read_trace(path)
    write_annotated(trace, tmp_path / "annotated.json")
    made = document(tmp_path / "annotated.json")
    assert made["traceEvents"][0] not in ours(made)


@pytest.mark.parametrize("packed", [False, True])
def test_a_source_cut_anywhere_still_gives_whole_json(packed: bool, tmp_path: Path) -> None:
    text = gzip.decompress((DATA / "vllm_decode_graph" / "rank-0.json.gz").read_bytes())
    for share in (0.3, 0.61, 0.9, 0.9999):
        cut = text[: int(len(text) * share)]
        path = tmp_path / "cut.json"
        path.write_bytes(gzip.compress(cut)[:-20] if packed else cut)
        trace = read_trace(path)
        notes = write_annotated(trace, tmp_path / "annotated.json")
        made = document(tmp_path / "annotated.json")
        whole = json.loads(text)["traceEvents"]
        num_whole = len(made["traceEvents"]) - len(ours(made))
        assert made["traceEvents"][:num_whole] == whole[:num_whole]
        assert num_whole > 0
        assert notes


def test_what_json_has_no_word_for_is_mended_or_left_out_and_said(tmp_path: Path) -> None:
    good = json.dumps(kernel("a", 0, 10))
    nan = json.dumps(kernel("b", 20, 10)).replace('"device": 0', '"device": 0, "x": NaN')
    control = json.dumps(kernel("c?", 40, 10)).replace("?", "\x01")
    broken = '{"ph": "X", "name": "said "so"", "ts": 1, "dur": 1}'
    path = tmp_path / "t.json"
    path.write_text(f'{{"load": Infinity, "traceEvents": [{good}, {nan}, {control}, {broken}, {good}]}}')
    notes = write_annotated(read_trace(path), tmp_path / "annotated.json")
    made = document(tmp_path / "annotated.json")
    names = [event["name"] for event in made["traceEvents"] if event.get("cat") == "kernel"]
    assert names == ["a", "b", "c\x01", "a"]
    assert made["load"] is None
    assert any("1 events cannot be read" in note for note in notes)


@pytest.mark.parametrize("number", ["NaN", "-NaN", "Infinity", "-Infinity", "Inf", "-Inf"])
def test_numbers_that_json_does_not_have_are_null_though_the_rest_of_the_piece_is_json(
    number: str, tmp_path: Path
) -> None:
    told = f'is, {number}, " [{number}] '
    events = [kernel("a", 0, 10), kernel(told, 20, 10), kernel("c", 40, 10)]
    text = json.dumps({"traceEvents": events}).replace(
        '"device": 0', f'"device": 0, "x": {number}, "y": [1.50,{number}]'
    )
    path = tmp_path / "t.json"
    path.write_text(text)
    assert write_annotated(read_trace(path), tmp_path / "annotated.json") == []
    made = [event for event in document(tmp_path / "annotated.json")["traceEvents"] if event.get("cat") == "kernel"]
    assert [event["name"] for event in made] == ["a", told, "c"]
    assert [(event["args"]["x"], event["args"]["y"]) for event in made] == [(None, [1.5, None])] * 3


def test_names_of_ranges_and_counters_cannot_break_the_document(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.json", [kernel("a", 0, 10)]))
    name = 'a"}, {"\\\n\u2028{}'
    ranges = pl.DataFrame({"track": [name], "start_ns": [-1500], "dur_ns": [7], "name": [name]})
    counters = pl.DataFrame(
        {"track": [name] * 2, "series": [name] * 2, "ts_ns": [1, 2], "value": [1e-12, float("nan")]}
    )
    write_annotated(trace, tmp_path / "annotated.json", counters=counters, ranges=ranges)
    added = ours(document(tmp_path / "annotated.json"))
    [shown] = [event for event in added if event["ph"] == "X"]
    assert (shown["name"], shown["ts"], shown["dur"]) == (name, -1.5, 0.007)
    assert [event["args"] for event in added if event["ph"] == "C"] == [{name: 1e-12}]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(num_events: int) -> int:
        text = ",\n".join(json.dumps(kernel(f"k{i % 50}", i * 10, 9, padding="x" * 400)) for i in range(num_events))
        path = tmp_path / "big.json"
        path.write_text('{"traceEvents": [' + text + "]}")
        del text
        trace = read_trace(path)
        none = {"counters": counters_of(trace).clear(), "ranges": ranges_of(trace).clear()}
        tracemalloc.start()
        write_annotated(trace, tmp_path / "annotated.json", **none)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(20_000), peak(60_000)  # 11 and 34 MB of text; a piece is 4 MiB
    assert large < 1.3 * small


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path / "t.json", [kernel("a", 0, 10)])
    trace = read_trace(path)
    target = tmp_path / "annotated.json"
    target.write_text("before")
    with pytest.raises(pl.exceptions.PolarsError):
        write_annotated(trace, target, ranges=pl.DataFrame({"track": ["a"]}))
    assert target.read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["annotated.json", "t.json"]
