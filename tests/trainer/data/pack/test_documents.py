"""What is damaged in a source is a sentence with its place, and what is not is read all the same."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.pack import documents, job
from stepladder.trainer.data.pack.documents import Bad, Document, Piece, Reading, read_piece
from stepladder.trainer.data.pack.parts import Packing


def read(path: Path, format: Any = "jsonl") -> list[Document | Bad]:
    column = "messages" if format == "chat" else "text"
    return list(read_piece(Piece(format=format, paths=(str(path),)), Reading(column=column)))


def texts(found: list[Document | Bad]) -> list[str | bytes]:
    return [each.text for each in found if isinstance(each, Document)]


def said(found: list[Document | Bad]) -> list[str]:
    return [each.said for each in found if isinstance(each, Bad)]


def conversation(answer: str) -> str:
    """A line as files have it: JSON in ASCII."""
    asked = {"role": "user", "content": "?"}
    return json.dumps({"messages": [asked, {"role": "assistant", "content": answer}]}) + "\n"


@pytest.mark.parametrize("half", ["\ud800", "\udc00\ud800"])
@pytest.mark.parametrize("format", ["jsonl", "chat"])
def test_half_of_a_character_is_a_bad_document(half: str, format: Any, tmp_path: Path) -> None:
    path = tmp_path / "halves.jsonl"
    each = conversation if format == "chat" else lambda text: json.dumps({"text": text}) + "\n"
    path.write_text("".join(map(each, ["fine", f"ab{half}c", "\U0001f600 whole"])))
    reading = Reading(column="messages" if format == "chat" else "text")
    packing = Packing(sources=(str(path),), format=format, reading=reading)

    with pytest.raises(DataError, match=rf"halves\.jsonl: line 2: .* holds half of a character, \\u{ord(half[0]):04x}"):
        job.pack(packing, tmp_path / "stopped")
    skipping = Packing(sources=(str(path),), format=format, reading=reading, on_error="skip", held_out=0.0)
    index = job.pack(skipping, tmp_path / "skipped")

    assert index.num_skipped == 1
    assert "line 2" in index.first_skipped[0]
    assert index.splits["train"].num_documents == 2


def test_bytes_of_half_a_character_are_a_bad_document(tmp_path: Path) -> None:
    path = tmp_path / "halves.jsonl"
    path.write_bytes(b'{"text": "a \xed\xa0\x80 b"}\n{"text": "\xf0\x9f\x98\x80"}\n')
    found = read(path)
    assert texts(found) == ["\U0001f600"]
    assert len(said(found)) == 1
    assert "line 1" in said(found)[0]


def test_conversations_whose_answer_lies_behind_the_cut_are_left_out_or_a_sentence(tmp_path: Path) -> None:
    from stepladder.trainer.data.token_source import open_folder
    from stepladder.trainer.data.token_tables import check_folder
    from stepladder.trainer.data.wanted import Need

    answer = {"role": "assistant", "content": "yes"}
    lines = [{"messages": [{"role": "user", "content": "question " * n}, answer]} for n in (1, 90, 90)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    reading = Reading(column="messages")
    packing = Packing(sources=(str(tmp_path / "chats.jsonl"),), format="chat", reading=reading, held_out=0.0)
    job.pack(packing, tmp_path / "packed")

    source = open_folder(tmp_path / "packed", "train", 128, "truncate")
    assert len(source) == 1
    assert "2 left out" in source.describe()
    assert len(open_folder(tmp_path / "packed", "train", 1024, "truncate")) == 3
    with pytest.raises(DataError, match=r"of 3 conversations .* lie behind the cut, 0 are left .*; use longer"):
        check_folder(tmp_path / "packed", Need(sequence_length=16, held_out_samples=0), "truncate")


def test_a_damaged_archive_is_one_bad_document_and_not_one_for_each_line_of_noise(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"{i} {i * i % 9973}"}) + "\n" for i in range(3000)).encode()
    whole = gzip.compress(lines, mtime=0)
    kinds: set[str] = set()
    for at in range(len(whole) // 3, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[at] ^= 0x5A
        path = tmp_path / "texts.jsonl.gz"
        path.write_bytes(damaged)
        (only,) = said(read(path))
        assert "cannot be read (" in only
        kinds.add(only.partition("(")[2])
    assert len(kinds) > 1  # its stream as well as its checksum


def test_a_whole_archive_keeps_its_bad_lines_apart(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{\n[]\n{"text": "b"}\n'))
    found = read(path)
    assert texts(found) == ["a", "b"]
    assert [each.partition(": ")[2].partition(" (")[0] for each in said(found)] == [
        "line 2: is no JSON",
        "line 3: is no JSON object",
    ]


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.gz"])
def test_a_line_that_never_ends_is_a_bad_document(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MOST_BYTES", 20)
    monkeypatch.setattr(documents, "_BLOCK_BYTES", 7)
    raw = b'{"text": "a"}\n{"text": "' + b"b" * 100 + b'"}\n{"text": "c"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found = read(path)
    assert texts(found) == ["a", "c"]
    assert said(found) == [f"{path}: line 2: is longer than 20 bytes; split it into documents"]
    if name == "texts.jsonl":  # whoever begins inside of the long line begins behind it
        pieces = [Piece(format="jsonl", paths=(str(path),), begin=b, end=e) for b, e in ((0, 50), (50, 90), (90, 999))]
        each = [texts(list(read_piece(piece, Reading()))) for piece in pieces]
        assert each == [["a"], [], ["c"]]


def test_a_text_that_never_ends_is_a_bad_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MOST_BYTES", 20)
    path = tmp_path / "long.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 21))
    assert said(read(path, "text")) == [f"{path}: is longer than 20 bytes; split it into documents"]
    path.write_bytes(gzip.compress(b"x" * 20))
    assert texts(read(path, "text")) == ["x" * 20]
