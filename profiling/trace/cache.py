"""Keeps the tables of a trace beside it, so that a second look need not read the text again.

A cache is a folder of Arrow files. It is believed only if it was made by this version from a file of this size and
time of change; anything else about it that is not as expected means that the trace is read again.
"""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from .kinds import Kind
from .tables import Trace

FORMAT = 2
"""To be raised with every change of the tables or of what is a kind."""
_FOLDER = ".stepladder-cache"
_TABLES = ("events", "instants", "tracks")


def cache_folder(path: Path, *, detail: bool) -> Path:
    """Where the tables of a trace are kept."""
    return path.parent / _FOLDER / f"{path.name}.{'detail' if detail else 'times'}"


def load_cached(path: Path, *, detail: bool) -> Trace | None:
    """The tables of an unchanged trace; None if there are none. With details, if they are there, also without."""
    for with_detail in (False, True)[detail:]:
        folder = cache_folder(path, detail=with_detail)
        try:
            about = json.loads((folder / "about.json").read_text())
            if about["key"] != _key(path):
                continue
            tables = {name: pl.read_ipc(folder / f"{name}.arrow") for name in _TABLES}
            args = {key: pl.read_ipc(folder / f"args-{i}.arrow") for i, key in enumerate(about["args"])}
            trace = Trace(
                path=path,
                rank=about["rank"],
                header=about["header"],
                notes=tuple(about["notes"]),
                num_bytes=about["num_bytes"],
                detail=with_detail,
                args=args,
                **tables,
            )
            if trace.events["kind"].dtype != pl.Enum([kind.value for kind in Kind]):
                continue
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
            continue
        return trace
    return None


def save_cached(trace: Trace) -> None:
    """Keep the tables; a folder that cannot be written to is no error, the next look just takes as long."""
    target = cache_folder(trace.path, detail=trace.detail)
    with contextlib.suppress(OSError):
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as made:
            folder = Path(made) / "tables"
            folder.mkdir()
            for name in _TABLES:
                getattr(trace, name).write_ipc(folder / f"{name}.arrow", compression="lz4")
            for i, frame in enumerate(trace.args.values()):
                frame.write_ipc(folder / f"args-{i}.arrow", compression="lz4")
            about: dict[str, Any] = {
                "key": _key(trace.path),
                "rank": trace.rank,
                "header": trace.header,
                "notes": trace.notes,
                "num_bytes": trace.num_bytes,
                "args": list(trace.args),
            }
            (folder / "about.json").write_text(json.dumps(about))
            if target.exists():
                shutil.rmtree(target)
            os.replace(folder, target)


def _key(path: Path) -> list[int]:
    status = path.stat()
    return [FORMAT, status.st_size, status.st_mtime_ns]
