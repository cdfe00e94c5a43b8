"""Which kernels an operator starts, in which order, and how often the same ones: candidates for one fused kernel.

Operators (and annotations) whose name contains a text are looked at, the outermost of them where they lie in each
other; the kernels of one are those that its thread launched while it ran. HTA's `get_frequent_cuda_kernel_sequences`
looks only at the smallest depth at which such an operator stands anywhere, and counts by the tree of calls; the
numbers agree where all outermost ones stand at one depth.
"""

import numpy as np
import polars as pl

from .kinds import Kind
from .launchers import launch_calls
from .tables import Trace

SCHEMA: dict[str, pl.DataType] = {
    "operator": pl.String(),
    "kernels": pl.List(pl.String()),
    "num_kernels": pl.Int64(),
    "count": pl.Int64(),
    "kernel_ns": pl.Int64(),
    "operator_ns": pl.Int64(),
    "first_ts": pl.Int64(),
}
"""`kernel_ns` and `operator_ns` are sums over all `count` times; `first_ts` is where to look in the trace."""

_CANDIDATES = ("aten::", "autograd::engine")
"""Operators of the forward and the backward pass, whatever ranges a program has drawn around them."""
_LONGEST = 64
"""Kernels: nobody fuses more by hand, and a compiled graph of more is one already."""
_MAX_CANDIDATES = 50


def candidates(trace: Trace) -> pl.DataFrame:
    """The most frequent sequences of at least three kernels under operators of the forward and backward pass."""
    found = pl.concat(kernel_sequences(trace, name, top=None) for name in _CANDIDATES)
    found = found.filter(pl.col("num_kernels") <= _LONGEST)
    return found.sort("count", "kernel_ns", "first_ts", descending=[True, True, False]).head(_MAX_CANDIDATES)


def kernel_sequences(trace: Trace, operator: str, *, min_kernels: int = 3, top: int | None = 100) -> pl.DataFrame:
    """Sequences of at least so many kernels under operators whose name contains a text, the most frequent first."""
    roots = _roots(trace, operator)
    kernels = _kernels(trace, roots)
    names = trace.events["name"].dtype
    assert isinstance(names, pl.Enum)
    if not kernels.height:
        return pl.DataFrame(schema=SCHEMA)
    code = pl.col("name").to_physical()
    found = kernels.group_by("root", maintain_order=True).agg(
        code.cast(pl.String).str.join("|").alias("sequence"),
        num_kernels=pl.len().cast(pl.Int64),
        kernel_ns=pl.col("dur").sum(),
    )
    found = found.filter(pl.col("num_kernels") >= max(1, min_kernels))
    found = found.join(roots.select("root", "ts", "dur", operator="name"), on="root", how="left", maintain_order="left")
    summed = found.group_by("operator", "sequence", maintain_order=True).agg(
        pl.col("num_kernels").first(),
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("kernel_ns").sum(),
        operator_ns=pl.col("dur").sum(),
        first_ts=pl.col("ts").min(),
    )
    order = ["count", "kernel_ns", "first_ts"]
    summed = summed.sort(order, descending=[True, True, False])
    summed = summed if top is None else summed.head(top)
    words = names.categories.to_list()
    said = [[words[int(code)] for code in sequence.split("|")] for sequence in summed["sequence"].to_list()]
    summed = summed.with_columns(pl.Series("kernels", said, dtype=pl.List(pl.String())))
    return summed.select(pl.col(column).cast(dtype) for column, dtype in SCHEMA.items())


def _roots(trace: Trace, operator: str) -> pl.DataFrame:
    """The outermost operators of each thread whose name contains the text: root (a number), ts, dur, name, track."""
    names = trace.events["name"].dtype
    assert isinstance(names, pl.Enum)
    wanted = np.flatnonzero(names.categories.str.contains(operator, literal=True).to_numpy())
    calls = trace.events.filter(
        pl.col("kind").is_in([Kind.OPERATOR.value, Kind.ANNOTATION.value]) & (pl.col("dur") > 0),
        pl.col("name").to_physical().is_in(pl.Series(wanted, dtype=pl.UInt32).implode()),
    )
    end = pl.col("ts") + pl.col("dur")
    reached = end.cum_max().shift(1).over("track")
    outermost = calls.filter(reached.is_null() | (pl.col("ts") >= reached))
    return outermost.select("ts", "dur", "name", "track").with_row_index("root")


def _kernels(trace: Trace, roots: pl.DataFrame) -> pl.DataFrame:
    """Events on a device, by start, with the root under which they were launched."""
    calls = launch_calls(trace).select("correlation", "track", call="ts")
    around = calls.join_asof(
        roots.select("root", "ts", "track", end=pl.col("ts") + pl.col("dur")),
        left_on="call",
        right_on="ts",
        by="track",
        check_sortedness=False,
    )
    around = around.filter(pl.col("call") < pl.col("end")).select("correlation", "root")
    return trace.device.join(around, on="correlation", how="inner", maintain_order="left")
