"""Corpora: what is in them, that they are built once, and what is said when they cannot be."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stepladder.trainer.data import tokens
from stepladder.trainer.data.check import check_data
from stepladder.trainer.data.config import DataConfig, FilesCorpus, StdlibCorpus
from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.tokens import Document, cache_folder, is_held_out, open_corpus, stdlib_documents

TEXTS = ["first\n", "second, Grüße\n", "third\nline", *(f"document {i}" for i in range(20))]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))


def write(folder: Path, format: str, texts: list[Any] = TEXTS) -> FilesCorpus:
    """The same documents as text files, JSONL or Parquet."""
    folder.mkdir(exist_ok=True)
    if format == "text":
        for i, text in enumerate(texts):
            (folder / f"{i:03}.txt").write_bytes(text.encode())
        return FilesCorpus(paths=(str(folder / "*.txt"),), held_out=0.3)
    path = folder / f"all.{format}"
    if format == "jsonl":
        path.write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts)))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": list(range(len(texts))), "body": texts}), path)
    return FilesCorpus(paths=(str(path),), format=format, column="body", held_out=0.3)  # type: ignore[arg-type]


def splits(config: Any) -> dict[str, bytes]:
    corpus = open_corpus(config)
    return {split: bytes(corpus.tokens(split).tolist()) for split in ("train", "held_out")}


def test_text_jsonl_and_parquet_give_the_same_bytes(tmp_path: Path) -> None:
    found = [splits(write(tmp_path / format, format)) for format in ("text", "jsonl", "parquet")]
    assert found[0] == found[1] == found[2]
    both = found[0]["train"].split(b"\0")[:-1], found[0]["held_out"].split(b"\0")[:-1]
    assert sorted(both[0] + both[1]) == sorted(text.encode() for text in TEXTS)
    assert min(map(len, both)) > 1


def test_the_standard_library_is_split_by_file_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(stdlib_documents())
    assert documents == list(stdlib_documents())
    names = [document.name for document in documents]
    assert len(set(names)) == len(names) > 500
    assert {"json/__init__.py", "ast.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name]
    part = sum(is_held_out(name, 0.05) for name in names) / len(names)
    assert 0.02 < part < 0.09

    few = [document for document in documents if document.name.startswith(("json/", "asyncio/"))]
    monkeypatch.setattr(tokens, "stdlib_documents", lambda: iter(few))
    found = splits(StdlibCorpus(held_out=0.3))
    for split, held in (("train", False), ("held_out", True)):
        own = [document for document in few if is_held_out(document.name, 0.3) == held]
        assert own
        assert found[split] == b"".join(document.text + b"\0" for document in own)


def test_a_document_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    before = splits(write(tmp_path / "a", "jsonl", TEXTS[:10]))
    after = splits(write(tmp_path / "b", "jsonl", TEXTS))
    for split in before:
        assert set(before[split].split(b"\0")) <= set(after[split].split(b"\0"))


def test_a_corpus_is_built_once_and_anew_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "text", "text")
    builds: list[Path] = []
    build = tokens._build
    monkeypatch.setattr(tokens, "_build", lambda folder, *rest: (builds.append(folder), build(folder, *rest)))
    first, second = open_corpus(config), open_corpus(config)
    assert first == second
    assert len(builds) == 1
    (tmp_path / "text" / "000.txt").write_text("something longer than before\n")
    third = open_corpus(config)
    assert third.fingerprint != first.fingerprint
    assert len(builds) == 2
    assert open_corpus(FilesCorpus(paths=config.paths, held_out=0.4)).fingerprint != third.fingerprint


def test_concurrent_builds_agree_and_leave_nothing_behind() -> None:
    documents = [Document(str(i), bytes([i]) * 1000) for i in range(1, 60)]
    folder = cache_folder() / "corpus-x"
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(tokens._build, folder, iter(documents), 0.3) for _ in range(24)]:
            each.result()
    assert [path.name for path in cache_folder().iterdir()] == ["corpus-x"]
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.pop("sizes.json")
    assert sizes.keys() == {"train.u8", "held_out.u8"}
    assert sum(sizes.values()) == sum(len(document.text) + 1 for document in documents)


def broken(folder: Path, raw: bytes, format: str) -> FilesCorpus:
    path = folder / "broken"
    path.write_bytes(raw)
    return FilesCorpus(paths=(str(path),), format=format)  # type: ignore[arg-type]


DAMAGED = {
    "half a line of JSON": (b'{"text": "a"}\n{"text": ', "jsonl"),
    "not JSON": (b"plain words\n", "jsonl"),
    "not Parquet": (b"PAR1 and no more", "parquet"),
    "not UTF-8": (b"\xff\xfe\xfd", "text"),
    "half a character": (b'{"text": "\\ud800"}\n', "jsonl"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    raw, format = DAMAGED[name]
    with pytest.raises(DataError, match=f"not readable as {format}") as caught:
        open_corpus(broken(tmp_path, raw, format))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_a_wrong_column_names_those_that_are_there(tmp_path: Path) -> None:
    config = write(tmp_path / "j", "jsonl")
    with pytest.raises(DataError, match=r"column = 'tekst': row 1 has body, id, but this is not there"):
        open_corpus(FilesCorpus(paths=config.paths, format="jsonl", column="tekst"))
    with pytest.raises(DataError, match=r"column = 'id': row 1 .* holds no text"):
        open_corpus(FilesCorpus(paths=config.paths, format="jsonl", column="id"))


def test_no_text_at_all_is_a_sentence_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="there is no text in it"):
        open_corpus(FilesCorpus(paths=(str(tmp_path / "empty.txt"),)))
    assert not list(cache_folder().glob("corpus-*"))


@pytest.mark.parametrize("held_out", [1e-9, 0.25, 1 - 1e-9])
def test_a_lone_file_is_cut_at_its_end(tmp_path: Path, held_out: float) -> None:
    text = "".join(f"{i} " for i in range(1000))
    (tmp_path / "lone.txt").write_text(text)

    corpus = open_corpus(FilesCorpus(paths=(str(tmp_path / "lone.txt"),), held_out=held_out))

    train, held = (bytes(corpus.tokens(split).tolist()) for split in ("train", "held_out"))
    assert train + held == text.encode() + b"\x00"
    assert abs(len(train) - (len(text) + 1) * (1 - held_out)) <= 1
    assert train
    assert held


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "t", "text")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"cannot be written .*STEPLADDER_CACHE"):
        open_corpus(config)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "_write", full)
    with pytest.raises(DataError, match=r"cannot be written .No space left on device"):
        open_corpus(config)
    assert not list((tmp_path / "cache").iterdir())


def test_check_refuses_sequences_longer_than_a_split(tmp_path: Path) -> None:
    data = DataConfig(files=write(tmp_path / "t", "text"))
    check_data(data, 20)
    with pytest.raises(DataError, match="not one sequence"):
        check_data(data, 10_000)


def test_problems_of_a_files_table_are_said_before_anything_is_read(tmp_path: Path) -> None:
    assert "no data" in next(iter(FilesCorpus(paths=()).problems()))
    assert "no such file" in next(iter(FilesCorpus(paths=(str(tmp_path / "*.nothing"),)).problems()))
    (tmp_path / "a.txt").write_text("a")
    (found,) = FilesCorpus(paths=(str(tmp_path / "a.txt"),), column="body").problems()
    assert "has no effect with format = 'text'" in found


def test_a_build_tells_what_it_reads_and_a_cached_corpus_tells_nothing(tmp_path: Path) -> None:
    config = write(tmp_path, "text", [f"document {i}" for i in range(40)])
    first, second = list[str](), list[str]()

    open_corpus(config, first.append)
    open_corpus(config, second.append)

    assert "reading the corpus once" in first[0]
    assert "40 documents" in first[-1]
    assert second == []


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    config = write(tmp_path, "text")
    path = open_corpus(config).folder / "held_out.u8"
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-1] if damage == "shorter" else whole + b"x")

    assert (open_corpus(config).folder / "held_out.u8").read_bytes() == whole
