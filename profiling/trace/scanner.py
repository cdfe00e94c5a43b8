"""The compiled way from text to columns, for what most writers write; `parse.py` has the other ways."""

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from .compiled import library
from .dialect import as_type
from .piece import ARGS_WHOLE, DTYPES, NO_VALUE, WHOLE, Piece, Sort

_PHASES: list[str] = ["X", "i", "I", "M", "C"]  # as in scan.c
_WHOLE, _REAL, _PLAIN_TEXT, _ESCAPED_TEXT, _LIST, _TRUE, _FALSE = range(7)  # forms of values, as in scan.c
_COLUMNS = (*WHOLE, *ARGS_WHOLE)
_FULL = 2  # as in scan.c
_USUAL_BYTES = 48
"""Of text for an event that is kept, and for a value of one; few writers are as terse."""
_LEAST_BYTES = 6
"""Of text for the tersest."""
_WORD_SLOTS = 1 << 15
_FEW_TEXTS = 1000
"""Of one key in one text. Up to so many become Python's first: most traces need no Arrow, which takes 25 MB."""

pl.Series(np.empty(0))  # polars imports numpy at its first use, and two threads must not be there together

_Pointer = ctypes.c_void_p
_Int = ctypes.c_int64


class _Words(ctypes.Structure):
    _fields_ = [("slots", _Pointer), ("num_slots", _Int), ("begin", _Pointer), ("end", _Pointer), ("count", _Int)]


class _Job(ctypes.Structure):
    _fields_ = [
        ("text", _Pointer),
        ("length", _Int),
        ("keys", _Pointer),
        ("key_ends", _Pointer),
        ("num_keys", _Int),
        ("num_columns", _Int),
        ("max_rows", _Int),
        ("max_values", _Int),
        ("ts", _Pointer),
        ("dur", _Pointer),
        ("columns", _Pointer),
        ("phase", _Pointer),
        ("category", _Pointer),
        ("name", _Pointer),
        ("categories", _Words),
        ("names", _Words),
        *((name, _Pointer) for name in ("row", "key", "form", "whole", "begin", "end")),
        ("num_rows", _Int),
        ("num_values", _Int),
    ]


@dataclass(frozen=True, kw_only=True)
class _Values:
    """What stands in `args`, and numbers in another notation: a row of these for each."""

    row: np.ndarray
    key: np.ndarray
    form: np.ndarray
    whole: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def where(self, which: np.ndarray) -> "_Values":
        return _Values(**{name: getattr(self, name)[which] for name in self.__dataclass_fields__})


def scan(text: bytes, keys: Mapping[str, Sort], number_of: Callable[[str], int]) -> Piece | None:
    """Columns of a text `{...}, {...}`; None if it needs another way of reading.

    `keys` are those of `args` beside `ARGS_WHOLE`; `number_of` numbers the processes and threads that have a name.
    """
    built = library()
    if built is None or not text:
        return None
    names = [key.encode() for key in (*_COLUMNS, *keys)]
    for least_bytes in (_USUAL_BYTES, _LEAST_BYTES):
        job = _Job()
        held = _buffers(job, text, names, least_bytes)
        status = built.scan(ctypes.byref(job))
        if status != _FULL:
            break
    if status != 0:
        return None
    rows, count = job.num_rows, job.num_values
    values = _Values(**{name: held[name][:count] for name in _Values.__dataclass_fields__})
    whole = {key: held["columns"][i, :rows].copy() for i, key in enumerate(_COLUMNS)}
    odd = np.flatnonzero(values.key < len(_COLUMNS))
    try:
        for i in odd.tolist():
            key = _COLUMNS[values.key[i]]
            value = _value(text, int(values.form[i]), int(values.begin[i]), int(values.end[i]))
            number = number_of(value) if key in WHOLE and isinstance(value, str) else as_type(value, "whole")
            whole[key][values.row[i]] = NO_VALUE if number is None else number
        sparse = _sparse(built, text, values, list(keys.items()))
        texts = {
            "ph": (held["phase"][:rows].copy(), list(_PHASES)),
            "cat": (held["category"][:rows].copy(), _words(text, held, "categories", job.categories.count)),
            "name": (held["name"][:rows].copy(), _words(text, held, "names", job.names.count)),
        }
    except ValueError:  # an escape that is none
        return None
    return Piece(ts=held["ts"][:rows].copy(), dur=held["dur"][:rows].copy(), whole=whole, texts=texts, sparse=sparse)


def _buffers(job: _Job, text: bytes, keys: Sequence[bytes], least_bytes: int) -> dict[str, np.ndarray]:
    """Room for what is found, tied to the job."""
    room = len(text) // least_bytes + 1
    held: dict[str, np.ndarray] = {
        "text": np.frombuffer(text, dtype=np.uint8),
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys]),
        "columns": np.empty((len(_COLUMNS), room), dtype=np.int64),
        **{name: np.empty(room, dtype=np.int64) for name in ("ts", "dur")},
        **{name: np.empty(room, dtype=np.int32) for name in ("phase", "category", "name")},
        **{name: np.empty(room, dtype=np.int64) for name in _Values.__dataclass_fields__},
    }
    for name, buffer in list(held.items()):
        setattr(job, name, buffer.ctypes.data)
    for name in ("categories", "names"):
        words = getattr(job, name)
        words.num_slots = _WORD_SLOTS
        for part, made in (
            ("slots", np.zeros(_WORD_SLOTS, dtype=np.int32)),
            ("begin", np.empty(_WORD_SLOTS // 2, dtype=np.int64)),
            ("end", np.empty(_WORD_SLOTS // 2, dtype=np.int64)),
        ):
            held[f"{name} {part}"] = made
            setattr(words, part, made.ctypes.data)
    job.length, job.num_keys, job.num_columns = len(text), len(keys), len(_COLUMNS)
    job.max_rows = job.max_values = room
    return held


def _words(text: bytes, held: Mapping[str, np.ndarray], table: str, count: int) -> list[str]:
    begins, ends = held[f"{table} begin"][:count].tolist(), held[f"{table} end"][:count].tolist()
    return [_text(text[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def _text(raw: bytes) -> str:
    """What stands between quotation marks. Raises: ValueError for an escape that is none."""
    if b"\\" not in raw:
        return raw.decode(errors="replace")
    return as_type(json.loads(f'"{raw.decode(errors="replace")}"', strict=False), "text")


def _value(text: bytes, form: int, begin: int, end: int) -> Any:
    """A value as Python's reader has it; lists as they are written."""
    raw = text[begin:end]
    if form in (_PLAIN_TEXT, _ESCAPED_TEXT):
        return _text(raw)
    if form in (_TRUE, _FALSE):
        return form == _TRUE
    return [raw.decode(errors="replace")] if form == _LIST else Decimal(raw.decode())


def _sparse(
    built: ctypes.CDLL, text: bytes, values: _Values, keys: Sequence[tuple[str, Sort]]
) -> dict[str, tuple[np.ndarray, pl.Series]]:
    found: dict[str, tuple[np.ndarray, pl.Series]] = {}
    first = len(_COLUMNS)
    for number in np.flatnonzero(np.bincount(values.key, minlength=first + len(keys))[first:]).tolist():
        key, sort = keys[number]
        mine = values.where(values.key == first + number)
        made = _column(built, text, mine, sort)
        if made.null_count():
            mine, made = mine.where(made.is_not_null().to_numpy()), made.drop_nulls()
        if len(made):
            found[key] = (mine.row.copy(), made)
    return found


def _column(built: ctypes.CDLL, text: bytes, values: _Values, sort: Sort) -> pl.Series:
    """The values of one key, of the type that is asked for; what cannot be of it is null."""
    if sort == "whole" and (values.form == _WHOLE).all():
        return pl.Series(values.whole.copy())
    if sort == "text" and (values.form != _ESCAPED_TEXT).all():
        return _gathered(built, text, values)
    if sort == "real" and (values.form <= _REAL).all():
        return _gathered(built, text, values).cast(pl.Float64)
    parts = zip(values.form.tolist(), values.begin.tolist(), values.end.tolist(), strict=True)
    if sort == "text":
        made = [_text(text[b:e]) if form == _ESCAPED_TEXT else _plain(text, b, e) for form, b, e in parts]
    else:
        made = [as_type(_value(text, form, begin, end), sort) for form, begin, end in parts]
    return pl.Series(made, dtype=DTYPES[sort])


def _plain(text: bytes, begin: int, end: int) -> str:
    return text[begin:end].decode(errors="replace")


def _gathered(built: ctypes.CDLL, text: bytes, values: _Values) -> pl.Series:
    """Parts of the text, as a column of texts."""
    count = len(values.begin)
    if count > _FEW_TEXTS and (column := _gathered_by_arrow(built, text, values)) is not None:
        return column
    bounds = zip(values.begin.tolist(), values.end.tolist(), strict=True)
    return pl.Series([_plain(text, begin, end) for begin, end in bounds], dtype=pl.String)


def _gathered_by_arrow(built: ctypes.CDLL, text: bytes, values: _Values) -> pl.Series | None:
    """The same without a Python object for each; None if the text is not UTF-8."""
    from . import arrow

    count = len(values.begin)
    begin, end = np.ascontiguousarray(values.begin), np.ascontiguousarray(values.end)
    ends = np.zeros(count + 1, dtype=np.int32)
    out = np.empty(int((end - begin).sum()), dtype=np.uint8)
    source = np.frombuffer(text, dtype=np.uint8)
    pointers = (each.ctypes.data for each in (source, begin, end))
    built.gather(*pointers, count, out.ctypes.data, ends[1:].ctypes.data)
    return arrow.texts(ends, out)
