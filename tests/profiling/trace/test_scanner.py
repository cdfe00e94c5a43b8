"""The compiled scanner says what Arrow and Python's reader say, or that it does not know."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.profiling.trace.compiled import library
from stepladder.profiling.trace.parse import Parser
from stepladder.profiling.trace.piece import ARGS_WHOLE, DETAIL, SPARSE, WHOLE, Piece
from stepladder.profiling.trace.scanner import scan
from stepladder.profiling.trace.source import Source

ROOT = Path(__file__).parents[3]
DATA = Path(__file__).parent / "data"
TRACES = sorted(
    path for folder in (DATA, Path(os.environ.get("STEPLADDER_TRACES", DATA))) for path in folder.glob("*/rank*.json*")
)

pytestmark = pytest.mark.skipif(library() is None, reason="scan.c was not built: no C compiler at installation")


def test_the_scanner_is_built_where_there_is_a_compiler() -> None:
    assert library() is not None


def said(piece: Piece, words: dict[str, int]) -> dict[str, Any]:
    """All that a piece holds, without the numbers that its parser gave to things."""
    names = {number: word for word, number in words.items()}
    whole = {key: [names.get(each, each) for each in column.tolist()] for key, column in piece.whole.items()}
    texts = {
        key: [said[code] if code >= 0 else None for code in codes.tolist()]
        for key, (codes, said) in piece.texts.items()
    }
    sparse = {
        key: (rows.tolist(), [without_layout(each) for each in values.to_list()])
        for key, (rows, values) in piece.sparse.items()
    }
    return {"ts": piece.ts.tolist(), "dur": piece.dur.tolist(), "texts": texts, **whole, "args": sparse}


def without_layout(value: Any) -> Any:
    """What a list says, without the blanks that its writer put into it."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("[") else value
    except ValueError:
        return value


@pytest.mark.parametrize("detail", [False, True])
@pytest.mark.parametrize("path", TRACES, ids=lambda path: f"{path.parent.name}-{path.name[:8]}")
def test_real_traces_are_scanned_whole_and_as_arrow_reads_them(path: Path, detail: bool) -> None:
    for text in Source(path=path).pieces():
        mine, other = Parser(detail=detail), Parser(detail=detail, compiled=False)
        scanned = scan(text, SPARSE | DETAIL if detail else SPARSE, mine._word)
        assert scanned is not None
        assert said(scanned, mine.words) == said(other.parse(text), other.words)


plain_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(2**40), 2**40)
times = st.one_of(numbers, st.decimals(-(10**9), 10**15, places=3).map(float))
everything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(allow_nan=False, allow_infinity=False), plain_texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_texts, inner, max_size=3),
    max_leaves=6,
)
spelled_numbers = numbers.map(str) | st.sampled_from(["0x1f", "none", "", "1.5", " 7"])
arguments = st.fixed_dictionaries(
    {},
    optional={
        **{key: numbers | spelled_numbers | st.none() for key in ARGS_WHOLE},
        **{key: plain_texts | numbers | st.none() for key in ("Collective name", "dtype", "name", "Call stack")},
        **{key: numbers | spelled_numbers for key in ("bytes", "In msg nelems", "Addr", "Device Id")},
        **{key: st.integers(0, 9) | st.sampled_from([0.5, 1e3, "2.5"]) for key in ("blocks per SM", "warps per SM")},
        "Input Dims": st.lists(st.lists(numbers, max_size=2), max_size=3),
        "else": everything,
    },
)
events = st.fixed_dictionaries(
    {"ph": st.sampled_from(["X", "i", "M", "C", "s", "f"])},
    optional={
        "ts": times,
        "dur": times.filter(lambda each: each >= 0),
        "pid": numbers | plain_texts,
        "tid": numbers | plain_texts,
        "cat": plain_texts,
        "name": plain_texts,
        "args": arguments | st.none(),
        "id": everything,
        "bp": plain_texts,
    },
)


def has_object_in_list(written: list[dict[str, Any]]) -> bool:
    lists = [value for each in written for value in (each.get("args") or {}).values() if isinstance(value, list)]
    return any("{" in json.dumps(each) for each in lists)


def one_by_one(text: bytes, detail: bool) -> tuple[Piece, dict[str, int]]:
    """By Python's reader alone, which the parser is driven to by an event that only it can leave out."""
    parser = Parser(detail=detail, compiled=False)
    piece = parser.parse(b'{"ph": "X", "ts": }, ' + text)
    assert parser.num_unreadable == 1
    return piece, parser.words


@settings(max_examples=300, deadline=None)
@given(st.lists(events, min_size=1, max_size=6), st.booleans(), st.sampled_from([None, 2]), st.booleans())
def test_whatever_json_holds_is_read_as_pythons_reader_has_it(
    written: list[dict[str, Any]], detail: bool, indent: int | None, ascii_only: bool
) -> None:
    text = ", ".join(json.dumps(each, indent=indent, ensure_ascii=ascii_only) for each in written).encode()
    words: dict[str, int] = {}

    def number_of(word: str) -> int:
        return Parser(words=words)._word(word)

    scanned = scan(text, SPARSE | DETAIL if detail else SPARSE, number_of)
    if scanned is None:
        assert b"e-" in text or has_object_in_list(written)  # 1e-05 microseconds
        return
    truth, its_words = one_by_one(text, detail)
    assert said(scanned, words) == said(truth, its_words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"ph": "X", "ts": 1} {"ph": "X", "ts": 2}',
        '{"ph": "X", "ts": 1},',
        '{"ph": "X", "ts": 1, "ts": 2}',
        '{"ph": "X", "ts": 01}',
        '{"ph": "X", "ts": 1e3}',
        '{"ph": "X", "ts": "1"}',
        '{"ph": "X", "ts": 1, "name": "unfinished}',
        '{"ph": "X", "ts": 1, "name": "\\q"}',
        '{"ph": "X", "ts": 1, "name": 5}',
        '{"p\\u0068": "X", "ts": 1}',
        '{"ph": "X", "ts": 1, "args": {"x": [1, 2}}',
        '{"ph": "X", "ts": 1, "args": {"x": wrong}}',
        '{"ph": "X", "ts": 99999999999999999}',
        '{"ph": "X", "ts": 1, "deep": ' + "[" * 65 + "]" * 65 + "}",
    ],
)
def test_what_is_not_plain_is_left_to_others(text: str) -> None:
    assert scan(text.encode(), SPARSE, lambda word: 0) is None


def test_words_numbers_and_values_of_every_form_keep_their_meaning() -> None:
    text = (
        '{"ph":"X","ts":-1.2345,"dur":2,"pid":"Spans","tid":"17","name":"a\\"\\u00e9","args":{"stream":"7",'
        '"correlation":12345678901234567890,"device":true,"External id":3.0,"dtype":[1,"x"],"bytes":"0x10",'
        '"memory bandwidth (GB/s)":-Infinity}}'
    )
    made = scan(text.encode(), SPARSE, lambda word: Parser()._word(word))
    assert made is not None
    assert (made.ts.tolist(), made.dur.tolist()) == ([-1234], [2000])
    assert {key: made.whole[key].tolist() for key in (*WHOLE, *ARGS_WHOLE)} == {
        "pid": [-2],
        "tid": [17],
        "correlation": [-1],
        "stream": [7],
        "device": [1],
        "External id": [3],
    }
    assert made.texts["name"] == (np.array([0]), ['a"é'])
    assert {key: values.to_list() for key, (_, values) in made.sparse.items()} == {
        "dtype": ['[1,"x"]'],
        "bytes": [16],
    }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_damaged_text_is_never_read_or_written_beyond_its_end(tmp_path: Path) -> None:
    """Under AddressSanitizer, in buffers that are exactly as long as the text, or too short for what it holds."""
    driver = tmp_path / "driver"
    source = ROOT / "tests" / "fuzz" / "scan_driver.c"
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-static-libasan"]
    subprocess.run(["gcc", *flags, "-o", str(driver), str(source)], check=True)
    luck = random.Random(0)
    for path in sorted(DATA.glob("*/rank*.json*"))[:5]:
        text = next(iter(Source(path=path).pieces()))
        part = text[: 1 << 15]
        (tmp_path / "text").write_bytes(part)
        run = subprocess.run(
            [str(driver), str(tmp_path / "text"), "4000", str(luck.randrange(1 << 30))], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-2000:]
        assert "4000 tried" in run.stdout


def test_threads_of_a_fresh_process_may_scan_at_once() -> None:
    """Polars finds numpy and Arrow at their first use, in a way that two threads cannot share."""
    text = ",".join(f'{{"ph":"X","ts":{i},"dur":1,"name":"a","args":{{"bytes":{i},"dtype":"f"}}}}' for i in range(1200))
    program = f"""
import sys, threading, time
import polars._dependencies as polars_imports
found = polars_imports.import_module
polars_imports.import_module = lambda name: (time.sleep(0.05), found(name))[1]
from stepladder.profiling.trace.parse import Parser
text, failed, gate = {text!r}.encode(), [], threading.Barrier(8)
def work():
    gate.wait()
    try:
        assert len(Parser().parse(text).ts) == 1200
    except Exception as error:
        failed.append(repr(error))
threads = [threading.Thread(target=work) for _ in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
print(failed)
"""
    found = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
