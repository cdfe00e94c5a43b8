"""Arrow's reading of events: quick for text that is JSON of the expected types, and the table for events one by one."""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyarrow makes its compute functions at run time and has no annotations.

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from .piece import ARGS_WHOLE, NO_VALUE, TEXTS, WHOLE, Piece, Sort

UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError)
_NS = pa.decimal128(24, 3)  # microseconds with three digits behind the point: the unscaled number is nanoseconds
_TYPES: dict[Sort, pa.DataType] = {"text": pa.string(), "whole": pa.int64(), "real": pa.float64()}
_PHASES = ("X", "i", "I", "M", "C")
"""Kinds of events that are kept: complete, instant, metadata, counter."""


def read(piece: bytes, keys: Mapping[str, Sort]) -> pa.StructArray:
    """Events of a text `{...}, {...}`. Raises: one of `UNREADABLE`."""
    schema = pa.schema([("e", pa.list_(pa.list_(_event_type(keys))))])
    text = b'{"e":[[' + piece + b"]]}"  # twice, so that a bracket in the piece cannot end the member
    found = pj.read_json(
        pa.BufferReader(text),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    if found.num_rows != 1:
        raise pa.ArrowInvalid("the text is more than a list")
    return cast(pa.StructArray, cast(Any, found["e"].chunk(0)).values.values)


def of_events(events: Sequence[Mapping[str, Any]], keys: Mapping[str, Sort]) -> pa.StructArray:
    """The same of events that are there already."""
    return cast(pa.StructArray, pa.array(events, type=_event_type(keys)))


def _event_type(keys: Mapping[str, Sort]) -> pa.StructType:
    args = [(key, pa.int64()) for key in ARGS_WHOLE] + [(key, _TYPES[sort]) for key, sort in keys.items()]
    return pa.struct(
        [(key, pa.string()) for key in TEXTS]
        + [(key, pa.int64()) for key in WHOLE]
        + [("ts", _NS), ("dur", _NS), ("args", pa.struct(args))]
    )


def texts(ends: np.ndarray, text: np.ndarray) -> pl.Series | None:
    """A column of texts that stand one after the other; None if they are not UTF-8.

    `ends` is int32, from 0 on.
    """
    made = pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text))
    try:
        made.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return cast(pl.Series, pl.from_arrow(made))


def columns(events: pa.StructArray, keys: Mapping[str, Sort]) -> Piece:
    """The kept events of a piece, as numpy arrays and small dictionaries."""
    phase = events.field("ph")
    keep = pc.and_(pc.is_in(phase, value_set=pa.array(_PHASES)), pc.is_valid(events.field("ts")))
    keep = pc.or_kleene(keep, pc.equal(phase, "M"))
    events = cast(pa.StructArray, events.filter(pc.fill_null(keep, False)))
    args = cast(pa.StructArray, events.field("args"))
    sparse: dict[str, tuple[np.ndarray, pl.Series]] = {}
    for key in keys:
        column = args.field(key)
        if column.null_count < len(column):
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            sparse[key] = (rows, cast(pl.Series, pl.from_arrow(column.drop_null())))
    whole = {key: _whole(events.field(key)) for key in WHOLE} | {key: _whole(args.field(key)) for key in ARGS_WHOLE}
    texts = {key: _coded(events.field(key)) for key in TEXTS}
    return Piece(
        ts=_ns(events.field("ts"), 0), dur=_ns(events.field("dur"), -1), whole=whole, texts=texts, sparse=sparse
    )


def _ns(column: pa.Array, missing: int) -> np.ndarray:
    """Nanoseconds of a column of microseconds: the low half of each unscaled 128-bit number."""
    halves = np.frombuffer(column.buffers()[1], dtype=np.int64)[2 * column.offset : 2 * (column.offset + len(column))]
    low, high = halves[::2], halves[1::2]
    invalid = high != low >> 63
    if column.null_count:
        invalid |= ~column.is_valid().to_numpy(zero_copy_only=False)
    return np.where(invalid, missing, low)


def _whole(column: pa.Array) -> np.ndarray:
    return pc.fill_null(column, NO_VALUE).to_numpy(zero_copy_only=False)


def _coded(column: pa.Array) -> tuple[np.ndarray, list[str]]:
    coded = cast(pa.DictionaryArray, column.dictionary_encode())
    codes = pc.fill_null(coded.indices, NO_VALUE).to_numpy(zero_copy_only=False)
    return codes, coded.dictionary.to_pylist()
