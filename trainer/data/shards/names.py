"""Which shards a pattern names, and bringing those of the network here."""

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ..config import matching
from ..errors import DataError
from ..wanted import Say, silent

_MAX_SHARDS = 1_000_000
_TIMEOUT_S = 60.0


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return path.startswith(("http://", "https://"))


def shown(path: str) -> str:
    """A path as it may be read by others: an address without what stands before its host or behind its path."""
    if not is_remote(path):
        return path
    scheme, _, rest = path.partition("://")
    place, mark, _ = rest.partition("?")
    _, at, host = place.rpartition("@")  # the last one: a password may hold "/" and "@"
    return f"{scheme}://{'...@' if at else ''}{host if at else place}{'?...' if mark else ''}"


def _problem_of(address: str) -> str | None:
    """Why an address cannot be asked for; None if it can."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
        if host:
            host.encode("idna")
    except ValueError:  # whose text may hold a part of a password
        return "is no address; write http://host/path, with %XX for special characters"
    if "@" in parts.netloc:
        return "holds a user or a password, which is not sent; give a signed address, or fetch the shards by hand"
    if not host or port == 0:
        return "names no host; write http://host/path"
    if re.search(r"[^!-~]", address):
        return "holds a space or a special character; write it as %XX, %20 for a space"
    return None


def expanded(pattern: str) -> Iterator[str]:
    """The paths that braces stand for: `{000..127}` counts with as many digits, `{a,b}` lists."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    first, last, several = found.groups()
    if several is not None:
        parts = several.split(",")
    else:
        if int(last) - int(first) >= _MAX_SHARDS:
            raise DataError(f"data.shards: {shown(pattern)!r} stands for more than {_MAX_SHARDS:,} shards; name fewer")
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    for part in parts:
        yield from expanded(f"{before}{part}{after}")


def missing(patterns: Sequence[str]) -> Iterator[str]:
    """A sentence for each local pattern that names no file, beginning with the pattern."""
    for pattern in patterns:
        try:
            every = list(expanded(pattern))
        except DataError as error:
            yield f"{shown(pattern)!r}: {error}"
            continue
        if wrong := next(filter(None, (_problem_of(name) for name in every if is_remote(name))), None):
            yield f"{shown(pattern)!r}: {wrong}"
            continue
        names = [name for name in every if not is_remote(name)]
        absent = [name for name in names if not matching(name)]
        if absent:
            where = "" if absent == [pattern] else f" {absent[0]}"
            yield f"{pattern!r}: no such file{where}; check the path (it is relative to {Path.cwd()})"
        elif not names and not is_remote(pattern):
            yield f"{pattern!r}: names nothing; count upwards"


def local_shards(patterns: Sequence[str], cache: Path, say: Say = silent) -> list[Path]:
    """The shards as local files, each once, in the order of the patterns; addresses are fetched into `cache` first.

    Raises: DataError.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        for name in expanded(pattern):
            paths = [_fetched(name, cache, say)] if is_remote(name) else matching(name)
            if not paths:
                raise DataError(f"data.shards: {name}: no such file; check the path (it is relative to {Path.cwd()})")
            found |= dict.fromkeys(paths)
    return list(found)


def _fetched(address: str, cache: Path, say: Say) -> Path:
    """A shard of the network as a file of the cache."""
    if wrong := _problem_of(address):
        raise DataError(f"data.shards: {shown(address)}: {wrong}")
    name = PurePosixPath(urlsplit(address).path).name or "shard.tar"
    path = cache / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name[-100:]}"
    if path.exists():
        return path
    say(f"data        fetching {shown(address)}")
    for attempt in range(3):
        try:
            return _fetch(address, path)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, EOFError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if final or attempt == 2:
                why = " ".join(str(getattr(error, "reason", None) or error).split())
                why = "".join(each for each in why if each.isprintable())[:200]  # words of the server may be in it
                raise DataError(
                    f"{shown(address)}: cannot be fetched ({why}); try again, or fetch it by hand"
                ) from None
        except ValueError:
            raise DataError(
                f"{shown(address)}: the answer cannot be read; see whether the server is one of files, or fetch it by "
                f"hand"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); set STEPLADDER_CACHE") from error
    raise AssertionError("the last attempt returns or raises")


def _fetch(address: str, path: Path) -> Path:
    """Raises: EOFError if fewer bytes come than were announced."""
    from ....profiling.capture import publish

    def write(partial: Path) -> None:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            announced = answer.headers.get("Content-Length")
            if announced is not None and file.tell() != int(announced):
                raise EOFError(f"it ended after {file.tell():,} of {announced} bytes")

    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, write)
    return path
