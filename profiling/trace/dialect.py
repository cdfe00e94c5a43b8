"""What writers of traces do to JSON and to types, and how it is mended.

[Note: dialects]
Writers disagree: `stream` is 7 or "7", `bytes` a string on ROCm, `pid` a word on some rows, a bandwidth is `inf`, a
name holds a control character. Arrow wants one type for each column. So a piece that it refuses is tried again with
the key in question rewritten, which is then done to the rest of the file at once; then by Python's reader, which takes
the events one by one and leaves out only those that nobody can read.
"""

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Literal, cast

Mend = Callable[[bytes], bytes]
NumberOf = Callable[[str], str]
"""The text of a number for what stands in quotation marks."""

_REFUSAL = re.compile(r"Column\(/e/\[\]/\[\](/args)?/(.+?)\) changed from (\w+) to (\w+)")
_MOST_WASTED = 8 << 20
"""Characters of one text that may be read in vain: those up to where an event turned out to be damaged."""
_TOO_DEEP_COSTS = 1 << 14
"""The same for brackets in brackets, which Python's reader follows only so far and then does not say how far."""
_NEXT_EVENT = re.compile(r"\}\s*,\s*(?=\{)")
_NOT_A_NUMBER = re.compile(rb"(?<=[:,\[\s])[-+]?(?:nan|inf|infinity)\b(?:\(\w*\))?(?=\s*[,}\]])", re.IGNORECASE)
_BELOW_NS = re.compile(rb'("(?:ts|dur)"\s*:\s*-?[0-9]+\.[0-9]{3})[0-9]+')


def mend_for(message: str, number_of: NumberOf) -> tuple[str, Mend] | None:
    """What to do about a refusal of Arrow's, under a name of its own; None if there is nothing."""
    if "Invalid value" in message:
        return "not a number", lambda text: _NOT_A_NUMBER.sub(b"null", text)
    if "requires scale" in message:
        return "below nanoseconds", lambda text: _BELOW_NS.sub(rb"\1", text)
    match = _REFUSAL.search(message)
    if not match:
        return None
    key, had, came = match[2], match[3], match[4]
    begin = rb'("' + re.escape(key.encode()) + rb'"\s*:\s*)'
    name = f"{key} is a {came}"
    if (had, came) == ("number", "string"):
        quoted = re.compile(begin + rb'"((?:[^"\\]|\\.)*+)"')
        return name, lambda text: quoted.sub(
            lambda match: match[1] + number_of(match[2].decode(errors="replace")).encode(), text
        )
    if (had, came) == ("string", "number"):
        number = re.compile(begin + rb"(-?[0-9][0-9.eE+-]*+)")
        return name, lambda text: number.sub(rb'\1"\2"', text)
    if (had, came) == ("string", "array"):
        return name, quote_lists(key)
    return None


def digits(text: str) -> str:
    """The number that a text spells, in decimal or hexadecimal; null if it spells none."""
    try:
        return str(int(text, 0))
    except ValueError:
        try:
            return repr(float(text))
        except ValueError:
            return "null"


def _list_pattern(depth: int) -> bytes:
    """A list of numbers, strings, and lists of up to so many further levels; possessive, so that it is one pass."""
    inner = b"" if depth == 0 else b"|" + _list_pattern(depth - 1)
    return rb'\[(?:[^\[\]"{}]|"(?:[^"\\]|\\.)*+"' + inner + rb")*+\]"


_LIST = _list_pattern(4)


def quote_lists(key: str) -> Mend:
    """Make the lists of a key texts: they are not of one type, and few are ever looked at."""
    lists = re.compile(rb'("' + re.escape(key.encode()) + rb'"\s*:\s*)(' + _LIST + rb")")
    return lambda text: lists.sub(lambda match: match[1] + json.dumps(match[2].decode(errors="replace")).encode(), text)


def one_by_one(piece: bytes, real: Callable[[str], Any] = Decimal) -> Iterator[dict[str, Any] | None]:
    """The events of a text, by Python's reader; None in the place of each that cannot be read.

    Numbers with a point come as Decimal: a float of microseconds since 1970 is a quarter of a microsecond wide.
    Of a text in which reading fails time and again, far behind where it began, the rest is given up.
    """
    text = piece.decode(errors="replace")
    decoder = json.JSONDecoder(strict=False, parse_float=real)
    at, wasted = 0, 0
    while (begin := text.find("{", at)) >= 0:
        if text[at:begin].strip(", \t\r\n"):
            yield None
        try:
            event, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            yield None
            wasted += error.pos - begin if isinstance(error, json.JSONDecodeError) else _TOO_DEEP_COSTS
            border = _NEXT_EVENT.search(text, begin + 1)
            if border is None:
                return
            at = border.end()
            if at > _TOO_DEEP_COSTS:  # an error counts the lines from the beginning of the text on
                text, at = text[at:], 0
            if wasted > _MOST_WASTED:
                yield from (None for _ in _NEXT_EVENT.finditer(text, at))
                return
        else:
            yield cast(dict[str, Any], event)


def as_type(value: Any, kind: Literal["text", "whole", "real"]) -> Any:
    """A value as a column takes it; None if it cannot be."""
    if value is None or isinstance(value, dict):
        return None
    try:
        if kind == "text":
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            return text.encode(errors="replace").decode()
        if isinstance(value, list):
            return None
        if kind == "whole":
            number = int(value, 0) if isinstance(value, str) else value
            return int(number) if -(1 << 63) <= number < 1 << 63 else None  # 1e999999999 would be long in the making
        return float(value)
    except (ValueError, OverflowError, ArithmeticError):
        return None


def microseconds(value: Any) -> Decimal | None:
    """A time with three digits behind the point; None if it is no number, or no time."""
    try:
        number = Decimal(str(value)) if isinstance(value, int | str | float) else value
        if not isinstance(number, Decimal) or isinstance(value, bool) or not number.is_finite() or abs(number) > 10**18:
            return None
        return number.quantize(Decimal("0.001"))
    except ArithmeticError:
        return None
