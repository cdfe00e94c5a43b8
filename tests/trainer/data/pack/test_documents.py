"""What is damaged in a source is a sentence with its place, and what is not is read all the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.pack import job
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
