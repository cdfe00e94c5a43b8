"""What advice needs of a trace beside the usual tables: how often, where."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from ...spans import GLOO_PREFIX, Span
from ..kinds import Kind
from ..launchers import launchers, parents
from ..phases import Phases, launched, phase_of_work, phases
from ..segments import Windows, windows
from ..tables import Trace
from .thresholds import SHORT_OPERATOR_NS

OPERATORS = {
    "within": pl.String,
    "phase": pl.String,
    "name": pl.String,
    "num": pl.Int64,
    "own_ns": pl.Int64,
    "num_short": pl.Int64,
    "short_ns": pl.Int64,
}
EXCHANGED = {"row": pl.UInt32, "within": pl.String, "phase": pl.String, "microbatch": pl.Int64}
WORK = {"within": pl.String, "phase": pl.String, "num": pl.Int64, "busy_ns": pl.Int64}
MAX_NAMES = 2000
_COMMUNICATES = f"^({GLOO_PREFIX}|c10d::|record_param_comms)"


def of_advice(trace: Trace) -> dict[str, pl.DataFrame]:
    """The tables `phase_operators`, `phase_exchanges` and `phase_work`."""
    found, steps = phases(trace), windows(trace)
    return {
        "phase_operators": operators(trace, found, steps),
        "phase_exchanges": exchanged(trace, found, steps),
        "phase_work": work(trace, found, steps),
    }


def operators(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """Operators of all steps by phase and name: num, own_ns (without those inside), and the same of the short ones."""
    every = trace.of(Kind.OPERATOR).select("ts", "dur", "track", "name")
    parts: list[pl.DataFrame] = []
    for (track,), each in every.partition_by("track", as_dict=True, maintain_order=True).items():
        ts, dur = each["ts"].to_numpy(), each["dur"].to_numpy()
        parent = parents(ts + dur)
        inside = np.bincount(parent[parent >= 0], weights=dur[parent >= 0], minlength=len(dur)).astype(np.int64)
        named = each.select("name", own=pl.Series(np.maximum(dur - inside, 0)), code=found.at(int(track), ts))
        parts.append(named.filter(pl.Series(steps.whole | (steps.at(ts) >= 0)) if len(steps.start) else pl.lit(False)))
    if not parts:
        return pl.DataFrame(schema=OPERATORS)
    own, short = pl.col("own"), pl.col("own") < SHORT_OPERATOR_NS
    table = pl.concat(parts).group_by("code", "name").agg(
        num=pl.len(), own_ns=own.sum(), num_short=short.sum(), short_ns=own.filter(short).sum()
    )  # fmt: skip
    table = table.with_columns(pl.col("name").cast(pl.String)).filter(~pl.col("name").str.contains(_COMMUNICATES))
    return _named(table.sort("own_ns", "name", descending=[True, False]).head(MAX_NAMES), found, OPERATORS)


def exchanged(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """For each row of `collectives`: the phase it was launched in, and after how many backward passes of the step.

    `microbatch` counts from 0, and is -1 before the first backward pass begins.
    """
    kernels = trace.of(Kind.COMMUNICATION)
    names = pl.col("name").cast(pl.String)
    host = trace.events.filter(
        pl.col("kind").is_in([Kind.OPERATOR.value, Kind.ANNOTATION.value]), names.str.starts_with(GLOO_PREFIX)
    )
    calls = launchers(trace, kernels).select("row", ts=pl.col("launch_ts"))
    calls = calls.with_columns(ts=pl.col("ts").fill_null(kernels["ts"]))
    every = pl.concat([calls, host.select(pl.col("row").cast(calls.schema["row"]), "ts")])
    moments = every["ts"].to_numpy()
    backward = trace.of(Kind.ANNOTATION).filter(names == Span.BACKWARD.value)["ts"].to_numpy()
    before = np.searchsorted(backward, moments, side="right")
    step = steps.at(moments) if len(steps.start) else np.zeros(len(moments), dtype=np.int64)
    first = np.searchsorted(backward, steps.start[np.maximum(step, 0)]) if len(steps.start) else before
    table = every.with_columns(
        code=pl.Series(found.at(found.main, moments)), microbatch=pl.Series(np.maximum(before - first, 0) - 1)
    )
    return _named(table, found, EXCHANGED)


def work(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """Kernels, copies and fills that began in steps, by the phase that launched them."""
    pieces = launched(trace)
    inside = steps.at(pieces["ts"].to_numpy()) >= 0 if len(steps.start) else np.zeros(pieces.height, dtype=bool)
    pieces = pieces.with_columns(code=pl.Series(phase_of_work(pieces, found))).filter(pl.Series(inside | steps.whole))
    table = pieces.group_by("code").agg(num=pl.len(), busy_ns=(pl.col("end") - pl.col("ts")).sum())
    return _named(table.sort("busy_ns", descending=True), found, WORK)


def _named(table: pl.DataFrame, found: Phases, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    within, phase = found.named(table["code"])
    return table.with_columns(within=within, phase=phase).select(pl.col(key).cast(kind) for key, kind in schema.items())
