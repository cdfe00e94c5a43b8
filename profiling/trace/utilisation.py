"""How much of what a device can do a step uses: model FLOPs utilisation, and what was really executed."""

import numpy as np
import polars as pl

from .kinds import Kind
from .peaks import Peak, device_peak
from .roofline import kernel_work
from .segments import windows
from .tables import Trace
from .work import MATRIX, Family

SCHEMA = {
    "step": pl.Int64,
    "device": pl.Int64,
    "window_ns": pl.Int64,
    "flops": pl.Float64,
    "model_flops": pl.Float64,
    "mfu": pl.Float64,
    "hfu": pl.Float64,
    "known_share": pl.Float64,
}


def utilisation(trace: Trace, peak: Peak | str | None = None, work: pl.DataFrame | None = None) -> pl.DataFrame:
    """How much of its peak each device uses in each step; the columns of `SCHEMA`.

    The operations are those of the matrix products that the step launched (on the host, between its beginning and its
    end; what was launched outside of all steps is in none); `hfu` counts what was executed, `mfu` what the model needs,
    which leaves out what checkpoints compute again; each type of elements against its own peak, over the time from the
    step's start to its end on the host.
    `known_share` is the part of the time in compute kernels whose operations are known: the rest is missing in both.
    A trace without steps has one row a device with a null step, over the time from the first to the last event on any.
    `work` is what `kernel_work` gave, if it is there already.
    """
    work = kernel_work(trace) if work is None else work
    if not work.height:
        return pl.DataFrame(schema=SCHEMA)
    peak = device_peak(trace, peak)
    compute = _by_step(trace, work.filter(pl.col("kind") == Kind.COMPUTE.value))
    rates = {dtype: peak.of(dtype) if peak else None for dtype in compute["dtype"].drop_nulls().unique().to_list()}
    rate = pl.Series([rates.get(dtype) for dtype in compute["dtype"].to_list()], dtype=pl.Float64)
    product = pl.col("family").is_in([family.value for family in MATRIX])
    known = pl.col("flops").is_not_null() | (pl.col("family") == Family.FUSED.value)
    sums = (
        compute.with_columns(rate=rate)
        .group_by("place", "device")
        .agg(
            flops=pl.col("flops").filter(product).sum(),
            model_flops=pl.col("model_flops").filter(product).sum(),
            model_s=(pl.col("model_flops") / pl.col("rate")).filter(product).sum(),
            executed_s=(pl.col("flops") / pl.col("rate")).filter(product).sum(),
            known_share=pl.col("dur_ns").filter(known).sum() / pl.col("dur_ns").sum(),
        )
    )
    rows = _windows(trace).join(work.select(pl.col("device").unique().sort()), how="cross")
    rows = rows.join(sums, on=["place", "device"], how="left", maintain_order="left")
    window_s = pl.col("window_ns") / 1e9
    measured = (pl.col("window_ns") > 0) & pl.lit(peak is not None)
    rows = rows.with_columns(
        pl.col("flops", "model_flops").fill_null(0.0),
        mfu=pl.when(measured).then(pl.col("model_s").fill_null(0.0) / window_s),
        hfu=pl.when(measured).then(pl.col("executed_s").fill_null(0.0) / window_s),
    )
    return rows.select(pl.col(key).cast(kind) for key, kind in SCHEMA.items())


def _by_step(trace: Trace, compute: pl.DataFrame) -> pl.DataFrame:
    """Kernels with `place`, the index of the step that launched them (or that they began in, if no launch is told)."""
    steps = windows(trace)
    launched = compute["launch_ts"].fill_null(compute["ts"]).to_numpy()
    place = np.zeros(len(launched), dtype=np.int64) if steps.whole else steps.at(launched)
    return compute.with_columns(place=pl.Series(place, dtype=pl.Int64))


def _windows(trace: Trace) -> pl.DataFrame:
    steps = windows(trace)
    frame = pl.DataFrame(
        {
            "place": np.arange(len(steps.start)),
            "step": pl.Series([None], dtype=pl.Int64) if steps.whole else steps.step,
            "window_ns": steps.end - steps.start,
        }
    )
    return frame.with_columns(pl.col("place").cast(pl.Int64))
