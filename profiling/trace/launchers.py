"""Which call started a kernel, and which operator made that call.

A kernel carries the correlation id of its call; the operator is the innermost that runs on the thread of the call at
that time. The `External id` of a kernel names the same operator where the call was not recorded; older writers put
the correlation id there, which is why it comes second.
"""

import numpy as np
import polars as pl

from .kinds import Kind
from .nesting import innermost_at
from .tables import Trace


def launch_calls(trace: Trace) -> pl.DataFrame:
    """Calls that started work, by start, one for each correlation: of several the first, which contains the others."""
    calls = trace.of(Kind.LAUNCH).filter(pl.col("correlation") > 0)
    return calls.unique("correlation", keep="first", maintain_order=True)


def launchers(trace: Trace, kernels: pl.DataFrame | None = None) -> pl.DataFrame:
    """For each event on a device, in order: row, launch (its row), launch_ts, launch_dur, track, operator (its row).

    -1 and nulls where a trace does not say. All kernels of a CUDA graph have the same launch.
    """
    kernels = trace.device if kernels is None else kernels
    calls = launch_calls(trace).join(kernels, on="correlation", how="semi")
    calls = calls.select("correlation", launch="row", launch_ts="ts", launch_dur="dur", track="track")
    found = kernels.select("row", "correlation", "external").join(
        calls, on="correlation", how="left", maintain_order="left"
    )
    operators = trace.of(Kind.OPERATOR)
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
    tracks = launches["track"]
    for track in tracks.drop_nulls().unique().to_list():
        mine = ranges.filter(pl.col("track") == track)
        if len(mine):
            which = np.flatnonzero((tracks == track).fill_null(False).to_numpy())
            at = launches["launch_ts"].gather(which).to_numpy()
            inner = innermost_at(mine["ts"].to_numpy(), (mine["ts"] + mine["dur"]).to_numpy(), at)
            rows[which] = np.where(inner >= 0, mine["row"].to_numpy().astype(np.int64)[inner], -1)
    return rows


def parents(end: np.ndarray) -> np.ndarray:
    """For nested events in order of start: the last earlier one that does not end before each; -1 for none.

    Every pointer starts at the predecessor and jumps along the pointers of what it skips, which doubles its reach.
    """
    around = np.arange(-1, len(end) - 1)
    while True:
        short = np.flatnonzero((around >= 0) & (end[around] < end))
        if not len(short):
            return around
        around[short] = around[around[short]]
