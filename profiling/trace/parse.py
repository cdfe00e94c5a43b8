"""Text of events -> typed columns. Arrow parses; what it refuses is mended for a file, a piece, or one event.

[Note: dialects]
Writers disagree: `stream` is 7 or "7", `bytes` a string on ROCm, `pid` a word on some rows, a bandwidth is `inf`, a
name holds a control character. Arrow wants one type for each column. So a piece that it refuses is tried again with
the key in question rewritten, which is then done to the rest of the file at once; then by Python's reader, which takes
the events one by one and leaves out only those that nobody can read.
"""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyarrow makes its compute functions at run time and has no annotations.

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

NO_VALUE = -1
"""In columns of whole numbers: the event does not have the key."""
_NS = pa.decimal128(24, 3)  # microseconds with three digits behind the point: the unscaled number is nanoseconds
_MAX_MENDS = 24

TEXTS = ("ph", "cat", "name")
WHOLE = ("pid", "tid")
ARGS_WHOLE = ("correlation", "stream", "device", "External id")
SPARSE: dict[str, pa.DataType] = {
    "Collective name": pa.string(),
    "dtype": pa.string(),
    "In msg nelems": pa.int64(),
    "Out msg nelems": pa.int64(),
    "Group size": pa.int64(),
    "Process Group Name": pa.string(),
    "Process Group Ranks": pa.string(),
    "Seq": pa.int64(),
    "bytes": pa.int64(),
    "memory bandwidth (GB/s)": pa.float64(),
    "name": pa.string(),
}
"""Keys of `args` that few events have; kept with the number of their row."""
DETAIL: dict[str, pa.DataType] = {
    "Input Dims": pa.string(),
    "Input type": pa.string(),
    "Concrete Inputs": pa.string(),
    "Call stack": pa.string(),
    "Process Group Description": pa.string(),
    "Sequence number": pa.int64(),
    "Fwd thread id": pa.int64(),
    "Python id": pa.int64(),
    "Python parent id": pa.int64(),
    "wait_on_stream": pa.int64(),
    "wait_on_cuda_event_record_corr_id": pa.int64(),
    "blocks per SM": pa.float64(),
    "warps per SM": pa.float64(),
    "est. achieved occupancy %": pa.float64(),
    "Bytes": pa.int64(),
    "Addr": pa.int64(),
    "Total Allocated": pa.int64(),
    "Total Reserved": pa.int64(),
    "Device Type": pa.int64(),
    "Device Id": pa.int64(),
}
"""Further ones, which cost time and memory and which only some analyses ask for."""
_LISTS = ("Input Dims", "Input type", "Concrete Inputs")
_PHASES = ("X", "i", "I", "M", "C")
"""Kinds of events that are kept: complete, instant, metadata, counter."""


@dataclass(kw_only=True)
class Piece:
    """Columns of some events: X the ones that are kept, in the order of the file."""

    ts: np.ndarray
    """[X] int64, nanoseconds."""
    dur: np.ndarray
    """[X] int64, nanoseconds; -1 for events that have no length."""
    whole: dict[str, np.ndarray]
    """[X] int64 each."""
    texts: dict[str, tuple[np.ndarray, list[str]]]
    """[X] codes, and what they stand for; code -1 for none."""
    sparse: dict[str, tuple[np.ndarray, pa.Array]]
    """Rows, and values."""


@dataclass(kw_only=True)
class Parser:
    """What is known about the dialect of a file; several threads may parse pieces of it."""

    detail: bool = False
    """Read the keys of `DETAIL` too."""
    words: dict[str, int] = field(default_factory=dict[str, int])
    """Numbers given to processes and threads that have a name instead, counted downwards from -2."""
    num_unreadable: int = 0
    """Events that could not be read."""
    _mends: dict[tuple[str, str], Callable[[bytes], bytes]] = field(
        default_factory=dict[tuple[str, str], Callable[[bytes], bytes]]
    )

    def parse(self, piece: bytes) -> Piece:
        """Columns of a text `{...}, {...}`; never raises for what stands in it."""
        try:
            return _columns(self._by_arrow(piece), self._keys())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            pass
        events = [self._tidy(event) for event in self._by_python(piece)]
        made = pa.array(events, type=_event_type(self._keys()))
        return _columns(cast(pa.StructArray, made), self._keys())

    def _keys(self) -> dict[str, pa.DataType]:
        return SPARSE | DETAIL if self.detail else SPARSE

    def _by_arrow(self, piece: bytes) -> pa.StructArray:
        schema = pa.schema([("e", pa.list_(_event_type(self._keys())))])
        if self.detail:
            for key in _LISTS:
                piece = _quote_lists(key)(piece)
        for mend in tuple(self._mends.values()):
            piece = mend(piece)
        for _ in range(_MAX_MENDS):
            text = b'{"e":[' + piece + b"]}"
            try:
                found = pj.read_json(
                    pa.BufferReader(text),
                    read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
                    parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
                )
            except pa.ArrowInvalid as error:
                key, mend = self._mend(str(error))
                if key in self._mends:
                    raise
                self._mends[key] = mend
                piece = mend(piece)
                continue
            if found.num_rows != 1:
                raise pa.ArrowInvalid("the text is more than a list")
            return cast(pa.StructArray, cast(Any, found["e"].chunk(0)).values)
        raise pa.ArrowInvalid("too many mends")

    def _mend(self, message: str) -> tuple[tuple[str, str], Callable[[bytes], bytes]]:
        """What to do about a refusal. Raises: ArrowInvalid if there is nothing."""
        if "Invalid value" in message:
            return ("", "not a number"), lambda text: _NOT_A_NUMBER.sub(b"null", text)
        match = re.search(r"Column\(/e/\[\](/args)?/(.+?)\) changed from (\w+) to (\w+)", message)
        if not match:
            raise pa.ArrowInvalid(message)
        key, had, came = match[2], match[3], match[4]
        if had == "number" and came == "string":
            number = self._number_of if key in WHOLE else _digits
            return (key, came), lambda text: _text_of(key).sub(number, text)
        if had == "string" and came == "number":
            return (key, came), lambda text: _number_at(key).sub(rb'\1"\2"', text)
        if had == "string" and came == "array":
            return (key, came), _quote_lists(key)
        raise pa.ArrowInvalid(message)

    def _number_of(self, match: "re.Match[bytes]") -> bytes:
        return match[1] + str(self._word(match[2].decode(errors="replace"))).encode()

    def _word(self, text: str) -> int:
        """Number of a process or thread that a file names by a word."""
        try:
            return int(text)
        except ValueError:
            return self.words.setdefault(text, -2 - len(self.words))

    def _by_python(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Event by event; what cannot be read is counted and left out."""
        text = piece.decode(errors="replace")
        decoder = json.JSONDecoder(strict=False)
        at = 0
        while True:
            at = text.find("{", at)
            if at < 0:
                return
            try:
                event, at = decoder.raw_decode(text, at)
                if isinstance(event, dict):
                    yield cast(dict[str, Any], event)
            except (ValueError, RecursionError):
                self.num_unreadable += 1
                border = _NEXT_EVENT.search(text, at + 1)
                if border is None:
                    return
                at = border.end()

    def _tidy(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with what is asked for, of the types that are asked for."""
        args = event.get("args")
        args = cast(dict[str, Any], args) if isinstance(args, dict) else {}
        kept = {key: _as(args.get(key), kind) for key, kind in _args_types(self._keys()).items()}
        made: dict[str, Any] = {key: _as(event.get(key), pa.string()) for key in TEXTS}
        for key in WHOLE:
            value = event.get(key)
            made[key] = self._word(value) if isinstance(value, str) else _as(value, pa.int64())
        for key in ("ts", "dur"):
            value = _as(event.get(key), pa.float64())
            # What a float of microseconds says beyond a nanosecond is noise.
            made[key] = None if value is None or abs(value) > 1e18 else _decimal(value)
        return made | {"args": kept}


_NEXT_EVENT = re.compile(r"\}\s*,\s*(?=\{)")
_NOT_A_NUMBER = re.compile(rb"(?<=[:,\[\s])[-+]?(?:nan|inf|infinity)\b(?:\(\w*\))?(?=\s*[,}\]])", re.IGNORECASE)


def _decimal(value: float) -> Any:
    from decimal import Decimal

    return Decimal(round(value * 1000)).scaleb(-3)


def _text_of(key: str) -> "re.Pattern[bytes]":
    return re.compile(rb'("' + re.escape(key.encode()) + rb'"\s*:\s*)"((?:[^"\\]|\\.)*)"')


def _number_at(key: str) -> "re.Pattern[bytes]":
    return re.compile(rb'("' + re.escape(key.encode()) + rb'"\s*:\s*)(-?[0-9][0-9.eE+-]*)')


def _digits(match: "re.Match[bytes]") -> bytes:
    """The number that stands in quotation marks; null if it is none."""
    try:
        return match[1] + str(int(match[2], 0)).encode()
    except ValueError:
        try:
            return match[1] + repr(float(match[2])).encode()
        except ValueError:
            return match[1] + b"null"


def _list_pattern(depth: int) -> bytes:
    """A list of numbers, strings, and lists of up to so many further levels; for possessive matching in one pass."""
    inner = b"" if depth == 0 else b"|" + _list_pattern(depth - 1)
    return rb'\[(?:[^\[\]"{}]|"(?:[^"\\]|\\.)*+"' + inner + rb")*+\]"


_LIST = _list_pattern(4)


def _quote_lists(key: str) -> Callable[[bytes], bytes]:
    """Make the lists of a key texts: they are not of one type, and few are ever looked at."""
    lists = re.compile(rb'("' + re.escape(key.encode()) + rb'"\s*:\s*)(' + _LIST + rb")")
    return lambda text: lists.sub(lambda match: match[1] + json.dumps(match[2].decode(errors="replace")).encode(), text)


def _as(value: Any, kind: pa.DataType) -> Any:
    """A value as a column takes it; None if it cannot be."""
    if value is None or isinstance(value, dict):
        return None
    try:
        if pa.types.is_string(kind):
            text = value if isinstance(value, str) else json.dumps(value)
            return text.encode(errors="replace").decode()
        if isinstance(value, list):
            return None
        if pa.types.is_integer(kind):
            number = int(value, 0) if isinstance(value, str) else int(value)
            return number if -(1 << 63) <= number < 1 << 63 else None
        return float(value)
    except (ValueError, OverflowError):
        return None


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
