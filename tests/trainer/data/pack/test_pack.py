"""A packed folder is what its sources say, whoever packed it, however often it was killed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.pack import job, sources
from stepladder.trainer.data.pack import tokenizer as tokenizers
from stepladder.trainer.data.pack.chat import Template
from stepladder.trainer.data.pack.documents import Bad, Document, Reading, read_piece
from stepladder.trainer.data.pack.folder import check_hashes, counts_of, offsets_of, read_index, tokens_of
from stepladder.trainer.data.pack.parts import Packing
from stepladder.trainer.data.pack.sources import pieces_of
from stepladder.trainer.data.pack.tokenizer import open_tokenizer, train

TEXTS = [f"{'document ' * (i % 7)}{i} é\n" for i in range(300)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def documents(folder: Path) -> set[str]:
    """All documents of a folder, decoded, without their end tokens."""
    index = read_index(folder)
    tokenizer = open_tokenizer("bytes" if index.tokenizer == "bytes" else str(folder))
    found: set[str] = set()
    for split in index.splits:
        tokens, offsets = tokens_of(folder, index, split), offsets_of(folder, index, split)
        for i in range(len(offsets) - 1):
            begin, end = int(offsets[i]), int(offsets[i + 1])
            assert tokens[end - 1] == index.end_id
            found.add(tokenizer.decode(tokens[begin : end - 1].tolist()))
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", ["jsonl", "gz", "parquet", "text", "hub"])
def test_every_source_gives_back_its_documents(kind: str, tmp_path: Path, jsonl: Path) -> None:
    source = {"jsonl": str(jsonl), "gz": str(tmp_path / "t.jsonl.gz"), "text": str(tmp_path / "texts")}.get(kind, "")
    if kind == "gz":
        Path(source).write_bytes(gzip.compress(jsonl.read_bytes()))
    elif kind == "parquet":
        source = str(tmp_path / "t.parquet")
        parquet.write_table(pa.table({"text": TEXTS, "other": list(range(300))}), source, row_group_size=64)
    elif kind == "text":
        Path(source).mkdir()
        for i, text in enumerate(TEXTS):
            (Path(source) / f"{i}.txt").write_text(text)
    elif kind == "hub":
        datasets = pytest.importorskip("datasets")
        source = str(tmp_path / "saved")
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(source)
    index = job.pack(Packing(sources=(source,), held_out=0.2), tmp_path / "out")
    assert documents(tmp_path / "out") == set(TEXTS)
    assert 20 < index.splits["held_out"].num_documents < 120
    assert not check_hashes(tmp_path / "out", index)


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 997, 10**6])
def test_lines_belong_to_one_piece_wherever_it_is_cut(piece_bytes: int, jsonl: Path) -> None:
    jsonl.write_text(jsonl.read_text()[:1200])  # the last line is cut
    pieces = pieces_of([str(jsonl)], Reading(), piece_bytes=piece_bytes)
    read = [each for piece in pieces for each in read_piece(piece, Reading())]
    lines = jsonl.read_text().splitlines()
    assert [each.text for each in read[:-1] if isinstance(each, Document)] == TEXTS[: len(lines) - 1]
    assert isinstance(read[-1], Bad)
    assert f"texts.jsonl: line {len(lines)}: is no JSON" in read[-1].said


def test_processes_and_a_trained_tokenizer_change_no_byte(
    tmp_path: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.pieces_of, "__defaults__", (None, 2000))
    packing = Packing(sources=(str(jsonl),), tokenizer="train:300")
    for workers in (1, 2):
        job.pack(packing, tmp_path / str(workers), workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert documents(tmp_path / "1") == set(TEXTS)
    assert read_index(tmp_path / "1").num_ids == 300


def test_a_killed_packing_goes_on_where_it_was(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps({"text": f"{i} " * 2000}) + "\n" for i in range(2500)))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-P",
        "-m",
        "stepladder",
        "data",
        "pack",
        str(source),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list((out / ".parts").glob("0*.npz"))) < 1:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / ".parts").glob("0*.npz")}
    assert kept
    made: list[int] = []
    packing = Packing(sources=(str(source),))
    job.pack(packing, out, look=lambda progress: made.append(progress.made_bytes))
    assert made[-1] < source.stat().st_size  # the parts that were there were not made again
    job.pack(packing, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
    assert not (out / ".parts").exists()


def test_a_finished_folder_is_kept_and_another_packing_refused(tmp_path: Path, jsonl: Path) -> None:
    out = tmp_path / "out"
    first = job.pack(Packing(sources=(str(jsonl),)), out)
    assert job.pack(Packing(sources=(str(jsonl),)), out) == first
    with pytest.raises(DataError, match="packed from something else"):
        job.pack(Packing(sources=(str(jsonl),), held_out=0.5), out)


def test_a_lone_document_is_held_out_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789" * 10)
    index = job.pack(Packing(sources=(str(tmp_path / "a.txt"),), held_out=0.2), tmp_path / "out")
    train, held = (bytes(tokens_of(tmp_path / "out", index, split)) for split in ("train", "held_out"))
    assert train + held == b"0123456789" * 10 + b"\0"
    assert len(held) == 21


def test_long_texts_and_names_of_special_tokens_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_SLICE_CHARACTERS", 1000)
    train(["some words\n" * 50], 300, tmp_path / "tokenizer.json")
    tokenizer = open_tokenizer(str(tmp_path))
    text = ("line of words <|endoftext|> é\n" * 400) + "x" * 2500
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.end_id not in ids
    assert tokenizer.encode_template("<|endoftext|>").tolist() == [tokenizer.end_id]


def test_only_the_assistants_words_and_what_ends_them_are_learnt(tmp_path: Path) -> None:
    chat = [("system", "S<|im_end|>"), ("user", "ab"), ("assistant", "cd"), ("user", "ef"), ("assistant", "g")]
    lines = tmp_path / "chat.jsonl"
    lines.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in chat]}) + "\n")
    train(["ab cd\n"], 300, tmp_path / "tokenizer.json")
    packing = Packing(
        sources=(str(lines),),
        tokenizer=str(tmp_path),
        format="chat",
        reading=Reading(column="messages"),
        template=Template(),
        held_out=0,
    )
    index = job.pack(packing, tmp_path / "out")
    tokens, counts = tokens_of(tmp_path / "out", index, "train"), counts_of(tmp_path / "out", index, "train")
    assert counts is not None
    tokenizer = open_tokenizer(str(tmp_path))
    whole = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in chat) + "<|endoftext|>"
    assert tokenizer.decode(tokens.tolist()) == whole
    assert tokenizer.decode(tokens[counts == 1].tolist()) == "cd<|im_end|>\ng<|im_end|>\n"
    (im_end,) = tokenizer.encode_template("<|im_end|>")
    assert int((np.asarray(tokens) == im_end).sum()) == 5  # the one that the system wrote is text


BAD = {
    "no json": ('{"text": "a"}\n{"text": \n', "line 2: is no JSON"),
    "no object": ('{"text": "a"}\n\n[1]\n', "line 3: is no JSON object"),
    "missing column": ('{"body": "a"}\n', "line 1: has body, but column 'text' is not there; name a column"),
    "no text": ('{"text": 5}\n', "line 1: has text, but column 'text' holds no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_line_stops_with_its_place_or_is_counted(case: str, tmp_path: Path) -> None:
    text, said = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(text + json.dumps({"text": "a good one"}) + "\n")
    with pytest.raises(DataError) as stopped:
        job.pack(Packing(sources=(str(path),)), tmp_path / "stop")
    assert said in str(stopped.value)
    assert "bad.jsonl" in str(stopped.value)
    index = job.pack(Packing(sources=(str(path),), on_error="skip", error_budget=1), tmp_path / "stop")
    assert index.num_skipped == 1
    assert said in index.first_skipped[0]
    with pytest.raises(DataError, match="more than 0 documents"):
        job.pack(Packing(sources=(str(path),), on_error="skip", error_budget=0), tmp_path / "budget")


def test_nothing_to_pack_is_a_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match="there is nothing in it"):
        job.pack(Packing(sources=(str(empty),)), tmp_path / "a")
    empty.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="there is no text"):
        job.pack(Packing(sources=(str(empty),)), tmp_path / "b")
    with pytest.raises(DataError, match="no such file"):
        job.pack(Packing(sources=("none.jsonl",)), tmp_path / "c")
    with pytest.raises(DataError, match=r"no such file; give a tokenizer\.json"):
        job.pack(Packing(sources=(str(empty),), tokenizer="none.json"), tmp_path / "d")


@pytest.mark.parametrize("damage", ["cut", "flipped", "index"])
def test_a_damaged_folder_is_found_out(damage: str, tmp_path: Path, jsonl: Path) -> None:
    out = tmp_path / "out"
    index = job.pack(Packing(sources=(str(jsonl),)), out)
    file = out / "train.tokens"
    raw = bytearray(file.read_bytes())
    if damage == "flipped":
        raw[50] ^= 1
        file.write_bytes(raw)
        (said,) = check_hashes(out, index)
        assert "train.tokens: its SHA-256" in said
        return
    if damage == "cut":
        file.write_bytes(raw[:-1])
    else:
        (out / "index.json").write_text("{")
    with pytest.raises(DataError, match="pack the folder again"):
        read_index(out)
