"""Where the members of a tar archive lie. Headers are read, never trusted; nothing is extracted.

Source: POSIX.1-2008, pax interchange format; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_END = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20  # bytes of a header that only lengthens the next one: names are short, bombs are not
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes: their size says nothing of what follows


class TarDamageError(Exception):
    """The archive is truncated or is none; the text says where."""


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    offset: int
    """First byte of its content in the archive."""
    size: int


def members(read: Callable[[int, int], bytes], archive_size: int) -> Iterator[Member]:
    """Regular files in their order; `read(size, offset)` gives bytes of the archive.

    An archive must end with its end mark: one that was cut between two members would otherwise look whole.
    Raises: TarDamageError.
    """
    at, told = 0, dict[str, str]()
    while True:
        header = read(BLOCK, at)
        if header == _END:
            return
        _check(header, at)
        size = _stated(told["size"], at) if told.get("size") else _number(header[124:136], at)
        kind, content = header[156:157], at + BLOCK
        extends = kind in (b"x", b"L", b"g", b"K")
        has_data = kind not in [bytes((each,)) for each in _WITHOUT_DATA]
        if has_data and content + size > archive_size:
            raise TarDamageError(
                f"is truncated: the member at byte {at:,} ends {content + size - archive_size:,} behind it"
            )
        at = content + (-(-size // BLOCK) * BLOCK if has_data else 0)
        if extends:
            if size > _MAX_EXTENSION:
                raise TarDamageError(f"has a header of {size:,} bytes at byte {content - BLOCK:,}, which no name needs")
            told |= _extension(kind, read(size, content), content)
            continue
        name = told.get("path") or _name(header)
        sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in told)
        told = {}
        if sparse:
            raise TarDamageError(f"has a sparse member ({name!r}), which cannot be read in place; pack it again")
        if kind in (b"0", b"\0", b"7") and not name.endswith("/"):
            yield Member(name, content, size)


def _check(header: bytes, at: int) -> None:
    if len(header) < BLOCK:
        raise TarDamageError(f"is truncated: it ends at byte {at + len(header):,} without the end mark")
    if _octal(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        what = "is no tar archive" if at == 0 else f"is damaged at byte {at:,}, where a member should begin"
        compressed = header[:2] == b"\x1f\x8b" or header[:4] == b"\x28\xb5\x2f\xfd"
        raise TarDamageError(what + (": it is compressed, and must not be to be read in place" if compressed else ""))


def _number(field: bytes, at: int) -> int:
    """Octal digits, or base 256 where the highest bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
    number = _octal(field)
    if number is None:
        raise TarDamageError(f"is damaged: the member at byte {at:,} has no readable size")
    return number


def _octal(field: bytes) -> int | None:
    """A number of a header; None if anything but digits is in it: a sign would make the reader go back for ever."""
    digits = field.strip(b" \0") or b"0"
    return int(digits, 8) if not digits.strip(b"01234567") else None


def _stated(size: str, at: int) -> int:
    """A size in an extended header: decimal digits, of which no file needs more than 20."""
    if not (size.isascii() and size.isdigit() and len(size) <= 20):
        raise TarDamageError(f"is damaged: the member at byte {at:,} has no readable size")
    return int(size)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _extension(kind: bytes, content: bytes, at: int) -> dict[str, str]:
    """What a header of a header says of the next member: its path, its size, that it is sparse."""
    if kind == b"L":
        return {"path": content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    if kind != b"x":  # of the link's target, or of all members: no path can be meant for all
        return {}
    told: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not 0 < length <= len(content) or not equals:
            raise TarDamageError(f"is damaged: the extended header at byte {at:,} cannot be read")
        told[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return told
