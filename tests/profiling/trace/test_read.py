"""Traces of every dialect become the same table, and damage costs no more than what is damaged."""

import gzip
import json
import zlib
from decimal import Decimal
from operator import attrgetter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stepladder.profiling.errors import TraceError
from stepladder.profiling.trace import source as source_module
from stepladder.profiling.trace.cache import cache_folder
from stepladder.profiling.trace.files import trace_files
from stepladder.profiling.trace.job import Reading, for_each, open_trace
from stepladder.profiling.trace.kinds import Kind, kind_of
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.operations import operations
from stepladder.profiling.trace.source import Limits
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"
REAL = sorted(DATA.glob("*/rank-*.json.gz"))


def event(**keys: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 2, "ts": 10.5, "dur": 1.25} | keys


def write(folder: Path, *events: Any, text: str | None = None, **members: Any) -> Path:
    path = folder / "rank-3.json"
    path.write_text(text if text is not None else json.dumps({**members, "traceEvents": list(events)}))
    return path


def listed(*events: str) -> str:
    """A trace of events that need not be JSON."""
    return '{"traceEvents": [' + ", ".join(events) + "]}"


def rows(trace: Trace, *columns: str) -> list[tuple[Any, ...]]:
    return trace.events.select(columns).rows()


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name + path.name[4:6])
def test_a_real_trace_is_what_pythons_reader_says_it_is(path: Path) -> None:
    trace = read_trace(path, detail=True)
    raw = json.loads(gzip.decompress(path.read_bytes()), strict=False, parse_float=Decimal)
    base = raw.get("baseTimeNanoseconds", 0)
    events = [each for each in raw["traceEvents"] if each.get("ph") == "X" and "dur" in each]

    def ns(value: Any) -> int:
        return int(Decimal(value) * 1000)

    expected = sorted(
        (ns(each["ts"]) + base, ns(each["dur"]), each["name"], each.get("args", {}).get("correlation", -1))
        for each in events
    )
    assert sorted(rows(trace, "ts", "dur", "name", "correlation")) == expected
    shapes = sorted(json.dumps(each["args"]["Input Dims"]) for each in events if "Input Dims" in each.get("args", {}))
    found = sorted(json.dumps(json.loads(text)) for text in trace.argument("Input Dims")["value"].to_list())
    assert found == shapes
    assert trace.notes == ()


@pytest.mark.parametrize("piece_bytes", [1 << 10, 5000, 4 << 20])
def test_where_the_text_is_cut_does_not_matter(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = DATA / "amd_mi250_minitoy" / "rank-0.json.gz"
    whole = read_trace(path, detail=True)
    monkeypatch.setattr(source_module, "PIECE_BYTES", piece_bytes)
    cut = read_trace(path, detail=True)
    assert cut.events.drop("name", "track").equals(whole.events.drop("name", "track"))
    assert cut.events["name"].cast(pl.String).equals(whole.events["name"].cast(pl.String))
    assert set(cut.args) == set(whole.args)


def test_times_are_exact_to_the_nanosecond_however_large(tmp_path: Path) -> None:
    times = ("1694000000123456.789", "1694000000123456.790", "1.6e15")
    text = listed(*(json.dumps(event()).replace("10.5", ts) for ts in times))
    found = read_trace(write(tmp_path, text=text))
    assert found.events["ts"].to_list() == [1600000000000000000, 1694000000123456789, 1694000000123456790]
    assert found.events["dur"].to_list() == [1250] * 3


def test_digits_below_a_nanosecond_are_cut_off(tmp_path: Path) -> None:
    text = json.dumps({"traceEvents": [event()]}).replace("10.5", "10.12345678")
    assert read_trace(write(tmp_path, text=text)).events["ts"].to_list() == [10123]


def test_the_base_time_of_the_file_is_added(tmp_path: Path) -> None:
    found = read_trace(write(tmp_path, event(), baseTimeNanoseconds=1_700_000_000_000_000_000))
    assert found.base_ns == 1_700_000_000_000_000_000
    assert found.events["ts"].to_list() == [1_700_000_000_000_010_500]


@pytest.mark.parametrize("base", [1 << 70, 1 << 61, -(1 << 70), -5, "x", 1.5, None, 0])
def test_a_base_time_that_is_no_date_is_left_out_everywhere(tmp_path: Path, base: object) -> None:
    instant = {"ph": "i", "name": "mark", "pid": 1, "tid": 2, "ts": 4}
    found = read_trace(write(tmp_path, event(), instant, baseTimeNanoseconds=base))
    assert found.events["ts"].to_list() == [10500]
    assert found.instants["ts"].to_list() == [4000]
    assert found.base_ns == 0
    assert operations(found, compat=True).height == 1


def test_members_behind_the_events_are_read_as_those_before_them(tmp_path: Path) -> None:
    info = '"distributedInfo": {"rank": 7, "world_size": 8}'
    devices = '"deviceProperties": [{"id": 0}, {"id": 1}]'
    before = "{" + info + ', "traceEvents": [' + json.dumps(event()) + "]}"
    behind = listed(json.dumps(event()))[:-1] + f", {devices}, {info}}}"
    for text in (behind, before):
        trace = read_trace(write(tmp_path, text=text))
        assert (trace.rank, trace.events.height, trace.notes) == (7, 1, ())


def test_a_bare_list_of_events_is_a_trace(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, text=json.dumps([event(), event(ts=3)], indent=3)))
    assert trace.events["ts"].to_list() == [3000, 10500]
    assert trace.rank == 3  # by the name of the file


MIXED: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("a number as a text", {"args": {"stream": "7"}}, "stream", [-1, 7]),
    ("a hexadecimal text", {"args": {"correlation": "0x10"}}, "correlation", [-1, 16]),
    ("a text that is no number", {"args": {"stream": "default"}}, "stream", [-1, -1]),
    ("a list instead of a number", {"args": {"stream": [1]}}, "stream", [-1, -1]),
    ("a number with a point", {"args": {"stream": 7.0}}, "stream", [-1, 7]),
    ("arguments that are none", {"args": [1, 2]}, "stream", [-1, -1]),
    ("a number beyond 64 bits", {"args": {"stream": 1 << 70}}, "stream", [-1, -1]),
]


@pytest.mark.parametrize(("odd", "column", "expected"), [each[1:] for each in MIXED], ids=[each[0] for each in MIXED])
def test_values_of_another_type_are_understood_or_left_out(
    tmp_path: Path, odd: dict[str, Any], column: str, expected: list[Any]
) -> None:
    trace = read_trace(write(tmp_path, event(), event(ts=11, **odd)))
    assert trace.events[column].to_list() == expected
    assert trace.notes == ()


def test_processes_with_words_for_names_are_told_apart(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, event(pid="Spans"), event(pid="Traces"), event(pid=5), event(pid="Spans")))
    found = trace.events.join(trace.tracks, on="track")["process"].to_list()
    assert sorted(found, key=str) == [None, "Spans", "Spans", "Traces"]


@pytest.mark.parametrize("value", ["NaN", "nan", "-inf", "Infinity", "-nan(ind)"])
def test_numbers_that_are_none_do_not_cost_the_event(tmp_path: Path, value: str) -> None:
    text = json.dumps({"traceEvents": [event(args={"memory bandwidth (GB/s)": 0.125, "bytes": 5})]})
    trace = read_trace(write(tmp_path, text=text.replace("0.125", value)))
    assert trace.argument("bytes")["value"].to_list() == [5]


@pytest.mark.parametrize("name", ["tab\there", "nul\x00", "quote\\q", "lone \\ud800"])
def test_names_that_are_not_json_do_not_cost_the_event(tmp_path: Path, name: str) -> None:
    text = listed(json.dumps(event()).replace("aten::mm", name), json.dumps(event(ts=99)))
    trace = read_trace(write(tmp_path, text=text))
    lost = 1 if "\\q" in name else 0
    assert trace.events.height == 2 - lost
    assert len(trace.notes) == lost


def test_a_key_that_occurs_twice_does_not_cost_the_event(tmp_path: Path) -> None:
    text = listed(json.dumps(event(args={"stream": 4})).replace('"stream"', '"stream": 3, "stream"'))
    assert read_trace(write(tmp_path, text=text)).events["stream"].to_list() == [4]


def test_an_event_that_cannot_be_read_is_counted_and_the_others_stand(tmp_path: Path) -> None:
    good = json.dumps(event())
    trace = read_trace(write(tmp_path, text=listed(good, '{"ph": oops}', good)))
    assert trace.events.height == 2
    assert trace.notes == ("1 events cannot be read and were left out",)


def test_a_file_that_ends_too_early_gives_what_it_has(tmp_path: Path) -> None:
    text = json.dumps({"traceEvents": [event(ts=i) for i in range(50)]})
    trace = read_trace(write(tmp_path, text=text[: len(text) // 2]))
    assert 20 <= trace.events.height <= 25
    assert len(trace.notes) == 1
    packed = tmp_path / "rank-0.json.gz"
    whole = gzip.compress((DATA / "amd_mi250_minitoy" / "rank-0.json.gz").read_bytes(), 0)
    packed.write_bytes(gzip.compress(gzip.decompress(gzip.decompress(whole)))[:-2000])
    trace = read_trace(packed)
    assert 20 < trace.events.height < 113
    assert any("too early" in note for note in trace.notes)


def test_a_damaged_gzip_file_gives_all_that_stands_before_the_damage(tmp_path: Path) -> None:
    text = json.dumps([event(ts=i, name=f"n{i * 7919 % 1000}") for i in range(20_000)]).encode()
    path = tmp_path / "rank-0.json.gz"
    for plain in (text[:2000] + b"]", text):
        packed = gzip.compress(plain)
        path.write_bytes(packed[:-8] + b"\1\2\3\4" + packed[-4:])  # all is there but for the sum
        trace = read_trace(path)
        num_whole = plain.count(b'"ph"')
        assert num_whole - 1 <= trace.events.height <= num_whole
        assert any("gzip data is damaged" in note for note in trace.notes)
        half = len(packed) // 2
        path.write_bytes(packed[:half] + b"\xff" * 200 + packed[half + 200 :])
        before = gzip_prefix(packed[:half])
        trace = read_trace(path)
        assert trace.events.height >= before.count(b'"ph"') - 1 > 0
        assert any("gzip data" in note for note in trace.notes)
    path.write_bytes(b"\x1f\x8bno gzip file at all")
    with pytest.raises(TraceError, match="damaged gzip data"):
        read_trace(path)


def gzip_prefix(packed: bytes) -> bytes:
    """What the first bytes of a gzip file unpack to."""
    return zlib.decompressobj(wbits=31).decompress(packed)


def test_events_without_a_length_are_no_rows_but_are_kept(tmp_path: Path) -> None:
    instant = {"ph": "i", "name": "[memory]", "pid": 1, "tid": 2, "ts": 4, "args": {"Bytes": 512, "Addr": 9}}
    trace = read_trace(write(tmp_path, event(), instant, event(ph="B"), event(dur=-4), event(dur=None)), detail=True)
    assert trace.events.height == 1
    assert trace.instants.select("ts", "name", "Bytes").rows() == [(4000, "[memory]", 512)]


def test_what_contains_another_precedes_it(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, event(dur=1), event(dur=9), event(dur=3), event(ts=1)))
    assert rows(trace, "ts", "dur") == [(1000, 1250), (10500, 9000), (10500, 3000), (10500, 1000)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("hello", "not JSON"),
        ("{}", "no 'traceEvents' list"),
        ('{"traceEvents": {}}', "no 'traceEvents' list"),
        ('{"traceEvents": []}', "no event with a time and a length"),
        ('{"traceEvents": [1, "x", null]}', "no event with a time and a length"),
    ],
)
def test_what_is_no_trace_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text=text)
    with pytest.raises(TraceError, match=expected) as raised:
        read_trace(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_limits_hold(tmp_path: Path) -> None:
    path = write(tmp_path, *(event(ts=i) for i in range(2000)))
    with pytest.raises(TraceError, match="GiB unpacked"):
        read_trace(path, limits=Limits(max_bytes=1 << 17))
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(listed(*[json.dumps(event())] * 50_000).encode()))
    with pytest.raises(TraceError, match="times its size"):
        read_trace(bomb, limits=Limits(max_ratio=50, ratio_from_bytes=1 << 20))
    endless = write(tmp_path, text=listed("{}," * (12 << 20)))
    with pytest.raises(TraceError, match="an event longer than 32 MiB"):
        read_trace(endless)


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    deep = listed(json.dumps(event()), '{"ph": "X", "args": ' + "[" * 200_000 + "}")
    assert read_trace(write(tmp_path, text=deep)).events.height == 1


def test_kinds_go_by_category_and_not_by_stream() -> None:
    assert kind_of("kernel", "ncclDevKernel_AllReduce_Sum_bf16") is Kind.COMMUNICATION
    assert kind_of("kernel", "void vllm::cross_device_reduce_1stage<bf16, 8>") is Kind.COMMUNICATION
    assert kind_of("kernel", "hip_gemm") is Kind.COMPUTE
    assert kind_of("Kernel", "Memcpy_kernel") is Kind.MEMORY
    assert kind_of("gpu_memcpy", "Memcpy HtoD") is Kind.MEMORY
    assert kind_of("cpu_op", "nccl:all_reduce") is Kind.OPERATOR
    assert kind_of(None, None) is Kind.OTHER


def test_a_second_look_comes_from_the_cache_and_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.json.gz"
    path.write_bytes((DATA / "h100_qwen_18k" / "rank-0.json.gz").read_bytes())
    first = open_trace(path, Reading(detail=True))
    assert cache_folder(path, detail=True).is_dir()
    for table in (first, open_trace(path, Reading(detail=True)), open_trace(path, Reading())):
        assert table.events.equals(first.events)
        assert table.instants.equals(first.instants)
        assert {key: frame.rows() for key, frame in table.args.items()} == {
            key: frame.rows() for key, frame in first.args.items()
        }
    path.write_bytes((DATA / "cpu_only" / "rank-0.json.gz").read_bytes())
    assert open_trace(path, Reading()).events.height == 16  # another file has its own


def test_a_damaged_cache_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.json.gz"
    path.write_bytes((DATA / "cpu_only" / "rank-0.json.gz").read_bytes())
    open_trace(path, Reading())
    for name in ("events.arrow", "about.json"):
        (cache_folder(path, detail=False) / name).write_bytes(b"damaged")
        assert open_trace(path, Reading()).events.height == 16


def test_a_folder_is_read_rank_by_rank_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    for rank in (0, 1):
        source = DATA / "sampled_2rank" / f"rank-{rank}.json.gz"
        (tmp_path / f"{rank}.json.gz").write_bytes(source.read_bytes())
    (tmp_path / "again.json.gz").write_bytes((DATA / "sampled_2rank" / "rank-1.json.gz").read_bytes())
    (tmp_path / "other.json").write_text("hello")
    done, problems = for_each(trace_files([tmp_path]), attrgetter("events.height"), Reading(num_processes=1))
    assert [(each.rank, each.result) for each in done] == [(0, 4811), (1, 4676)]
    assert len(problems) == 2
    assert any("says that it is rank 1" in each for each in problems)
    for num_processes in (1, 2):
        told: list[tuple[int, int]] = []
        again, _ = for_each(
            trace_files([tmp_path]),
            attrgetter("events.height"),
            Reading(num_processes=num_processes, cache=num_processes == 1),
            progress=lambda done, of: told.append((done, of)),  # noqa: B023
        )
        assert [(each.rank, each.result) for each in again] == [(0, 4811), (1, 4676)]
        size = sum(path.stat().st_size for path in trace_files([tmp_path]))
        assert told == sorted(told)
        assert told[-1] == (size, size)
        assert len(set(told)) > 2


def test_ranks_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for rank in (10, 2, 1):
        (tmp_path / f"trace_{rank}.json").write_text("{}")
    assert [path.name for path in trace_files([tmp_path])] == ["trace_1.json", "trace_2.json", "trace_10.json"]


def test_of_our_own_windows_the_last_one_of_each_rank_is_taken(tmp_path: Path) -> None:
    for name in ("rank-0.step-9", "rank-0.step-12", "rank-1.step-9"):
        (tmp_path / f"{name}.pt.trace.json").write_text("{}")
    names = [path.name for path in trace_files([tmp_path])]
    assert names == ["rank-0.step-12.pt.trace.json", "rank-1.step-9.pt.trace.json"]


def test_a_folder_without_traces_and_a_missing_file_are_one_sentence_each(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace in this folder"):
        trace_files([tmp_path])
    with pytest.raises(TraceError, match="no such file or folder"):
        trace_files([tmp_path / "nowhere"])
