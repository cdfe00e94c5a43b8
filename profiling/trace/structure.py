"""Where events and their list begin and end in a text: by brackets, texts and keys, never by how they are laid out.

An event is an object with a key `ph`; that tells the events from the objects in their arguments and behind their list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?(\s*+:)?|[{}\[\]]', re.DOTALL)
"""A text, with the colon behind it if it is a key, or a bracket; a text without an end is one to the end of all."""
_DEPTH = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}
_BETWEEN = re.compile(rb'\}\s*,\s*(?=\{\s*")')
_LIST_BEGIN = re.compile(rb"\s*+\[\s*+")
_WINDOW_BYTES = 1 << 16
_MAX_TOKENS = 1 << 14
"""Looked at for one border. An event has some tens, so that only a text without events needs as many."""


@dataclass(frozen=True, kw_only=True)
class ListEnd:
    """How far the list of events goes."""

    events_end: int
    """Behind the last whole object."""
    bracket: int | None
    """Where the list is closed; None if it is not."""


def last_border(text: bytes) -> tuple[int, int] | None:
    """Where the last event but one ends, and where the last one begins, of which not all need be there."""
    tokens_left = _MAX_TOKENS
    for between in _backwards(text):
        depth = 0
        for token in islice(_TOKEN.finditer(text, between.end()), tokens_left):
            tokens_left -= 1
            depth += _DEPTH.get(token[0], 0)
            if depth == 1 and token[2] and token[1] == b"ph":
                return between.start() + 1, between.end()
            if depth == 0:
                break
        if not tokens_left:
            return None
    return None


def _backwards(text: bytes) -> Iterator["re.Match[bytes]"]:
    """What may stand between two events, the last first."""
    end = len(text)
    while end > 0:
        begin = max(0, end - _WINDOW_BYTES)
        found = _BETWEEN.finditer(text, begin, min(len(text), end + _WINDOW_BYTES))
        yield from reversed([match for match in found if match.start() < end])
        end = begin


def list_end(text: bytes, at: int) -> ListEnd:
    """The end of the list that the place is in, between two of its members."""
    depth, events_end = 0, at
    for token in _TOKEN.finditer(text, at):
        change = _DEPTH.get(token[0], 0)
        if change < 0 and depth == 0:
            if token[0] == b"]":
                return ListEnd(events_end=events_end, bracket=token.start())
            continue  # one bracket too many does not end the list
        depth += change
        if change < 0 and depth == 0:
            events_end = token.end()
    return ListEnd(events_end=events_end, bracket=None)


def list_begin(text: bytes) -> tuple[int, int] | None:
    """Where the key `traceEvents` of an object stands, and where its list's first member does."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += _DEPTH.get(token[0], 0)
        if depth == 0:
            return None
        if depth == 1 and token[2] and _plain(token[1]) == "traceEvents":
            begin = _LIST_BEGIN.match(text, token.end())
            if begin:
                return token.start(), begin.end()
    return None


def _plain(text: bytes) -> str:
    """A key without its escapes, of which only those of letters matter here."""
    return re.sub(rb"\\u00([0-7][0-9a-fA-F])", lambda match: bytes.fromhex(match[1].decode()), text).decode("latin-1")
