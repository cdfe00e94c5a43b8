"""The critical path through all ranks and the peak of memory, in a line each for a terminal."""

from collections.abc import Iterator, Mapping

import polars as pl

from .spelling import milliseconds, printable

_GIB = 1 << 30
_FEW = 3


def job_lines(tables: Mapping[str, pl.DataFrame]) -> Iterator[str]:
    """What there is of both; nothing for one rank, or without allocations."""
    lines = [*_path(tables.get("path_across")), *_memory(tables.get("memory_peaks"), tables.get("memory_held"))]
    if lines:
        yield ""
        yield from lines


def _path(path: pl.DataFrame | None) -> Iterator[str]:
    if path is None or not path.height:
        return
    whole = int(path["time_ns"].sum())
    by = path.group_by("category").agg(pl.col("time_ns").sum()).sort("time_ns", descending=True)
    made_of = ", ".join(f"{word} {100 * ns / whole:.0f} %" for word, ns in by.iter_rows() if 100 * ns >= whole)
    rank, ns = path.group_by("rank").agg(pl.col("time_ns").sum()).sort("time_ns", descending=True).row(0)
    step = path["step"][0]
    of = f"step {step}" if step >= 0 else "the whole"
    yield (
        f"the critical path of {of} through all ranks, {milliseconds(whole)} ms: {made_of};"
        f" {100 * ns / whole:.0f} % of it on rank {rank}"
    )


def _memory(peaks: pl.DataFrame | None, held: pl.DataFrame | None) -> Iterator[str]:
    """Of the device with the highest peak; of the host only if no device has any."""
    if peaks is None or held is None or not peaks.height:
        return
    devices = peaks.filter(pl.col("device_type") > 0)
    row = (devices if devices.height else peaks).sort("peak_bytes", descending=True).row(0, named=True)
    where = f"device {row['device']}" if row["device_type"] else "the host"
    at = f"in {printable(row['phase'])}" + (f" of step {row['step']}" if row["step"] >= 0 else "")
    mine = held.filter(pl.col(key) == row[key] for key in ("rank", "device_type", "device"))
    most = [
        f"{bytes_ / _GIB:.2f} {printable(operator or phase)}"
        for operator, phase, bytes_ in mine.select("operator", "phase", "bytes").head(_FEW).iter_rows()
    ]
    yield (
        f"memory of rank {row['rank']}, {where}: at most {row['peak_bytes'] / _GIB:.2f} GiB, {at}"
        f" ({row['peak_reserved_bytes'] / _GIB:.2f} reserved); most of it: {', '.join(most)}"
    )
