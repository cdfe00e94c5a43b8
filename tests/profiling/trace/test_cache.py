"""What was made of a trace is kept beside it, and believed as long as trace and code are the same."""

import gzip
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from stepladder.profiling.trace import cache
from stepladder.profiling.trace.cache import cache_folder, kept_tables, load_cached
from stepladder.profiling.trace.job import Reading, open_trace
from stepladder.profiling.trace.makers import STANDARD
from stepladder.profiling.trace.source import Source
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


def grow_once(monkeypatch: pytest.MonkeyPatch, path: Path, rest: bytes) -> None:
    """A writer that appends to the file after its reader has seen the end."""
    found = Source._last
    left = [rest]

    def last(self: Source, *args: Any, **keys: Any) -> Iterator[bytes]:
        with path.open("ab") as file:
            file.write(left.pop() if left else b"")
        return found(self, *args, **keys)

    monkeypatch.setattr(Source, "_last", last)


def test_a_file_that_grows_while_it_is_read_is_not_kept_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = gzip.decompress((DATA / "amd_mi250_minitoy" / "rank-0.json.gz").read_bytes())
    path = tmp_path / "rank-0.json"
    path.write_bytes(text[: len(text) // 2])
    grow_once(monkeypatch, path, text[len(text) // 2 :])
    half = open_trace(path, Reading())
    assert any("changed while it was read" in note for note in half.notes)
    assert half.kept_in is None
    for _ in range(2):
        whole = open_trace(path, Reading())
        assert (whole.events.height, whole.notes) == (113, ())
        assert half.events.height < 113
    assert whole.kept_in is not None


def forged(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what is said about a cache, and seal it as one who knows how."""
    about = cache._sealed((folder / "about.json").read_text())
    change(about)
    (folder / "about.json").write_text(cache._seal(about))


def rewritten(folder: Path, name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    table = change(pl.read_ipc((folder / f"{name}.arrow").read_bytes()))
    known = cache._keep(table, folder / f"{name}.arrow")
    forged(folder, lambda about: about["sums"].update({name: known}))


ts_is = pl.col("ts")
TAMPERED: dict[str, Callable[[Path], object]] = {
    "header a list": lambda folder: forged(folder, lambda about: about.update(header=[1])),
    "rank a word": lambda folder: forged(folder, lambda about: about.update(rank="x")),
    "rank too large": lambda folder: forged(folder, lambda about: about.update(rank=10**30)),
    "size a word": lambda folder: forged(folder, lambda about: about.update(num_bytes="x")),
    "notes numbers": lambda folder: forged(folder, lambda about: about.update(notes=[1])),
    "sums a list": lambda folder: forged(folder, lambda about: about.update(sums=[])),
    "about a list": lambda folder: (folder / "about.json").write_text("[1]"),
    "about deep": lambda folder: (folder / "about.json").write_text("[" * 100_000),
    "rank another": lambda folder: (folder / "about.json").write_text(
        (folder / "about.json").read_text().replace('"rank": 34', '"rank": 35')
    ),
    "no lengths": lambda folder: rewritten(folder, "events", lambda table: table.drop("dur")),
    "no kinds": lambda folder: rewritten(folder, "events", lambda table: table.drop("kind")),
    "no events": lambda folder: rewritten(folder, "events", lambda table: table.head(0)),
    "times texts": lambda folder: rewritten(folder, "events", lambda t: t.with_columns(ts_is.cast(pl.String))),
    "no times": lambda folder: rewritten(folder, "events", lambda t: t.with_columns(ts=pl.lit(None, dtype=pl.Int64))),
    "no threads": lambda folder: rewritten(folder, "tracks", lambda table: table.head(0)),
    "no table": lambda folder: (folder / "events.arrow").write_bytes(b""),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=list(TAMPERED))
def test_a_cache_that_somebody_changed_is_not_believed(tmp_path: Path, tamper: Callable[[Path], object]) -> None:
    path = put(tmp_path, "cpu_only")
    truth = open_trace(path, Reading())
    assert load_cached(path, detail=False) is not None
    tamper(cache_folder(path, detail=False))
    assert load_cached(path, detail=False) is None
    again = open_trace(path, Reading())
    assert_frame_equal(again.events, truth.events)
    assert (again.rank, again.header, again.num_bytes) == (truth.rank, truth.header, truth.num_bytes)


def test_no_damaged_byte_of_a_kept_table_is_believed(tmp_path: Path) -> None:
    path = put(tmp_path, "cpu_only")
    trace = open_trace(path, Reading())
    first = kept_tables(trace, when_made)["made"]
    folder, generator = cache_folder(path, detail=False), random.Random(0)
    files = [*folder.glob("*.arrow"), folder / "about.json"]
    for _ in range(60):
        file = generator.choice(files)
        sound = file.read_bytes()
        damaged = bytearray(sound)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        assert load_cached(path, detail=False) is None
        file.write_bytes(sound)
    [made] = folder.glob("made-*/0.arrow")
    pl.DataFrame({"other": [1]}).write_ipc(made)
    assert kept_tables(trace, when_made)["made"].columns == first.columns
