"""Which call started a kernel, and which operator made that call.

A kernel carries the correlation id of its call; the operator is the innermost that runs on the thread of the call at
that time. The `External id` of a kernel names the same operator where the call was not recorded; older writers put
the correlation id there, which is why it comes second.
"""

import numpy as np
import polars as pl

from .kinds import Kind
from .nesting import innermost_at
from .tables import Trace, once


@once
def launch_calls(trace: Trace) -> pl.DataFrame:
    """Calls that started work, by start, one for each correlation: of several the first, which contains the others.

    row, ts, dur, name, track, correlation.
    """
    places = trace.places(Kind.LAUNCH)
    correlation = trace.events["correlation"].to_numpy()[places]
    started = np.sort(trace.device["correlation"].to_numpy(), kind="stable")
    known = np.flatnonzero((correlation > 0) & _among(correlation, started))
    order, first = _firsts(correlation[known])
    known = np.sort(known[order[first]], kind="stable")
    return trace.events.select("row", "ts", "dur", "name", "track", "correlation")[places[known]]


def _among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which values are in another, sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


@once
def _by_correlation(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of `launch_calls` in order, and the places of their calls."""
    correlation = launch_calls(trace)["correlation"].to_numpy()
    order = np.argsort(correlation, kind="stable").astype(np.int32)
    return correlation[order], order


def _firsts(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order by value, and which of that order are the first of their value; quick if the column is nearly sorted."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    return order, np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(order)]


def call_places(trace: Trace, work: pl.DataFrame) -> pl.Series:
    """For each piece of work (with its correlation) the place of its call in `launch_calls`; null if it has none."""
    known, order = _by_correlation(trace)
    if not len(known):
        return pl.Series([None] * work.height, dtype=pl.Int64)
    wanted = work["correlation"].to_numpy()
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places(np.where(known[at] == wanted, order[at], -1))


def places(at: np.ndarray) -> pl.Series:
    """Places to gather from, null where they are negative."""
    column = pl.Series("place", at, dtype=pl.Int64)
    return pl.select(pl.when(column >= 0).then(column)).to_series()


def launchers(trace: Trace, kernels: pl.DataFrame | None = None) -> pl.DataFrame:
    """For each event on a device, in order: row, launch (its row), launch_ts, launch_dur, track, operator (its row).

    -1 and nulls where a trace does not say. All kernels of a CUDA graph have the same launch.
    """
    kernels = trace.device if kernels is None else kernels
    calls, at = launch_calls(trace), call_places(trace, kernels)
    found = kernels.select("row", "correlation", "external").with_columns(
        launch=calls["row"].gather(at),
        launch_ts=calls["ts"].gather(at),
        launch_dur=calls["dur"].gather(at),
        track=calls["track"].gather(at),
    )
    operators = trace.of(Kind.OPERATOR, "row", "ts", "dur", "track", "external")
    around = pl.Series(enclosing(found, operators))
    lost = found.filter((around < 0) & (pl.col("external") >= 0))
    named = operators.join(lost, on="external", how="semi").sort("row").unique("external", keep="first")
    named = named.select("external", named=pl.col("row").cast(pl.Int64))
    found = found.join(named, on="external", how="left", maintain_order="left")
    says = pl.col("external") != pl.col("correlation")
    return found.select(
        "row",
        pl.col("launch").cast(pl.Int64).fill_null(-1),
        "launch_ts",
        "launch_dur",
        "track",
        operator=pl.when(around >= 0).then(around).when(says).then("named").otherwise(-1).fill_null(-1),
    )


def enclosing(launches: pl.DataFrame, ranges: pl.DataFrame) -> np.ndarray:
    """Rows of the innermost ranges (row, ts, dur, track) around calls (launch_ts, track); int64, -1 for none."""
    rows = np.full(len(launches), -1, dtype=np.int64)
    if not ranges.height:
        return rows
    tracks = launches["track"].cast(pl.Int64).fill_null(-1).to_numpy()
    when = launches["launch_ts"].fill_null(0).to_numpy()
    row, start, dur, on = (ranges[key].to_numpy() for key in ("row", "ts", "dur", "track"))
    for track in pl.Series(tracks).unique().to_list():
        mine = np.flatnonzero(on == track)
        if len(mine):
            which = np.flatnonzero(tracks == track)
            inner = innermost_at(start[mine], start[mine] + dur[mine], when[which])
            rows[which] = np.where(inner >= 0, row[mine[inner]].astype(np.int64), -1)
    return rows


def parents(end: np.ndarray) -> np.ndarray:
    """For nested events in order of start: the last earlier one that does not end before each; -1 for none.

    Every pointer starts at the predecessor and jumps along the pointers of what it skips, which doubles its reach.
    """
    around = np.arange(-1, len(end) - 1, dtype=np.int32)
    while True:
        short = np.flatnonzero((around >= 0) & (end[around] < end))
        if not len(short):
            return around
        around[short] = around[around[short]]
