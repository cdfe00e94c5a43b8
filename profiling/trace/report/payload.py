"""Tables as text that a page may carry: JSON whose columns are typed arrays in base64."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

MAX_NAME_LENGTH = 2000
"""Characters; the names of templates of kernels are long, and nobody reads a longer one."""
_WHOLE = (np.uint8, np.uint16, np.uint32, np.int32)


def packed(frame: pl.DataFrame) -> dict[str, Any]:
    """A frame: its length, and columns `{t: element type, d: base64}`, with `w: words` if the elements are codes.

    A missing number is NaN, a missing text has code 0; whole numbers beyond 2^53 lose their last digits.
    """
    return {"n": len(frame), "c": {name: _column(frame[name]) for name in frame.columns}}


def json_text(value: Mapping[str, Any]) -> str:
    """JSON for a `<script type="application/json">`: ASCII only, and no character that HTML could read as its own."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _column(column: pl.Series) -> dict[str, Any]:
    kind = column.dtype
    if kind.is_float():
        return _array(column.cast(pl.Float64).fill_null(float("nan")).to_numpy())
    if kind.is_integer() and not column.null_count():
        return _array(_narrow(column.to_numpy()))
    if kind.is_integer():
        return _array(column.cast(pl.Float64).fill_null(float("nan")).to_numpy())
    return _texts(column)


def _texts(column: pl.Series) -> dict[str, Any]:
    texts = column.cast(pl.String, strict=False) if column.dtype != pl.String else column
    words = texts.drop_nulls().unique(maintain_order=True)
    codes = texts.replace_strict(words, pl.Series(np.arange(1, len(words) + 1)), default=0, return_dtype=pl.UInt32)
    return {"w": [_shortened(word) for word in words.to_list()]} | _array(_narrow(codes.fill_null(0).to_numpy()))


def _shortened(word: str) -> str:
    return word if len(word) <= MAX_NAME_LENGTH else word[: MAX_NAME_LENGTH - 1] + "…"


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in as few bytes as they need."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in _WHOLE:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float64)


def _array(values: np.ndarray) -> dict[str, Any]:
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return {"t": f"{values.dtype.kind}{values.dtype.itemsize}", "d": base64.b64encode(little.tobytes()).decode()}
