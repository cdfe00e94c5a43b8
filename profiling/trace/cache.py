"""Keeps the tables of a trace beside it, and what was made of them: a second look neither reads nor analyses again.

A cache is a folder of Arrow files. It is believed only if it was made by this version from a file of this size and
time of change, and if its files are what was written; anything else about it that is not as expected means that the
trace is read again. What was made of the tables is believed only if the very same code made it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import polars as pl
from isal.isal_zlib import crc32

from .heap import tidily
from .tables import Trace, are_sound, version_of

FORMAT = 5
"""To be raised with every change of the tables or of what is a kind."""
_FOLDER = ".stepladder-cache"
_TABLES = ("events", "instants", "tracks")
_MADE = "made-"
_NOT_AS_EXPECTED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError),
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
)
"""What comes of files that are not those that were kept."""


def cache_folder(path: Path, *, detail: bool) -> Path:
    """Where the tables of a trace are kept."""
    return path.parent / _FOLDER / f"{path.name}.{'detail' if detail else 'times'}"


def load_cached(path: Path, *, detail: bool) -> Trace | None:
    """The tables of an unchanged trace; None if there are none. With details, if they are there, also without."""
    for with_detail in (False, True)[detail:]:
        folder = cache_folder(path, detail=with_detail)
        with contextlib.suppress(*_NOT_AS_EXPECTED):
            about = _sealed((folder / "about.json").read_text())
            if about["key"] != [FORMAT, *(version_of(path) or ())]:
                continue
            sums = about["sums"]
            tables = {name: _table(folder / f"{name}.arrow", sums[name]) for name in _TABLES}
            args = {key: _table(folder / f"args-{i}.arrow", sums[f"args-{i}"]) for i, key in enumerate(about["args"])}
            trace = Trace(
                path=path,
                rank=about["rank"],
                header=about["header"],
                notes=tuple(about["notes"]),
                num_bytes=about["num_bytes"],
                detail=with_detail,
                kept_in=folder,
                args=args,
                events=tables["events"],
                instants=tables["instants"],
                tracks=tables["tracks"],
            )
            if are_sound(trace):
                return trace
    return None


def save_cached(trace: Trace) -> Trace:
    """Keep the tables; gives the trace as it is kept.

    A folder that cannot be written to is no error, the next look just takes as long. Not those of a file that has
    changed since its reading began: its tables may be of half of it.
    """
    if trace.version is None or trace.version != version_of(trace.path):
        return trace
    target = cache_folder(trace.path, detail=trace.detail)
    with contextlib.suppress(OSError):
        target.parent.mkdir(exist_ok=True)
        with _put_in_place(target) as folder:
            tables = {name: getattr(trace, name) for name in _TABLES}
            tables |= {f"args-{i}": frame for i, frame in enumerate(trace.args.values())}
            about: dict[str, Any] = {
                "key": [FORMAT, *trace.version],
                "sums": {name: _keep(table, folder / f"{name}.arrow") for name, table in tables.items()},
                "rank": trace.rank,
                "header": trace.header,
                "notes": trace.notes,
                "num_bytes": trace.num_bytes,
                "args": list(trace.args),
            }
            (folder / "about.json").write_text(_seal(about))
        return dataclasses.replace(trace, kept_in=target)
    return trace


def kept_tables(trace: Trace, make: Callable[[Trace], Mapping[str, pl.DataFrame]]) -> Mapping[str, pl.DataFrame]:
    """What a function makes of a trace: as it was kept in the trace's cache, else made now, and kept.

    Only functions of modules are kept, and those with given keywords; in memory alone if the trace has no cache.
    """
    name, code = _name_of(make), _code()
    if trace.kept_in is None or name is None or code is None:
        return tidily(make)(trace)
    target = trace.kept_in / f"{_MADE}{code}-{_digest(name.encode())}"
    with contextlib.suppress(*_NOT_AS_EXPECTED):
        sums: list[tuple[str, int]] = _sealed((target / "names.json").read_text())
        return {str(name): _table(target / f"{i}.arrow", each) for i, (name, each) in enumerate(sums)}
    tables = tidily(make)(trace)
    with contextlib.suppress(OSError, pl.exceptions.PolarsError):
        for old in trace.kept_in.glob(f"{_MADE}*"):
            if not old.name.startswith(f"{_MADE}{code}-"):
                shutil.rmtree(old)
        with _put_in_place(target) as folder:
            made = [(name, _keep(table, folder / f"{i}.arrow")) for i, (name, table) in enumerate(tables.items())]
            (folder / "names.json").write_text(_seal(made))
    return tables


def _keep(table: pl.DataFrame, path: Path) -> int:
    """Write a table; gives the sum by which it is known again."""
    table.write_ipc(path, compression="lz4")
    return _sum_of_file(path)


def _table(path: Path, known: int) -> pl.DataFrame:
    """A table as it was kept. Raises: one of `_NOT_AS_EXPECTED` if it is another."""
    if _sum_of_file(path) != known:
        raise ValueError(f"{path}: damaged")
    return pl.read_ipc(path)


def _sum_of_file(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = crc32(block, found)
    return found


def _seal(value: Any) -> str:
    return json.dumps({"sum": crc32(json.dumps(value).encode()), "of": value})


def _sealed(text: str) -> Any:
    """What was sealed. Raises: one of `_NOT_AS_EXPECTED` if it is something else."""
    found = json.loads(text)
    if found["sum"] != crc32(json.dumps(found["of"]).encode()):
        raise ValueError("damaged")
    return found["of"]


@contextlib.contextmanager
def _put_in_place(target: Path) -> Generator[Path]:
    """A new folder, which takes the place of another when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as made:
        folder = Path(made) / "folder"
        folder.mkdir()
        yield folder
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)


def _name_of(make: Callable[..., object]) -> str | None:
    """What tells a function from all others; None if its name does not."""
    if isinstance(make, partial):
        inner = _name_of(make.func)
        return inner and f"{inner} {make.args} {sorted(make.keywords.items())}"
    name = getattr(make, "__qualname__", "<")
    return None if "<" in name else f"{make.__module__}.{name}"


@cache
def _code() -> str | None:
    """A digest of the code that makes tables; None if it cannot be read."""
    here = Path(__file__).parent
    files = sorted([*here.rglob("*.py"), *here.parent.glob("*.py")])
    if not files:
        return None
    return _digest(pl.__version__.encode(), *(file.read_bytes() for file in files))


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:16]
