"""Pieces of a trace -> one table, sorted by time."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ..errors import TraceError
from .growing import Growing
from .kinds import Kind, kind_of
from .piece import ARGS_WHOLE, Piece
from .source import Source
from .tables import EXTERNAL, Trace, rank_of

_KINDS = list(Kind)
_RANK_IN_NAME = re.compile(r"rank[-_]?(\d+)")
_LATEST_NS = 1 << 62
_MANY_TRACKS = 64


class Assembly:
    """Takes pieces in order; names and threads become numbers as they come, so that a piece costs little to keep."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._name_list: list[str] = []
        self._kinds: dict[tuple[int, str | None], int] = {}
        self._tracks: dict[tuple[int, int], int] = {}
        self._columns: dict[str, Growing] = defaultdict(Growing)
        self._args: dict[str, list[tuple[np.ndarray, pl.Series]]] = defaultdict(list)
        self._instants: list[pl.DataFrame] = []
        self._thread_names: dict[tuple[int, int, str], str] = {}
        self._num_rows = 0

    def add(self, piece: Piece) -> None:
        """Keep the columns of a piece."""
        codes, words = piece.texts["ph"]
        complete, named, instant = (
            np.array([word in sort for word in [*words, "none"]])[codes] for sort in (("X",), ("M",), ("i", "I", "C"))
        )
        self._keep_names_of_threads(piece, named)
        names = self._coded_names(piece)
        fits = (np.abs(piece.ts) < _LATEST_NS) & (piece.dur < _LATEST_NS)
        self._keep_instants(piece, names, fits & instant)
        kept = np.flatnonzero(complete & fits & (piece.dur >= 0))
        columns = {
            "ts": piece.ts,
            "dur": piece.dur,
            "name": names,
            "kind": self._coded_kinds(piece, names),
            "track": self._coded_tracks(piece),
            **{key: _narrow(piece.whole[key]) for key in ARGS_WHOLE},
        }
        whole = len(kept) == len(names)
        for key, column in columns.items():
            self._columns[key].append(column if whole else column[kept])
        place = np.full(len(names), -1, dtype=np.int64)
        place[kept] = np.arange(len(kept)) + self._num_rows
        for key, (rows, values) in piece.sparse.items():
            there = place[rows] >= 0
            if there.any():
                self._args[key].append((place[rows[there]], values.filter(pl.Series(there))))
        self._num_rows += len(kept)

    def _coded_names(self, piece: Piece) -> np.ndarray:
        codes, words = piece.texts["name"]
        mine = [self._name(word) for word in words] + [self._name("")]
        return np.array(mine, dtype=np.uint32)[codes]

    def _name(self, name: str) -> int:
        found = self._names.get(name)
        if found is None:
            found = self._names[name] = len(self._name_list)
            self._name_list.append(name)
        return found

    def _coded_kinds(self, piece: Piece, names: np.ndarray) -> np.ndarray:
        """Kinds, looked up once for each pair of a name and a category that the piece has."""
        codes, words = piece.texts["cat"]
        pairs = names.astype(np.int64) * (len(words) + 1) + (codes + 1)
        seen, back = _distinct(pairs)
        kinds: list[int] = []
        for pair in seen.tolist():
            name, code = divmod(pair, len(words) + 1)
            key = (name, words[code - 1] if code else None)
            if key not in self._kinds:
                self._kinds[key] = _KINDS.index(kind_of(key[1], self._name_list[name]))
            kinds.append(self._kinds[key])
        return np.array(kinds, dtype=np.uint8)[back] if len(seen) else np.zeros(0, dtype=np.uint8)

    def _coded_tracks(self, piece: Piece) -> np.ndarray:
        pids, tids = piece.whole["pid"], piece.whole["tid"]
        parts: dict[tuple[int, int], np.ndarray] = {}
        rest = np.arange(len(pids))
        while len(rest) and len(parts) < _MANY_TRACKS:  # threads are few: one look for each is faster than a sort
            pair = int(pids[rest[0]]), int(tids[rest[0]])
            mine = (pids[rest] == pair[0]) & (tids[rest] == pair[1])
            parts[pair], rest = rest[mine], rest[~mine]
        if len(rest):
            seen, back = np.unique(np.stack([pids[rest], tids[rest]]), axis=1, return_inverse=True)
            order = np.argsort(back, kind="stable")
            ends = np.cumsum(np.bincount(back))[:-1]
            pairs = [(pid, tid) for pid, tid in seen.T.tolist()]
            parts |= dict(zip(pairs, np.split(rest[order], ends), strict=True))
        track = np.zeros(len(pids), dtype=np.uint32)
        for pair in sorted(parts):
            track[parts[pair]] = self._tracks.setdefault(pair, len(self._tracks))
        return track

    def _keep_names_of_threads(self, piece: Piece, which: np.ndarray) -> None:
        if not which.any() or "name" not in piece.sparse:
            return
        codes, words = piece.texts["name"]
        rows, values = piece.sparse["name"]
        for row, value in zip(rows.tolist(), values.to_list(), strict=True):
            if which[row] and codes[row] >= 0:
                pid, tid = int(piece.whole["pid"][row]), int(piece.whole["tid"][row])
                self._thread_names[pid, tid, words[codes[row]]] = value

    def _keep_instants(self, piece: Piece, names: np.ndarray, which: np.ndarray) -> None:
        """Events without a length, with all their arguments in one row each: they are few."""
        if not which.any():
            return
        rows = np.flatnonzero(which)
        columns: dict[str, Any] = {"ts": piece.ts[rows], "name": names[rows]}
        place = np.full(len(which), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        frame = pl.DataFrame(columns)
        for key, (at, values) in piece.sparse.items():
            there = place[at] >= 0
            if there.any():
                column = pl.DataFrame({"i": place[at[there]], key: values.filter(pl.Series(there))})
                frame = (
                    frame.with_row_index("i").with_columns(pl.col("i").cast(pl.Int64)).join(column, on="i", how="left")
                ).drop("i")
        self._instants.append(frame)

    def trace(self, source: Source, *, words: Mapping[str, int], detail: bool) -> Trace:
        """The whole table. Raises: TraceError if there is no event."""
        if not self._num_rows:
            raise TraceError(f"{source.path}: no event with a time and a length; nothing to analyse")
        base = source.header.get("baseTimeNanoseconds")
        ts = self._columns.pop("ts").values()
        shift = base if isinstance(base, int) and 0 <= base < 1 << 61 and int(np.abs(ts).max()) < 1 << 61 else 0
        if not shift:
            source.header.pop("baseTimeNanoseconds", None)  # what nobody added, nobody shall take away again
        ts += shift
        dur = self._columns.pop("dur").values()
        order = _by_time(ts, dur).astype(np.uint32)
        made: dict[str, pl.Series] = {"ts": pl.Series(ts[order]), "dur": pl.Series(dur[order])}
        del ts, dur
        for key in list(self._columns):
            column = self._columns.pop(key).values()[order]
            made["external" if key == EXTERNAL else key] = pl.Series(column)
        made["name"] = made["name"].cat.to(pl.Enum(self._name_list))
        made["kind"] = made["kind"].cat.to(pl.Enum([kind.value for kind in _KINDS]))
        place = np.empty_like(order)
        place[order] = np.arange(len(order), dtype=np.uint32)
        events = pl.DataFrame(made).with_row_index("row")
        return Trace(
            path=source.path,
            rank=_rank(source),
            header=source.header,
            notes=tuple(source.notes),
            num_bytes=source.num_bytes,
            version=source.version,
            detail=detail,
            events=events,
            args={key: _argument(parts, place) for key, parts in self._args.items()},
            instants=self._instant_table(shift),
            tracks=self._track_table(words),
        )

    def _instant_table(self, base: int) -> pl.DataFrame:
        if not self._instants:
            return pl.DataFrame({"ts": [], "name": []}, schema={"ts": pl.Int64, "name": pl.Enum(self._name_list)})
        frame = pl.concat(self._instants, how="diagonal")
        name = frame["name"].cat.to(pl.Enum(self._name_list))
        return frame.with_columns(pl.col("ts") + base, name.alias("name")).sort("ts")

    def _track_table(self, words: Mapping[str, int]) -> pl.DataFrame:
        """Processes and threads by their number in the table, with what they are called."""
        said = {number: word for word, number in words.items()}
        processes: dict[int, str] = {}
        for (pid, _, key), name in self._thread_names.items():
            if key == "process_name":
                processes.setdefault(pid, name)
        rows = [
            {
                "track": track,
                "pid": pid,
                "tid": tid,
                "process": self._thread_names.get((pid, tid, "process_name")) or processes.get(pid) or said.get(pid),
                "thread": self._thread_names.get((pid, tid, "thread_name")) or said.get(tid),
            }
            for (pid, tid), track in self._tracks.items()
        ]
        schema = {"track": pl.UInt32, "pid": pl.Int64, "tid": pl.Int64, "process": pl.String, "thread": pl.String}
        return pl.DataFrame(rows, schema=schema)


def _distinct(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of small numbers, in order, and the place of each row's among them."""
    if not len(column) or int(column.max()) > 4 * len(column) + (1 << 16):
        return np.unique(column, return_inverse=True)
    there = np.bincount(column) > 0
    return np.flatnonzero(there), (np.cumsum(there) - 1)[column]


def _narrow(column: np.ndarray) -> np.ndarray:
    """The same numbers in half the memory, if they fit."""
    fits = not len(column) or (int(column.min()) >= -(1 << 31) and int(column.max()) < 1 << 31)
    return column.astype(np.int32) if fits else column


def _by_time(ts: np.ndarray, dur: np.ndarray) -> np.ndarray:
    """Order by start; of events that start together the longest first, so that what contains another precedes it."""
    order = np.argsort(ts, kind="stable")
    same = ts[order][1:] == ts[order][:-1]
    tied = np.flatnonzero(np.concatenate([[False], same]) | np.concatenate([same, [False]]))
    rows = order[tied]
    order[tied] = rows[np.lexsort((-dur[rows], ts[rows]))]
    return order


def _argument(parts: Sequence[tuple[np.ndarray, pl.Series]], place: np.ndarray) -> pl.DataFrame:
    """Rows of the sorted table, and values."""
    rows = place[np.concatenate([rows for rows, _ in parts])]
    values = pl.concat([values for _, values in parts])
    frame = pl.DataFrame({"row": pl.Series(rows, dtype=pl.UInt32), "value": values})
    return frame.sort("row")


def _rank(source: Source) -> int | None:
    """By the header, else by the file's name: the last such word of it, for the first may be a LoRA's rank."""
    numbers: list[str] = _RANK_IN_NAME.findall(source.path.name)
    named = int(numbers[-1]) if numbers and len(numbers[-1]) < 9 else None
    said = rank_of(source.header)
    return named if said is None else said
