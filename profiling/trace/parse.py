"""Text of events -> typed columns: by the compiled scanner, else by Arrow, mended, else one event at a time.

See [Note: dialects].
"""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyarrow makes its compute functions at run time and has no annotations.

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from .dialect import Mend, as_type, digits, mend_for, microseconds, one_by_one, quote_lists
from .piece import ARGS_WHOLE, DETAIL, KINDS, NO_VALUE, SPARSE, TEXTS, WHOLE, Piece
from .scanner import scan

_NS = pa.decimal128(24, 3)  # microseconds with three digits behind the point: the unscaled number is nanoseconds
_LISTS = ("Input Dims", "Input type", "Concrete Inputs")
_PHASES = ("X", "i", "I", "M", "C")
"""Kinds of events that are kept: complete, instant, metadata, counter."""


@dataclass(kw_only=True)
class Parser:
    """What is known about the dialect of a file; several threads may parse pieces of it."""

    detail: bool = False
    """Read the keys of `DETAIL` too."""
    compiled: bool = True
    """Try the compiled scanner first."""
    words: dict[str, int] = field(default_factory=dict[str, int])
    """Numbers given to processes and threads that have a name instead, counted downwards from -2."""
    num_unreadable: int = 0
    """Events that could not be read."""
    _mends: dict[str, Mend] = field(default_factory=dict[str, Mend])

    def parse(self, piece: bytes) -> Piece:
        """Columns of a text `{...}, {...}`; never raises for what stands in it."""
        scanned = scan(piece, self._keys(), self._word) if self.compiled else None
        if scanned is not None:
            return scanned
        try:
            return _columns(self._by_arrow(piece), self._keys())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            pass
        found = list(one_by_one(piece))
        self.num_unreadable += found.count(None)
        events = [self._tidy(event) for event in found if event is not None]
        made = pa.array(events, type=_event_type(self._keys()))
        return _columns(cast(pa.StructArray, made), self._keys())

    def _keys(self) -> dict[str, pa.DataType]:
        return SPARSE | DETAIL if self.detail else SPARSE

    def _by_arrow(self, piece: bytes) -> pa.StructArray:
        """Raises: ArrowInvalid for what cannot be mended."""
        schema = pa.schema([("e", pa.list_(_event_type(self._keys())))])
        if self.detail:
            for key in _LISTS:
                piece = quote_lists(key)(piece)
        mended = dict(self._mends)
        for mend in mended.values():
            piece = mend(piece)
        while True:
            text = b'{"e":[' + piece + b"]}"
            try:
                found = pj.read_json(
                    pa.BufferReader(text),
                    read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
                    parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
                )
            except pa.ArrowInvalid as error:
                is_number_of_track = any(f"/{key})" in str(error) for key in WHOLE)
                mend = mend_for(str(error), self._number_of_word if is_number_of_track else digits)
                if mend is None or mend[0] in mended:
                    raise
                mended[mend[0]] = self._mends[mend[0]] = mend[1]
                piece = mend[1](piece)
                continue
            if found.num_rows != 1:
                raise pa.ArrowInvalid("the text is more than a list")
            return cast(pa.StructArray, cast(Any, found["e"].chunk(0)).values)

    def _number_of_word(self, text: str) -> str:
        return str(self._word(text))

    def _word(self, text: str) -> int:
        """Number of a process or thread that a file names by a word."""
        number = as_type(text, "whole")
        return number if number is not None else self.words.setdefault(text, -2 - len(self.words))

    def _tidy(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with what is asked for, of the types that are asked for."""
        args = event.get("args")
        args = cast(dict[str, Any], args) if isinstance(args, dict) else {}
        kept = {key: as_type(args.get(key), KINDS[kind]) for key, kind in _args_types(self._keys()).items()}
        made: dict[str, Any] = {key: as_type(event.get(key), "text") for key in TEXTS}
        for key in WHOLE:
            value = event.get(key)
            made[key] = self._word(value) if isinstance(value, str) else as_type(value, "whole")
        return made | {key: microseconds(event.get(key)) for key in ("ts", "dur")} | {"args": kept}


def _args_types(keys: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    return dict.fromkeys(ARGS_WHOLE, pa.int64()) | keys


def _event_type(keys: dict[str, pa.DataType]) -> pa.StructType:
    return pa.struct(
        [(key, pa.string()) for key in TEXTS]
        + [(key, pa.int64()) for key in WHOLE]
        + [("ts", _NS), ("dur", _NS), ("args", pa.struct(list(_args_types(keys).items())))]
    )


def _columns(events: pa.StructArray, keys: dict[str, pa.DataType]) -> Piece:
    """The kept events of a piece, as numpy arrays and small dictionaries."""
    phase = events.field("ph")
    keep = pc.and_(pc.is_in(phase, value_set=pa.array(_PHASES)), pc.is_valid(events.field("ts")))
    keep = pc.or_kleene(keep, pc.equal(phase, "M"))
    events = cast(pa.StructArray, events.filter(pc.fill_null(keep, False)))
    args = cast(pa.StructArray, events.field("args"))
    sparse: dict[str, tuple[np.ndarray, pa.Array]] = {}
    for key in keys:
        column = args.field(key)
        if column.null_count < len(column):
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            sparse[key] = (rows, column.drop_null())
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
