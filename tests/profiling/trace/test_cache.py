"""What was made of a trace is kept beside it, and believed as long as trace and code are the same."""

import time
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from stepladder.profiling.trace import cache
from stepladder.profiling.trace.cache import kept_tables
from stepladder.profiling.trace.job import Reading, open_trace
from stepladder.profiling.trace.makers import STANDARD
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"


def when_made(trace: Trace, *, word: str = "") -> dict[str, pl.DataFrame]:
    return {"made": pl.DataFrame({"at": [time.perf_counter_ns()], "word": [word], "rows": [trace.events.height]})}


def put(folder: Path, name: str) -> Path:
    path = folder / "rank-0.json.gz"
    path.write_bytes((DATA / name / "rank-0.json.gz").read_bytes())
    return path


def test_tables_are_made_once_and_are_the_same_afterwards(tmp_path: Path) -> None:
    path = put(tmp_path, "h100_qwen_18k")
    for make in STANDARD:
        plain = make(open_trace(path, Reading(cache=False)))
        for _ in range(2):
            found = kept_tables(open_trace(path, Reading()), make)
            assert list(found) == list(plain)
            for name, table in plain.items():
                assert_frame_equal(found[name], table)


def test_the_same_function_of_the_same_trace_is_not_called_again(tmp_path: Path) -> None:
    path = put(tmp_path, "cpu_only")
    first = kept_tables(open_trace(path, Reading()), when_made)["made"]
    assert kept_tables(open_trace(path, Reading()), when_made)["made"].equals(first)
    other = kept_tables(open_trace(path, Reading()), partial(when_made, word="x"))["made"]
    assert other["word"].to_list() == ["x"]
    assert kept_tables(open_trace(path, Reading()), when_made)["made"].equals(first)


def test_another_trace_other_code_and_a_nameless_function_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "cpu_only")
    first = kept_tables(open_trace(path, Reading()), when_made)["made"]
    nameless = kept_tables(open_trace(path, Reading()), lambda trace: when_made(trace))["made"]
    assert not nameless.equals(first)
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_code", lambda: "other")
        assert not kept_tables(open_trace(path, Reading()), when_made)["made"].equals(first)
    assert not kept_tables(open_trace(path, Reading()), when_made)["made"].equals(first)  # one code's are kept
    put(tmp_path, "vllm_decode_graph")
    assert kept_tables(open_trace(path, Reading()), when_made)["made"]["rows"].to_list() == [1539]


def test_without_a_cache_and_with_a_damaged_one_tables_are_made(tmp_path: Path) -> None:
    path = put(tmp_path, "cpu_only")
    uncached = [kept_tables(open_trace(path, Reading(cache=False)), when_made)["made"] for _ in range(2)]
    assert not uncached[0].equals(uncached[1])
    trace = open_trace(path, Reading())
    first = kept_tables(trace, when_made)["made"]
    assert trace.kept_in is not None
    for name in ("0.arrow", "names.json"):
        for kept in trace.kept_in.glob(f"made-*/{name}"):
            kept.write_bytes(b"damaged")
        again = kept_tables(open_trace(path, Reading()), when_made)["made"]
        assert not again.equals(first)
        first = again
        assert kept_tables(open_trace(path, Reading()), when_made)["made"].equals(first)
