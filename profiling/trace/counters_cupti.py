"""Hardware counters that the profiler read around kernels (CUPTI), with the operators that launched the kernels.

The ranges (`cuda_profiler_range`) carry no correlation. As in HTA, the k-th of them in time belongs to the k-th call
that launches a kernel; where the numbers differ nobody can tell, and the operators are left out. Their values have any
name, so they are not among the columns that are kept of a trace; the file is looked through once more for them.
"""

import json
import re
from typing import Any, cast

import polars as pl

from .kinds import Kind
from .launchers import parents
from .nesting import innermost_at
from .piece import ARGS_WHOLE
from .source import Source
from .tables import Trace

_CATEGORY = b'"cuda_profiler_range"'
_LAUNCHES = (
    r"^cudaLaunchKernel",
    r"^(cudaLaunchKernel|cuLaunchKernel)",
    r"^(cuda|cu|hip)(Ext)?(Module)?(Launch|GraphLaunch)",
)
"""Which calls launch a kernel: HTA's choice, then wider ones; the first that is as many as the ranges."""
_FLOP = re.compile(r"^smsp__sass_thread_inst_executed_op_([fhd])(fma|mul|add)_pred_on\.sum$")
_SCHEMA: dict[str, pl.DataType] = {
    "ts": pl.Int64(),
    "dur_ns": pl.Int64(),
    "name": pl.String(),
    "operator": pl.String(),
    "top_operator": pl.String(),
    "operators": pl.List(pl.String()),
    "flop": pl.Float64(),
}
_MAX_COUNTERS = 200
_NO_COUNTERS = (*_SCHEMA, *ARGS_WHOLE)


def hardware_counters(trace: Trace) -> pl.DataFrame:
    """A row for each range with counters, by start, and a column for each counter behind the fixed ones.

    `operators` are those around the launch, outermost first. `flop` counts an fma as 2; null without its counters.
    Raises: TraceError if the trace's file cannot be read again.
    """
    ranges = trace.of(Kind.COUNTERS).select("ts", pl.col("dur").alias("dur_ns"), pl.col("name").cast(pl.String))
    if not ranges.height:
        return pl.DataFrame(schema=_SCHEMA)
    stacks = _operators_around(trace, _launches(trace, ranges.height))
    found = ranges.with_columns(
        operator=pl.Series([stack[-1] if stack else None for stack in stacks], dtype=pl.String),
        top_operator=pl.Series([stack[0] if stack else None for stack in stacks], dtype=pl.String),
        operators=pl.Series(stacks, dtype=pl.List(pl.String())),
    )
    values = _values(trace)
    found = found.with_columns(turn=pl.int_range(pl.len()).over("name"))
    values = values.with_columns(turn=pl.int_range(pl.len()).over("name"))
    found = found.join(values, on=["name", "turn"], how="left", maintain_order="left").drop("turn")
    counters = [column for column in values.columns if column not in ("name", "turn")]
    weighed = [pl.col(key) * (2 if match[2] == "fma" else 1) for key in counters if (match := _FLOP.match(key))]
    flop = pl.sum_horizontal(weighed, ignore_nulls=False) if weighed else pl.lit(None, pl.Float64)
    return found.with_columns(flop=flop).select(*_SCHEMA, *counters)


def _launches(trace: Trace, num_ranges: int) -> pl.DataFrame | None:
    """The calls that launched the kernels of the ranges, in their order; None if they cannot be told."""
    calls = trace.of(Kind.LAUNCH)
    for pattern in _LAUNCHES:
        some = calls.filter(pl.col("name").cast(pl.String).str.contains(pattern))
        if some.height == num_ranges:
            return some
    return None


def _operators_around(trace: Trace, calls: pl.DataFrame | None) -> list[list[str]]:
    """Names of the operators around each call, outermost first."""
    if calls is None:
        return [[] for _ in range(trace.of(Kind.COUNTERS).height)]
    numbered = calls.with_row_index("place")
    stacks: list[list[str]] = [[] for _ in range(calls.height)]
    for (track,), mine in numbered.group_by("track"):
        operators = trace.of(Kind.OPERATOR).filter((pl.col("track") == track) & (pl.col("dur") > 0))
        start, end = operators["ts"].to_numpy(), (operators["ts"] + operators["dur"]).to_numpy()
        names = operators["name"].cast(pl.String).to_list()
        around = parents(end)
        inner = innermost_at(start, end, mine["ts"].to_numpy())
        for place, at in zip(mine["place"].to_list(), inner.tolist(), strict=True):
            while at >= 0:
                stacks[place].append(names[at])
                at = int(around[at])
            stacks[place].reverse()
    return stacks


def _values(trace: Trace) -> pl.DataFrame:
    """(name, value of each counter) of the ranges, by start; counters that are no number are left out."""
    rows: list[tuple[float, dict[str, Any]]] = []
    for piece in Source(path=trace.path).pieces():
        if _CATEGORY in piece:
            rows += _ranges_of(piece)
    rows.sort(key=lambda row: row[0])
    keys = list(dict.fromkeys(key for _, row in rows for key in row if key != "name"))[:_MAX_COUNTERS]
    schema: dict[str, pl.DataType] = {"name": pl.String(), **dict.fromkeys(keys, pl.Float64())}
    return pl.DataFrame([row for _, row in rows], schema=schema)


def _ranges_of(piece: bytes) -> list[tuple[float, dict[str, Any]]]:
    """Start, name and counters of each range in a text of events."""
    try:
        events = json.loads(b"[" + piece + b"]", strict=False)
    except (ValueError, RecursionError):
        return []
    found: list[tuple[float, dict[str, Any]]] = []
    for event in cast(list[Any], events):
        if isinstance(event, dict) and cast(dict[str, Any], event).get("cat") == "cuda_profiler_range":
            known = cast(dict[str, Any], event)
            args = known.get("args")
            args = cast(dict[str, Any], args) if isinstance(args, dict) else {}
            ts = known.get("ts")
            values = {
                key: number
                for key, value in args.items()
                if (number := _number(value)) is not None and key not in _NO_COUNTERS
            }
            found.append((float(ts) if isinstance(ts, int | float) else 0.0, {"name": str(known.get("name"))} | values))
    return found


def _number(value: Any) -> float | None:
    """A counter's value; some writers put it in quotes."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
