"""Reads the documents of a piece: what is damaged in it comes as a sentence that names the place."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

Format: TypeAlias = Literal["text", "jsonl", "parquet", "stdlib", "hub", "chat"]
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 30
"""Of one document: it is held in memory, several times over, and a small archive may hold any number of zeros."""
_UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a file raises, packed or not."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document; of a chat its messages."""

    name: str
    """By whose hash it is put into a split; empty for the hash of its text."""
    text: str | bytes = ""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of each message of a chat."""


@dataclass(frozen=True)
class Bad:
    """What cannot be read: `file: line 7: why`."""

    said: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some of the documents: what one process reads in one go. Pieces follow from the sources alone."""

    format: Format
    paths: tuple[str, ...]
    begin: int = 0
    """First byte (jsonl, chat), row group (parquet) or row (hub)."""
    end: int = 0
    num_bytes: int = 0
    """About how much there is to read, for progress and for the size of pieces."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What in a row is the text."""

    column: str = "text"
    config: str = ""
    """Of a hub's dataset."""
    split: str = "train"
    """Of a hub's dataset."""


def read_piece(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a piece, in order. Raises: DataError if a source cannot be read at all."""
    readers: dict[str, Callable[[Piece, Reading], Iterator[Document | Bad]]] = {
        "text": _texts,
        "stdlib": _modules,
        "jsonl": _lines,
        "chat": _chats,
        "parquet": _row_group,
        "hub": _rows,
    }
    return readers[piece.format](piece, reading)


def _texts(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    for name in piece.paths:
        try:
            with _opened(Path(name)) as file:
                text = file.read(_MOST_BYTES + 1)
            yield Bad(f"{name}: {_too_long()}") if len(text) > _MOST_BYTES else Document(name="", text=text.decode())
        except UnicodeDecodeError as error:
            yield Bad(f"{name}: byte {error.start}: is no UTF-8")
        except _UNREADABLE as error:
            yield Bad(f"{name}: cannot be read ({_why(error)})")


def _modules(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    from ..tokens import stdlib_root

    root = stdlib_root()
    for name in piece.paths:
        try:
            yield Document(name=name, text=(root / name).read_bytes())
        except OSError as error:
            yield Bad(f"{root / name}: cannot be read ({_why(error)})")


def _lines(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    for where, row in _json_rows(piece):
        text = row.said if isinstance(row, Bad) else row.get(reading.column)
        if isinstance(row, Bad):
            yield row
        elif not isinstance(text, str):
            yield Bad(f"{where()}: {_no_text(row, reading.column)}")
        elif lone := _lone_half(text):
            yield Bad(f"{where()}: {reading.column!r} holds {lone}")
        else:
            yield Document(name="", text=text)


def _chats(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    for where, row in _json_rows(piece):
        if isinstance(row, Bad):
            yield row
            continue
        messages = _messages(row, reading.column)
        yield Bad(f"{where()}: {messages}") if isinstance(messages, str) else Document(name="", messages=messages)


def _messages(row: dict[str, Any], column: str) -> tuple[tuple[str, str], ...] | str:
    """The conversation, or why it is none."""
    given: Any = row.get(column)
    if not isinstance(given, list) or not given:
        return f"has {_columns(row)}, but no list of messages in {column!r}"
    found: list[tuple[str, str]] = []
    for number, each in enumerate(cast(list[Any], given), start=1):
        message = cast(dict[str, Any], each) if isinstance(each, dict) else {}
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return f"message {number} has no role and content that are texts"
        if lone := _lone_half(content):
            return f"message {number} holds {lone}"
        if not role.isidentifier():  # it goes into the template, where special tokens are meant
            return f"message {number} has the role {role[:40]!r}; use a word"
        found.append((role, content))
    if not any(role == "assistant" for role, _ in found):
        return "no message is the assistant's, so there is nothing to learn"
    return tuple(found)


def _lone_half(text: str) -> str:
    """What JSON can say and no UTF-8: half of a surrogate pair, and where it is; empty if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a character, \\u{ord(text[error.start]):04x}, behind {error.start:,} others; write it whole"
    return ""


def _json_rows(piece: Piece) -> Iterator[tuple[Callable[[], str], dict[str, Any] | Bad]]:
    """Each line that begins inside the piece: how to say where it is, and its object."""
    path = Path(piece.paths[0])
    number = 0
    before = cache(lambda: _lines_before(path, piece.begin))  # counted only if there is something to say
    see_whole = cache(lambda: _see_whole(path))  # what a damaged archive gives is noise

    def where() -> str:
        return f"{path}: line {before() + number}"

    try:
        with _opened(path) as file:
            for line in _own_lines(file, piece):
                number += 1
                if not line.isspace():
                    row = _object(line)
                    if isinstance(row, str):
                        see_whole()
                    yield where, Bad(f"{where()}: {row}") if isinstance(row, str) else row
    except _UNREADABLE as error:
        yield where, Bad(f"{path}: behind line {number}: cannot be read ({_why(error)})")


def _object(line: bytes) -> dict[str, Any] | str:
    """What a line says, or why it says nothing."""
    if len(line) > _MOST_BYTES:
        return _too_long()
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})"
    return cast(dict[str, Any], row) if isinstance(row, dict) else "is no JSON object"


def _too_long() -> str:
    return f"is longer than {_MOST_BYTES:,} bytes; split it into documents"


def _see_whole(path: Path) -> None:
    """Read an archive to its end, where its checksum is; what raises is what is wrong with it."""
    if path.suffix == ".gz":
        with _opened(path) as file:
            while file.read(_BLOCK_BYTES):
                pass


def _own_lines(file: BinaryIO, piece: Piece) -> Iterator[bytes]:
    """Lines of which the first byte lies in the piece; all of them in a compressed file."""
    at = piece.begin
    if at:
        file.seek(at - 1)
        at += _line(file)[1] - 1  # the rest of a line that belongs to the piece before, or its line break alone
    while piece.end == 0 or at < piece.end:
        line, size = _line(file)
        if not line:
            return
        at += size
        yield line


def _line(file: BinaryIO) -> tuple[bytes, int]:
    """A line, without the rest of one that is too long, and how long it is."""
    line = last = file.readline(_MOST_BYTES + 1)
    size = len(line)
    while size > _MOST_BYTES and not last.endswith(b"\n") and (last := file.readline(_BLOCK_BYTES)):
        size += len(last)
    return line, size


def _lines_before(path: Path, begin: int) -> int:
    """Lines that begin before a byte of a file: all of them belong to earlier pieces."""
    count, left, last = 0, begin, b"\n"
    with _opened(path) as file:
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            count, left, last = count + block.count(b"\n"), left - len(block), block[-1:]
    return count + (begin > 0 and last != b"\n")


def _row_group(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    import pyarrow.parquet as parquet

    name = piece.paths[0]
    at = 0
    try:
        file: Any = parquet.ParquetFile(name)
        columns: list[str] = list(file.schema_arrow.names)
        if reading.column not in columns:
            yield Bad(f"{name}: {_no_text(dict.fromkeys(columns), reading.column)}")
            return
        at = sum(file.metadata.row_group(i).num_rows for i in range(piece.begin))
        for batch in file.iter_batches(row_groups=list(range(piece.begin, piece.end)), columns=[reading.column]):
            for text in batch.column(0).to_pylist():
                at += 1
                yield Document(name="", text=text) if isinstance(text, str) else _no_string(name, at, reading.column)
    except (OSError, ValueError) as error:  # what Arrow raises is one of the two
        yield Bad(f"{name}: behind row {at}: cannot be read ({_why(error)})")


def _rows(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    from .hub import open_dataset

    name = piece.paths[0]
    rows: Any = open_dataset(name, reading)
    if reading.column not in rows.column_names:
        yield Bad(f"{name}: {_no_text(dict.fromkeys(rows.column_names), reading.column)}")
        return
    texts = rows.select(range(piece.begin, piece.end)).with_format(None)[reading.column]
    for at, text in enumerate(texts, start=piece.begin + 1):
        yield Document(name="", text=text) if isinstance(text, str) else _no_string(name, at, reading.column)


def _no_string(name: str, row: int, column: str) -> Bad:
    return Bad(f"{name}: row {row}: {column!r} holds no text")


def _no_text(row: dict[str, Any], column: str) -> str:
    what = "holds no text" if column in row else "is not there"
    return f"has {_columns(row)}, but column {column!r} {what}; name a column of strings"


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(sorted(row)) or "nothing"


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
