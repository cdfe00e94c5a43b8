"""What advice needs of a trace beside the usual tables: how often, where."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from ...spans import GLOO_PREFIX, Span
from ..hta.launches import SLOW_CALL_NS
from ..kinds import Kind
from ..launchers import call_places, launch_calls, parents
from ..phases import Phases, launched, phase_of_work, phases
from ..segments import Windows, began_in_step, windows
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
EXCHANGED = {
    "row": pl.UInt32,
    "within": pl.String,
    "phase": pl.String,
    "microbatch": pl.Int64,
    "in_step": pl.Boolean,
}
WORK = {"within": pl.String, "phase": pl.String, "num": pl.Int64, "busy_ns": pl.Int64}
KERNELS = {"device": pl.Int64, "kind": pl.String, "name": pl.String, "num": pl.Int64, "busy_ns": pl.Int64}
LAUNCHES = {
    "num": pl.Int64,
    "num_short": pl.Int64,
    "num_slow": pl.Int64,
    "call_ns": pl.Int64,
    "device_ns": pl.Int64,
}
MAX_NAMES = 2000
_COMMUNICATES = f"^({GLOO_PREFIX}|c10d::|record_param_comms)"


def of_advice(trace: Trace) -> dict[str, pl.DataFrame]:
    """The tables `phase_operators`, `phase_exchanges`, `phase_work`, `step_kernels` and `step_launches`."""
    found, steps = phases(trace), windows(trace)
    return {
        "phase_operators": operators(trace, found, steps),
        "phase_exchanges": exchanged(trace, found, steps),
        "phase_work": work(trace, found, steps),
        "step_kernels": kernels(trace),
        "step_launches": launches(trace, steps),
    }


def operators(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """Operators of all steps by phase and name: num, own_ns (without those inside), and the same of the short ones."""
    every, name, names = trace.places(Kind.OPERATOR), trace.events["name"].to_physical().to_numpy(), trace.names
    start, length, on = (trace.events[key].to_numpy() for key in ("ts", "dur", "track"))
    on = on[every]
    parts: list[pl.DataFrame] = []
    for track in np.unique(on).tolist():
        mine = every[on == track]
        own = _own_times(start[mine], length[mine])
        if not steps.whole:
            kept = steps.at(start[mine]) >= 0 if len(steps.start) else np.zeros(len(mine), dtype=bool)
            mine, own = mine[kept], own[kept]
        # One number for phase, name and shortness: grouping by three columns would copy all of them once more.
        key = found.at(track, start[mine])
        key *= len(names)
        key += name[mine]
        key *= 2
        key += own < SHORT_OPERATOR_NS
        parts.append(
            pl.DataFrame({"key": key, "own_ns": own}).group_by("key").agg(pl.len().alias("num"), pl.sum("own_ns"))
        )
    if not parts:
        return pl.DataFrame(schema=OPERATORS)
    table, key = pl.concat(parts), pl.col("key")
    table = table.with_columns(code=key // 2 // len(names), name=names.gather(table["key"] // 2 % len(names)))
    table = table.filter(~pl.col("name").str.contains(_COMMUNICATES)).group_by("code", "name")
    sums = {"num_short": pl.col("num").filter(key % 2 == 1), "short_ns": pl.col("own_ns").filter(key % 2 == 1)}
    table = table.agg(pl.col("num", "own_ns").sum(), **{name: each.sum() for name, each in sums.items()})
    table = table.sort("own_ns", "name", "code", descending=[True, False, False]).head(MAX_NAMES)
    return _named(table, found, OPERATORS)


def _own_times(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Lengths of the operators of a thread, without those of the operators directly inside."""
    parent = parents(start + length)
    inner = np.flatnonzero(parent >= 0)
    own = length.copy()
    np.subtract.at(own, parent[inner], length[inner])
    return np.maximum(own, 0)


def exchanged(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """For each row of `collectives`: the phase and whether it was launched in a step, after how many backward passes.

    `microbatch` counts from 0, and is -1 before the first backward pass begins.
    """
    kernels = trace.of(Kind.COMMUNICATION)
    names = pl.col("name").cast(pl.String)
    host = trace.events.filter(trace.named(f"^{GLOO_PREFIX}"))
    host = host.filter(pl.col("kind").is_in([Kind.OPERATOR.value, Kind.ANNOTATION.value]))
    called = launch_calls(trace)["ts"].gather(call_places(trace, kernels))
    calls = kernels.select("row", ts=called.fill_null(kernels["ts"]))
    every = pl.concat([calls, host.select(pl.col("row").cast(calls.schema["row"]), "ts")])
    moments = every["ts"].to_numpy()
    backward = trace.of(Kind.ANNOTATION).filter(names == Span.BACKWARD.value)["ts"].to_numpy()
    before = np.searchsorted(backward, moments, side="right")
    step = steps.at(moments) if len(steps.start) else np.zeros(len(moments), dtype=np.int64)
    first = np.searchsorted(backward, steps.start[np.maximum(step, 0)]) if len(steps.start) else before
    table = every.with_columns(
        code=pl.Series(found.at(found.main, moments)),
        microbatch=pl.Series(np.maximum(before - first, 0) - 1),
        in_step=pl.Series((step >= 0) | steps.whole),
    )
    return _named(table, found, EXCHANGED)


def work(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """Kernels, copies and fills that began in steps, by the phase that launched them."""
    pieces = launched(trace)
    inside = steps.at(pieces["ts"].to_numpy()) >= 0 if len(steps.start) else np.zeros(pieces.height, dtype=bool)
    pieces = pieces.with_columns(code=pl.Series(phase_of_work(pieces, found))).filter(pl.Series(inside | steps.whole))
    table = pieces.group_by("code").agg(num=pl.len(), busy_ns=(pl.col("end") - pl.col("ts")).sum())
    return _named(table.sort("busy_ns", descending=True), found, WORK)


def kernels(trace: Trace) -> pl.DataFrame:
    """Kernels, copies and fills that began in steps, by name, the longest first; HTA's `kernels` are of all."""
    pieces = trace.device.select(pl.col("device").clip(0), "kind", "name", "dur")
    table = pieces.filter(began_in_step(trace, trace.device)).group_by("device", "kind", "name")
    table = table.agg(num=pl.len(), busy_ns=pl.col("dur").sum()).cast({"kind": pl.String, "name": pl.String})
    table = table.sort("busy_ns", "name", descending=[True, False])
    return table.select(pl.col(key).cast(kind) for key, kind in KERNELS.items())


def launches(trace: Trace, steps: Windows) -> pl.DataFrame:
    """One row: the calls of all steps that started work, short and slow ones as `hta.launch_statistics` has them."""
    calls, work = launch_calls(trace), trace.device
    place = call_places(trace, work)
    called = place.drop_nulls().to_numpy()
    device_ns, spent = np.zeros(calls.height, dtype=np.int64), work["dur"].to_numpy()
    np.add.at(device_ns, called, spent[place.is_not_null().to_numpy()])
    kept = np.bincount(called, minlength=calls.height) > 0
    if not steps.whole:
        kept &= steps.at(calls["ts"].to_numpy()) >= 0 if len(steps.start) else False
    call_ns, device_ns = calls["dur"].to_numpy()[kept], device_ns[kept]
    slow = call_ns > SLOW_CALL_NS
    sums = (len(call_ns), int((~slow & (device_ns < call_ns)).sum()), int(slow.sum()))
    row = (*sums, int(call_ns.sum()), int(device_ns.sum()))
    return pl.DataFrame([row], schema=LAUNCHES, orient="row")


def _named(table: pl.DataFrame, found: Phases, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    within, phase = found.named(table["code"])
    return table.with_columns(within=within, phase=phase).select(pl.col(key).cast(kind) for key, kind in schema.items())
