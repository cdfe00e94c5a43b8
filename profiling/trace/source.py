"""The text of a trace as a stream of pieces that hold whole events; memory does not grow with the file.

A Kineto trace is one JSON object with a list `traceEvents`, or the bare list. The stream is cut between two events, so
that every piece can be read by itself; what stands before and after the list is kept as text.
"""

import json
import re
import zlib as careful_zlib
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import isal_zlib as zlib

from ..errors import TraceError
from .structure import last_border, list_begin, list_end
from .tables import version_of

PIECE_BYTES = 2 << 20
_READ_BYTES = 1 << 20
_MAX_EVENT_BYTES = 32 << 20
_MAX_HEADER_BYTES = 64 << 20
_MAX_TAIL_BYTES = 16 << 20

_BLANK = b", \t\r\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_END = re.compile(rb"\}\s*\](?=\s*(?:[,}]|$))")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an untrusted file may cost."""

    max_bytes: int = 64 << 30
    """Unpacked."""
    max_ratio: int = 300
    """Unpacked bytes for one packed byte; real traces have 10 to 20."""
    ratio_from_bytes: int = 256 << 20
    """Unpacked, from which on the ratio is looked at."""


@dataclass(kw_only=True)
class Source:
    """One trace file, read once from front to back by `pieces`; the other fields are there when that is done."""

    path: Path
    limits: Limits = field(default_factory=Limits)
    header: dict[str, Any] = field(default_factory=dict[str, Any])
    """Members of the object beside the events."""
    notes: list[str] = field(default_factory=list[str])
    """What was wrong with the file and could be lived with, a sentence each."""
    num_bytes: int = 0
    """Unpacked."""
    packed_bytes: int = 0
    """Read from the file so far."""
    version: tuple[int, int] | None = field(init=False)
    """Of the file, before it is opened."""

    def __post_init__(self) -> None:
        self.version = version_of(self.path)

    def pieces(self) -> Generator[bytes]:
        """Texts `{...}, {...}, {...}` of one or more events.

        Raises: TraceError if the file is missing, unreadable, not a trace, or beyond the limits.
        """
        text = self._unpacked()
        parts = [self._find_list(text)]
        size = len(parts[0])
        for part in self._blocks(text):
            parts.append(part)
            size += len(part)
            if size < PIECE_BYTES:
                continue
            # An event can be longer than a block, and a border can lie where two meet.
            if size > _MAX_EVENT_BYTES:
                parts = [part := b"".join(parts)]
            cut = last_border(part)
            if cut is not None:
                parts[-1] = part[: cut[0]]
                yield b"".join(parts)
                parts = [part[cut[1] :]]
                size = len(parts[0])
            elif size > _MAX_EVENT_BYTES:
                raise TraceError(f"{self.path}: an event longer than {_MAX_EVENT_BYTES >> 20} MiB; not a Kineto trace")
        yield from self._last(b"".join(parts))

    def _blocks(self, text: Iterator[bytes]) -> Iterator[bytes]:
        """The text in parts that are long enough to hold events."""
        while block := self._gather(text, _READ_BYTES):
            yield block

    def _gather(self, text: Iterator[bytes], at_least: int) -> bytes:
        parts: list[bytes] = []
        for part in text:
            parts.append(part)
            at_least -= len(part)
            if at_least <= 0:
                break
        return b"".join(parts)

    def _find_list(self, text: Iterator[bytes]) -> bytes:
        """Read up to the first event; returns what was read of the list."""
        held = b""
        while len(held) <= _MAX_HEADER_BYTES:
            more = self._gather(text, max(_READ_BYTES, len(held)))  # twice as much each time: read it all twice at most
            held = (held + more).removeprefix(_BYTE_ORDER_MARK).lstrip()
            if held[:1] == b"[":
                return held[1:]
            if held and held[:1] != b"{":
                raise TraceError(f"{self.path}: not JSON; a trace begins with {{ or [")
            if found := list_begin(held):
                self._keep(_members(held[: found[0]].rstrip(_BLANK) + b"}"), "before")
                return held[found[1] :]
            if not more:
                break
        if not held:
            raise TraceError(f"{self.path}: empty; record it again")
        raise TraceError(f"{self.path}: no 'traceEvents' list; is it a Kineto trace?")

    def _last(self, held: bytes, *, may_have_another: bool = True) -> Generator[bytes]:
        """The events up to the end of the list, and what stands behind it."""
        border = None if b'"traceEvents"' in held else last_border(held)  # which might be one of another list
        last = border[1] if border else 0
        bracket = list_end(held, last).bracket
        if last and bracket is not None and _tail(held, bracket) is None:
            # Perhaps a list in the arguments of the last event, of objects like events: then it ends further on.
            whole = list_end(held, 0).bracket
            bracket = whole if whole is not None and _tail(held, whole) is not None else bracket
        if bracket is None:
            yield from self._cut_off(held, last)
            return
        if events := held[:bracket].rstrip(_BLANK):
            yield events
        tail = b"{" + held[bracket + 1 :].lstrip(_BLANK)
        another = list_begin(tail) if may_have_another else None
        if another:
            self.notes.append("there are two lists 'traceEvents'; the events of both were read")
            self._keep(_members(tail[: another[0]].rstrip(_BLANK) + b"}"), "between")
            yield from self._last(tail[another[1] :], may_have_another=False)
        else:
            self._keep(_tail(held, bracket), "behind")

    def _cut_off(self, held: bytes, last: int) -> Generator[bytes]:
        """The events of a list without an end, of which the last one begins at a place."""
        ends = list(_END.finditer(held, last))
        if ends:  # the event is whole, and no JSON; the parser sees to that
            yield held[: ends[-1].start() + 1]
            return
        end = list_end(held, last).events_end
        if events := held[:end].rstrip(_BLANK):
            yield events
        if held[end:].strip(_BLANK):
            self.notes.append("the file ends in the middle of an event: its writer crashed, or it was cut")
        else:
            self.notes.append("the list of events does not end: its writer crashed, or the file was cut")

    def _keep(self, members: dict[str, Any] | None, where: str) -> None:
        if members is None:
            self.notes.append(f"what stands {where} the events is no JSON and was left out")
        else:
            self.header |= members

    def _unpacked(self) -> Generator[bytes]:
        """The text of the file, gzip or plain by its first bytes."""
        try:
            with self.path.open("rb") as file:
                head = file.read(2)
                file.seek(0)
                for part in self._inflate(file) if head == b"\x1f\x8b" else iter(lambda: file.read(_READ_BYTES), b""):
                    self.num_bytes += len(part)
                    self.packed_bytes = file.tell()
                    self._mind_limits()
                    yield part
        except FileNotFoundError as error:
            raise TraceError(f"{self.path}: no such trace") from error
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def _inflate(self, file: BinaryIO) -> Generator[bytes]:
        """All members of a gzip file; a damaged or missing end is noted, and what came before it stands."""
        inflater = zlib.decompressobj(wbits=31)
        packed = file.read(_READ_BYTES // 4)
        try:
            while packed:
                part = inflater.decompress(packed, _READ_BYTES)
                packed = inflater.unconsumed_tail
                if part:
                    yield part
                if inflater.eof:
                    packed = inflater.unused_data.lstrip(b"\0")
                    if packed[:2] not in (b"", b"\x1f", b"\x1f\x8b"):
                        self.notes.append("bytes behind the gzip data were left out")
                        return
                    packed = packed or file.read(_READ_BYTES // 4)
                    inflater = zlib.decompressobj(wbits=31)
                elif not packed:
                    packed = file.read(_READ_BYTES // 4)
                    if not packed:
                        self.notes.append("the gzip data ends too early: its writer crashed, or it was cut")
        except zlib.error as error:  # pyright: ignore[reportGeneralTypeIssues]  (its stub calls it an instance)
            yield from _rescued(file, self.num_bytes)
            if not self.num_bytes:
                raise TraceError(f"{self.path}: damaged gzip data ({error}); record it again") from error
            self.notes.append(f"the gzip data is damaged ({error}); events may be missing")

    def _mind_limits(self) -> None:
        if self.num_bytes > self.limits.max_bytes:
            raise TraceError(f"{self.path}: more than {self.limits.max_bytes >> 30} GiB unpacked; record fewer steps")
        if self.num_bytes > self.limits.ratio_from_bytes and self.num_bytes > self.limits.max_ratio * self.packed_bytes:
            raise TraceError(
                f"{self.path}: unpacks to more than {self.limits.max_ratio} times its size; no trace does that"
            )


def _rescued(file: BinaryIO, known: int) -> Generator[bytes]:
    """What a damaged gzip file unpacks to from a place on, to the byte: a usual reading loses its last block."""
    file.seek(0)
    left_out = known
    inflater = careful_zlib.decompressobj(wbits=31)
    for packed in iter(lambda: file.read(_READ_BYTES // 4), b""):
        while packed:
            before = inflater.copy()
            try:
                part = inflater.decompress(packed, _READ_BYTES)
            except careful_zlib.error:
                found = bytearray()
                with suppress(careful_zlib.error):
                    for at in range(len(packed)):
                        found += before.decompress(packed[at : at + 1])
                        if len(found) > left_out + _READ_BYTES:
                            yield bytes(found[left_out:])
                            left_out = 0
                            found.clear()
                yield bytes(found[left_out:])
                return
            yield part[left_out:]
            left_out -= min(left_out, len(part))
            packed = inflater.unconsumed_tail
            if inflater.eof:
                packed = inflater.unused_data.lstrip(b"\0")
                inflater = careful_zlib.decompressobj(wbits=31)


def _tail(text: bytes, bracket: int) -> dict[str, Any] | None:
    """Members behind the end of the list, a bare list has none; None if they are no JSON, or too long to look at."""
    tail = text[bracket + 1 :].strip(_BLANK)
    if len(tail) > _MAX_TAIL_BYTES:
        return None
    return _members(b"{" + tail) if tail else {}


def _members(text: bytes) -> dict[str, Any] | None:
    """A JSON object but for its list of events; None if it is none."""
    try:
        found = json.loads(text.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    members = cast(dict[str, Any], found)
    members.pop("traceEvents", None)
    return members
