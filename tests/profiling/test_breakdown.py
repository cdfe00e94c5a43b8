"""Own times against a brute force; whatever a trace file holds, a breakdown or one sentence."""

import gzip
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from stepladder.profiling import breakdown
from stepladder.profiling.breakdown import rank_breakdown, read_events, read_folder, table
from stepladder.profiling.errors import TraceError
from stepladder.profiling.spans import PROFILER_STEP, Span

Interval = tuple[float, float, str]


def event(name: str, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": start, "dur": end - start}


def steps(*ends: float) -> list[dict[str, Any]]:
    return [
        event(f"{PROFILER_STEP}{i}", start, end) for i, (start, end) in enumerate(zip((0, *ends), ends, strict=False))
    ]


BY_HAND = [
    *steps(1000, 3000),
    event(Span.FORWARD, 100, 300),
    event(Span.BACKWARD, 300, 900),
    event(Span.GRADIENT_SYNC, 800, 900),
    event(Span.FORWARD, 1100, 1400),
    event(Span.BACKWARD, 1500, 2500),
    event(Span.GRADIENT_SYNC, 2000, 2400),
    event(Span.DATA_WAIT, -500, -100),  # before the first recorded step
    event(Span.OPTIMIZER, 2900, 3100),  # not over when recording ends
    event("aten::mm", 120, 130),
    {"ph": "X", "cat": "gpu_user_annotation", "name": Span.FORWARD, "ts": 100, "dur": 100},
    {"ph": "i", "cat": "user_annotation", "name": Span.FORWARD, "ts": 100},
]


def test_own_times_by_hand() -> None:
    found = rank_breakdown(BY_HAND, 3)
    assert (found.rank, found.num_steps, found.step_ms) == (3, 2, 1.5)
    assert found.own_ms == pytest.approx(
        {"forward": 0.25, "backward": (500 + 600) / 2000, "gradient_sync": 0.25, "other": 1.5 - 0.25 - 0.55 - 0.25}
    )


def nest(source: random.Random, start: float, end: float, depth: int) -> list[Interval]:
    """Random intervals inside [start, end], properly nested."""
    made: list[Interval] = []
    at = start
    while depth and at < end and source.random() < 0.8:
        left = source.randint(int(at), int(end))
        right = source.randint(left, int(end))
        made.append((left, right, source.choice(list(Span)).value))
        made += nest(source, left, right, depth - 1)
        at = right + 1
    return made


def brute_force(spans: list[Interval], end: int) -> dict[str, float]:
    """For each microsecond the innermost span that covers it: the one that began last, and among those ends first."""
    own: dict[str, float] = defaultdict(float)
    for tick in range(end):
        if covering := [
            (-left, right, -i, name) for i, (left, right, name) in enumerate(spans) if left <= tick < right
        ]:
            own[Span(min(covering)[3]).label] += 1
    return own


def test_own_times_of_random_nestings_equal_a_brute_force() -> None:
    source = random.Random(0)
    num_spans = 0
    for _ in range(60):
        spans = nest(source, 0, 400, 4)
        num_spans += len(spans)
        events = [event(name, left, right) for left, right, name in spans] + steps(400)
        found = rank_breakdown(events, 0)
        truth = brute_force(spans, 400)
        named = {label: ms * 1000 for label, ms in found.own_ms.items() if label != "other" and ms}
        assert named == pytest.approx(truth)
        assert sum(found.own_ms.values()) == pytest.approx(found.step_ms)
        assert found.own_ms["other"] * 1000 == pytest.approx(400 - sum(truth.values()), abs=1e-6)
    assert num_spans > 300


def write(path: Path, events: list[Any]) -> Path:
    raw = json.dumps({"traceEvents": events}).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def test_the_newest_trace_of_every_rank_counts(tmp_path: Path) -> None:
    write(tmp_path / "rank-0.step-9.pt.trace.json.gz", steps(1000))
    write(tmp_path / "rank-0.step-10.pt.trace.json.gz", steps(2000, 4000))
    write(tmp_path / "rank-10.step-5.pt.trace.json", steps(3000))
    write(tmp_path / "rank-2.step-5.pt.trace.json.gz", steps(5000))
    (tmp_path / "rank-3.memory.pickle").write_bytes(b"not a trace")
    (tmp_path / ".partial-rank-4.step-5.pt.trace.json.gz").write_bytes(b"half of one")
    found = read_folder(tmp_path)
    assert [(each.rank, each.num_steps, each.step_ms) for each in found] == [(0, 2, 2.0), (2, 1, 5.0), (10, 1, 3.0)]


def test_the_table_adds_up_and_shows_eight_ranks() -> None:
    ranks = [rank_breakdown(BY_HAND, rank) for rank in range(10)]
    lines = table(ranks).splitlines()
    assert lines[0].endswith("mean of 2 profiled steps")
    assert [line.split()[0] for line in lines[2:]] == ["forward", "backward", "gradient_sync", "other", "step", "(2"]
    shares = [float(line.split()[2]) for line in lines[2:6]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert lines[6].split()[1:3] == ["1.500", "100.0"]
    assert "rank 7" in lines[1]
    assert "rank 8" not in lines[1]


def gz(raw: bytes) -> bytes:
    return gzip.compress(raw)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "truncated": (gz(json.dumps({"traceEvents": BY_HAND}).encode())[:-20], "damaged"),
    "not gzip": (b"plain text", "damaged"),
    "broken stream": (gz(b"x" * 1000)[:15] + b"\xff" * 40, "damaged"),
    "empty": (b"", "not a complete JSON"),
    "not JSON": (gz(b"{'traceEvents': []}"), "not a complete JSON"),
    "half of JSON": (gz(b'{"traceEvents": [{'), "not a complete JSON"),
    "not text": (gz(b"\xff\xfe\xfa"), "not a complete JSON"),
    "deeply nested": (gz(b"[" * 200_000), "not a complete JSON"),
    "huge number": (gz(b'{"traceEvents": [' + b"1" * 5000 + b"]}"), "not a complete JSON"),
    "a list": (gz(b"[]"), "no 'traceEvents'"),
    "no events": (gz(b'{"schemaVersion": 1}'), "no 'traceEvents'"),
    "events are no list": (gz(b'{"traceEvents": {}}'), "no 'traceEvents'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    raw, sentence = DAMAGED[name]
    path = tmp_path / "rank-0.step-3.pt.trace.json.gz"
    path.write_bytes(raw)
    with pytest.raises(TraceError, match=sentence) as caught:
        read_events(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_stepless_and_large_traces_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TraceError, match="no such trace"):
        read_events(tmp_path / "rank-0.step-3.pt.trace.json.gz")
    with pytest.raises(TraceError, match="no trace named like"):
        read_folder(tmp_path)
    with pytest.raises(TraceError, match="damaged or unreadable"):
        read_events(tmp_path)
    with pytest.raises(TraceError, match="rank 4: no 'ProfilerStep#'"):
        rank_breakdown([event(Span.FORWARD, 0, 1)], 4)

    path = write(tmp_path / "rank-0.step-3.pt.trace.json.gz", BY_HAND * 100)
    size = len(gzip.decompress(path.read_bytes()))
    monkeypatch.setattr(breakdown, "MAX_TRACE_BYTES", size)
    assert len(read_events(path)) == 100 * len(BY_HAND)
    monkeypatch.setattr(breakdown, "MAX_TRACE_BYTES", size - 1)
    with pytest.raises(TraceError, match="larger than"):
        read_events(path)


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    -1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    {},
    [[]],
    Span.CLIP,
]


def test_mutated_traces_give_a_breakdown_or_a_sentence_and_nothing_else(tmp_path: Path) -> None:
    source = random.Random(1)
    path = tmp_path / "rank-0.step-3.pt.trace.json"
    outcomes = {"table": 0, "sentence": 0}
    for turn in range(600):
        events: list[Any] = json.loads(json.dumps(BY_HAND))
        for _ in range(source.randint(1, 4)):
            chosen = source.randrange(len(events))
            if source.random() < 0.1 or not isinstance(events[chosen], dict) or not events[chosen]:
                events[chosen] = source.choice(ODD)
            else:
                events[chosen][source.choice(list(events[chosen]))] = source.choice(ODD)
        raw = bytearray(json.dumps({"traceEvents": events}).encode())
        if turn % 3 == 0:
            raw[source.randrange(len(raw))] = source.randrange(256)
        path.write_bytes(raw)
        try:
            found = read_folder(tmp_path)
        except TraceError:
            outcomes["sentence"] += 1
            continue
        assert table(found)
        assert all(ms >= 0 for each in found for ms in each.own_ms.values()), events
        outcomes["table"] += 1
    assert min(outcomes.values()) > 50
