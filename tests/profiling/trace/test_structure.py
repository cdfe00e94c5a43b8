"""A trace is read by its brackets and keys, wherever they stand, and no text of brackets keeps the reader busy."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stepladder.profiling.errors import TraceError
from stepladder.profiling.trace import source as source_module
from stepladder.profiling.trace.dialect import as_type, one_by_one
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.perfetto import write_annotated
from stepladder.profiling.trace.structure import last_border, list_begin, list_end
from stepladder.profiling.trace.tables import Trace

INFO = {"distributedInfo": {"rank": 5}}


def event(number: int, **keys: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": f"n{number}", "pid": 1, "tid": 2, "ts": number, "dur": 1} | keys


def first(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda each: {key: value} | {name: kept for name, kept in each.items() if name != key}


NAMED = [{"name": "a"}, {"name": "b", "args": {}}]
LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "id": first("id", "1"),
    "s": first("s", "t"),
    "bp": first("bp", "e"),
    "args": first("args", {"of": NAMED}),
    "sorted": lambda each: dict(sorted(each.items())),
    "objects in a list": lambda each: each | {"args": {"of": NAMED}},
    "objects before the phase": lambda each: {"of": NAMED} | each,
    "texts like borders": lambda each: {"}, {": "}, {", "x": '}, {"ph": 1}]'} | each,
}


def read(path: Path, document: Any, indent: int | None = None) -> Trace:
    path.write_text(json.dumps(document, indent=indent))
    return read_trace(path, num_threads=1)


def short_pieces(patched: pytest.MonkeyPatch) -> None:
    for name in ("PIECE_BYTES", "_READ_BYTES"):
        patched.setattr(source_module, name, 700)


@pytest.mark.parametrize("is_long", [False, True], ids=["one piece", "many pieces"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_in_whatever_order_its_keys_stand_the_same_json_is_the_same_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[[dict[str, Any]], dict[str, Any]], is_long: bool
) -> None:
    if is_long:
        short_pieces(monkeypatch)
    events = [layout(event(number)) for number in range(40)]
    behind = {"traceEvents": events, "deviceProperties": [*NAMED, *NAMED], **INFO}
    before = {**INFO, "deviceProperties": NAMED, "traceEvents": events}
    for document in (events, behind, before):
        for indent in (None, 2):
            trace = read(tmp_path / "t.json", document, indent)
            assert trace.events["ts"].to_list() == [1000 * number for number in range(40)]
            assert trace.rank == (None if document is events else 5)
            assert trace.notes == ()


def test_objects_like_events_in_the_last_event_s_arguments_are_no_events(tmp_path: Path) -> None:
    last = event(2, args={"children": [event(7), event(8)]})
    trace = read(tmp_path / "t.json", {"traceEvents": [event(1), last], **INFO})
    assert (trace.events["ts"].to_list(), trace.rank, trace.notes) == ([1000, 2000], 5, ())


@pytest.mark.parametrize("num_first", [0, 2])
def test_of_two_lists_the_events_of_both_are_read_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_first: int
) -> None:
    events = [json.dumps(event(number)) for number in range(5)]
    lists = [", ".join(each) for each in (events[:num_first], events[num_first:])]
    path = tmp_path / "t.json"
    path.write_text(f'{{"traceEvents": [{lists[0]}], "distributedInfo": {{"rank": 5}}, "traceEvents": [{lists[1]}]}}')
    trace = read_trace(path)
    assert (trace.events.height, trace.rank) == (5, 5)
    assert trace.notes == ("there are two lists 'traceEvents'; the events of both were read",)
    with monkeypatch.context() as patched:
        short_pieces(patched)
        trace = read_trace(path)
        assert trace.events.height == 5
        assert trace.notes


def test_the_list_is_that_of_the_outermost_object_however_its_key_is_written(tmp_path: Path) -> None:
    events = json.dumps([event(1), event(2)])
    path = tmp_path / "t.json"
    for head in (
        '"note": "\\"traceEvents\\": [1]", "traceEvents": ',
        '"inner": {"traceEvents": [{"ph": 1}]}, "traceEvents": ',
        '"traceEvents": null, "trace\\u0045vents": ',
    ):
        path.write_text("{" + head + events + ', "distributedInfo": {"rank": 5}}')
        trace = read_trace(path)
        assert (trace.events.height, trace.rank, trace.notes) == (2, 5, ())


def test_a_byte_order_mark_is_no_part_of_the_trace(tmp_path: Path) -> None:
    for document in ([event(1)], {**INFO, "traceEvents": [event(1)]}):
        (tmp_path / "rank-5.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(document).encode())
        trace = read_trace(tmp_path / "rank-5.json")
        assert (trace.events.height, trace.rank, trace.notes) == (1, 5, ())


def test_what_stands_before_the_events_and_is_no_json_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"x": oops, "traceEvents": [' + json.dumps(event(1)) + "]}")
    trace = read_trace(tmp_path / "t.json")
    assert trace.events.height == 1
    assert trace.notes == ("what stands before the events is no JSON and was left out",)


def test_the_trace_for_perfetto_keeps_events_in_whatever_order_their_keys_stand(tmp_path: Path) -> None:
    good = [json.dumps({"id": "1"} | event(number)) for number in range(3)]
    path = tmp_path / "t.json"
    path.write_text("[" + ", ".join([good[0], '{"id": oops, "ph": "X"}', *good[1:]]) + "]")
    notes = write_annotated(read_trace(path), tmp_path / "out.json")
    made = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert [each["name"] for each in made if each.get("id") == "1"] == ["n0", "n1", "n2"]
    assert notes == ["1 events cannot be read and were left out"]


def test_what_stands_between_events_and_is_none_is_counted() -> None:
    assert list(one_by_one(b'{"a": 1}, oops, {"a": 2}, {"a": 3},')) == [{"a": 1}, None, {"a": 2}, {"a": 3}]


def test_a_border_is_found_where_an_event_begins_even_if_it_is_not_all_there() -> None:
    text = b'{"ph": "X"}, {"args": [{"a": 1}, {"b": 2}], "ph": "X", "na'
    assert last_border(text) == (11, 13)
    assert last_border(text[:40]) is None
    assert list_end(b'{"a": "]"}, {"b": []} ], "c": 1}', 0).bracket == 22
    assert list_end(b'{"a": "]"}, {"b": [', 0).bracket is None
    assert list_begin(b'{"a": {"traceEvents": [1]}, "traceEvents": [ 2]}') == (28, 45)


def test_a_number_too_long_to_be_written_is_none_at_once(tmp_path: Path) -> None:
    text = json.dumps([event(1, args={"stream": 7})]).replace("7", "1e999999999")
    (tmp_path / "t.json").write_text(text)
    assert read_trace(tmp_path / "t.json").events["stream"].to_list() == [-1]
    assert as_type("0x10", "whole") == 16


ONE = json.dumps(event(1)) + ", "
STALLING: dict[str, Callable[[int], str]] = {
    "threads": lambda n: json.dumps(
        [event(i, tid=i) for i in range(n // 10)]
        + [{"ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": {"name": f"t{i}"}} for i in range(n // 10)]
    ),
    "lists of objects": lambda n: "[" + ONE + '{"args":[{}, ' * n,
    "lists of events": lambda n: "[" + ONE + '{"ph":"X","args":[{}, ' * n,
    "a list in the header": lambda n: '{"k":[' + '{"traceEvents":[0]},' * n + '0],"traceEvents":[' + ONE[:-2] + "]}",
    "lists in lists": lambda n: '{"traceEvents":[' + ONE + '"traceEvents":[' * n,
    "lists side by side": lambda n: "{" + '"traceEvents":[],' * n + '"traceEvents":[' + ONE[:-2] + "]}",
    "a text without an end": lambda n: "[" + ONE + '{"' + '\\"' * n,
    "texts": lambda n: "[" + ONE + '{"' * n,
    "an endless list": lambda n: "[" + ONE + '{"args":[' + '{"":0},' * n,
}


@pytest.mark.parametrize("text", STALLING.values(), ids=list(STALLING))
def test_a_text_of_the_same_again_and_again_is_read_in_a_time_that_grows_as_its_length(
    tmp_path: Path, text: Callable[[int], str]
) -> None:
    path = tmp_path / "t.json"

    def seconds(number: int) -> float:
        path.write_text(text(number))
        begin = time.process_time()
        with suppress(TraceError):
            read_trace(path, num_threads=1)
        return time.process_time() - begin

    seconds(100)
    assert seconds(40_000) < 10  # two seconds at most, and minutes where it grows as the square
