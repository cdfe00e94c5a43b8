"""The text of a trace as a stream of pieces that hold whole events; memory does not grow with the file.

A Kineto trace is one JSON object with a list `traceEvents`, or the bare list. The stream is cut between two events, so
that every piece can be read by itself; what stands before and after the list is kept as text.
"""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import isal_zlib as zlib

from ..errors import TraceError

PIECE_BYTES = 2 << 20
_READ_BYTES = 1 << 20
_MAX_EVENT_BYTES = 32 << 20
_LONGEST_BORDER = 1 << 16
_MAX_HEADER_BYTES = 64 << 20
_MAX_TAIL_BYTES = 16 << 20

# Two neighbours in the list. Keys of an event's own first member; a list of objects inside `args` begins otherwise.
_BORDER = re.compile(rb'\}\s*,\s*(?=\{\s*"(?:ph|cat|name|pid|tid|ts|dur|args)"\s*:)')
_END = re.compile(rb"\}\s*\](?=\s*(?:[,}]|$))")
_LIST = re.compile(rb'"traceEvents"\s*:\s*\[')


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
            cut = self._border(part)
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

    def _border(self, text: bytes) -> tuple[int, int] | None:
        """Where the last event that is certainly whole ends, and where the next begins."""
        end = len(text)
        while end > 0:
            at = max(0, end - _LONGEST_BORDER)
            found = list(_BORDER.finditer(text, at, min(len(text), end + _LONGEST_BORDER)))
            if found:
                return found[-1].start() + 1, found[-1].end()
            end = at
        return None

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
        while True:
            more = self._gather(text, _READ_BYTES)
            held += more
            start = held.lstrip(b"\xef\xbb\xbf \t\r\n")
            if start[:1] == b"[":
                return start[1:].lstrip()
            if start and start[:1] != b"{":
                raise TraceError(f"{self.path}: not JSON; a trace begins with {{ or [")
            for match in _LIST.finditer(held):
                header = self._parse_header(held[: match.start()])
                if header is not None:
                    self.header |= header
                    return held[match.end() :].lstrip()
            if not more:
                break
            if len(held) > _MAX_HEADER_BYTES:
                break
        if not held.strip():
            raise TraceError(f"{self.path}: empty; record it again")
        raise TraceError(f"{self.path}: no 'traceEvents' list; is it a Kineto trace?")

    def _parse_header(self, text: bytes) -> dict[str, Any] | None:
        return _loads(text.rstrip().rstrip(b",") + b"}")

    def _last(self, held: bytes) -> Generator[bytes]:
        """The events up to the end of the list, and what stands behind it."""
        begin = max((match.end() for match in _BORDER.finditer(held)), default=0)
        rest = held[begin:]
        if begin:
            yield held[: held.rindex(b"}", 0, begin) + 1]
        if rest.lstrip()[:1] == b"]":
            self._read_tail(rest.lstrip()[1:])
            return
        text = rest.decode(errors="replace")
        try:
            event, end = json.JSONDecoder(strict=False).raw_decode(text.lstrip())
        except (ValueError, RecursionError):
            ends = list(_END.finditer(rest))
            if ends:  # the event is whole, and no JSON; the parser sees to that
                yield rest[: ends[-1].start() + 1]
            elif rest.strip():
                self.notes.append("the file ends in the middle of an event: its writer crashed, or it was cut")
            return
        if isinstance(event, dict):
            yield json.dumps(event).encode()
        tail = text.lstrip()[end:].lstrip()
        if tail[:1] == "]":
            self._read_tail(tail[1:].encode())
        else:
            self.notes.append("the list of events does not end: its writer crashed, or the file was cut")

    def _read_tail(self, tail: bytes) -> None:
        """Members behind the list; a bare list has none."""
        tail = tail.strip()
        if not tail or len(tail) > _MAX_TAIL_BYTES:
            return
        members = _loads(b"{" + tail.lstrip(b", \t\r\n"))
        if members is None:
            self.notes.append("what stands behind the events is no JSON and was left out")
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
            if not self.num_bytes:
                raise TraceError(f"{self.path}: damaged gzip data ({error}); record it again") from error
            self.notes.append(f"the gzip data is damaged ({error}); events behind that are missing")

    def _mind_limits(self) -> None:
        if self.num_bytes > self.limits.max_bytes:
            raise TraceError(f"{self.path}: more than {self.limits.max_bytes >> 30} GiB unpacked; record fewer steps")
        if self.num_bytes > self.limits.ratio_from_bytes and self.num_bytes > self.limits.max_ratio * self.packed_bytes:
            raise TraceError(
                f"{self.path}: unpacks to more than {self.limits.max_ratio} times its size; no trace does that"
            )


def _loads(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    try:
        found = json.loads(text.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None
