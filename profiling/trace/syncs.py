"""When the host waited, for what, how long a device had nothing to do after it, and which line of the program asked.

Waits are calls of the device's runtime that return when the device is done, and what they were for: a number
(`.item()`), a shape that depends on data (`nonzero`), a copy from or to pageable memory, a blocking copy, a plain
`synchronize()`, the allocator; then the loader, a collection of garbage, a compilation. A wait inside another is part
of it. Where a trace has no device, reading a number makes nobody wait; it is listed all the same, with its own length,
since on a device it would.
"""

import numpy as np
import polars as pl

from ..spans import Span
from .intervals import union
from .kinds import Kind
from .launchers import enclosing, places
from .nesting import NONE
from .phases import Phases, phases
from .segments import Windows, windows
from .tables import Trace

ITEM, SHAPE, PAGEABLE, COPY = "item", "shape", "pageable copy", "blocking copy"
SYNCHRONIZE, ALLOCATOR = "synchronize", "allocator"
LOADER, GARBAGE, COMPILATION = "loader", "garbage collection", "compilation"
MAX_SITES = 500
"""Places that `wait_sites` lists, the longest waits first."""

WAIT_SCHEMA = {
    "step": pl.Int64,
    "ts_ns": pl.Int64,
    "waited_ns": pl.Int64,
    "idle_ns": pl.Int64,
    "cause": pl.String,
    "call": pl.String,
    "operator": pl.String,
    "within": pl.String,
    "phase": pl.String,
    "frame": pl.String,
    "row": pl.UInt32,
}
_SITE = ("cause", "call", "operator", "within", "phase", "frame")

_SYNCHRONIZES = r"^(?:cuda|hip|cu|musa|mtia)\w*Synchronize|^ze\w*Synchronize$|^ur(?:EventWait|QueueFinish)$"
_COPIES = r"^(?:cuda|hip|cu|musa)Memcpy\w*$"
_ASYNC = r"Async"
_ALLOCATES = (
    r"^(?:cuda|hip|musa)(?:Free|FreeHost|HostFree|HostAlloc|HostMalloc|MallocHost|HostRegister|HostUnregister)$"
)
_ITEM = r"^aten::(?:_local_scalar_dense|item|is_nonzero|equal)$"
_NUMBER = r"^aten::_local_scalar_dense$"
_SHAPE = r"^aten::(?:nonzero\w*|masked_select|_?unique\w*|bincount|repeat_interleave|argwhere|histc|combinations)$"
_COPY_OPERATOR = r"^aten::(?:copy_|_to_copy|to)$"
_LOADER = f"^(?:{Span.DATA_WAIT.value}$|enumerate\\(DataLoader\\))"
_GARBAGE = r"^<built-in function collect>$|(?:^|::)(?:gc|garbage)(?:[_ ]collect\w*)?$|gc\.collect"
_COMPILATION = (
    r"^(?:_compile\.compile_inner|entire_(?:frame|backward)_compile|backend_compile|compile_fx|inductor_compile"
    r"|OutputGraph\.call_user_compiler|create_aot_dispatcher_function|CachingAutotuner\.benchmark_all_configs)"
    r"(?: |\.|$)"
)
_LINE = r"\.py\(\d+\): "
_FOREIGN_LINE = r"(?:^|/)(?:torch|importlib|concurrent)/|(?:^|/)(?:contextlib|threading|queue)\.py\("


def waits(trace: Trace) -> pl.DataFrame:
    """One row for each wait, in order of time.

    `idle_ns`: how long, from the wait's beginning until work arrived again, no device had any. Of waits in one such gap
    each has the part up to the next. `frame`: the innermost line of the program where stacks were recorded, else null.
    `step` is null outside of steps.
    """
    found, steps = phases(trace), windows(trace)
    every = pl.concat([_calls(trace), _marks(trace, found)]).sort("ts", "end", descending=[False, True])
    every = _outermost(every)
    if not every.height:
        return pl.DataFrame(schema=WAIT_SCHEMA)
    code = np.zeros(every.height, dtype=np.int64)
    for track in every["track"].unique():
        mine = (every["track"] == track).to_numpy()
        code[mine] = found.at(int(track), every["ts"].to_numpy()[mine])
    within, phase = found.named(pl.Series(code))
    every = every.with_columns(
        step=_step_numbers(steps, every["ts"]),
        idle_ns=pl.Series(_idle_after(trace, every["ts"].to_numpy(), every["end"].to_numpy())),
        within=within,
        phase=phase,
        frame=_frames(trace, every),
    )
    return every.rename({"ts": "ts_ns"}).select(pl.col(key).cast(kind) for key, kind in WAIT_SCHEMA.items())


def wait_sites(trace: Trace) -> pl.DataFrame:
    """The same by place: cause, call, operator, phase, frame; how often, in how many steps, and how long.

    Columns besides: num, num_steps, waited_ns, longest_ns, idle_ns, first_ts_ns. Only what began in a step counts, if
    the trace has steps.
    """
    every = waits(trace).drop_nulls("step")
    sites = every.group_by(_SITE, maintain_order=True).agg(
        num=pl.len().cast(pl.Int64),
        num_steps=pl.col("step").n_unique().cast(pl.Int64),
        waited_ns=pl.col("waited_ns").sum(),
        longest_ns=pl.col("waited_ns").max(),
        idle_ns=pl.col("idle_ns").sum(),
        first_ts_ns=pl.col("ts_ns").min(),
    )
    return sites.sort("waited_ns", descending=True, maintain_order=True).head(MAX_SITES)


_WAIT = ("row", "ts", "end", "track", "waited_ns", "cause", "call", "operator")


def _calls(trace: Trace) -> pl.DataFrame:
    """Calls that wait for a device, and what they are for."""
    waiting = trace.named(f"{_COPIES}|{_ALLOCATES}|{_SYNCHRONIZES}")
    calls = trace.events.filter((pl.col("kind") == Kind.LAUNCH.value) & waiting)
    copies = trace.device.filter(pl.col("correlation") > 0, trace.named("Pageable"))["correlation"].unique()
    pageable = trace.named(_COPIES) & pl.col("correlation").is_in(copies.implode())
    calls = calls.with_columns(
        pageable=pageable, copies=trace.named(_COPIES) & ~trace.named(_ASYNC), allocates=trace.named(_ALLOCATES)
    ).filter(pl.col("pageable") | pl.col("copies") | pl.col("allocates") | trace.named(_SYNCHRONIZES))
    calls = _with_operators(trace, calls)
    # What follows a pageable copy in its operator is the wait for that copy.
    pageable = pl.col("pageable").any().over("track", "operator_row") & (pl.col("operator_row") != NONE)
    copying = pl.col("copies") | pl.col("operator").str.contains(_COPY_OPERATOR)
    cause = (
        pl.when("in_item").then(pl.lit(ITEM)).when("in_shape").then(pl.lit(SHAPE))
        .when(pageable | pl.col("pageable")).then(pl.lit(PAGEABLE))
        .when("allocates").then(pl.lit(ALLOCATOR))
        .when(copying).then(pl.lit(COPY)).otherwise(pl.lit(SYNCHRONIZE))
    )  # fmt: skip
    calls = calls.with_columns(cause=cause, end=pl.col("ts") + pl.col("dur"), call=pl.col("name").cast(pl.String))
    # A copy and the wait for it are one wait; plain calls stand for themselves.
    alone = (pl.col("operator_row") == NONE) | pl.col("cause").is_in([SYNCHRONIZE, ALLOCATOR])
    calls = calls.with_columns(one=pl.when(alone).then(-1 - pl.col("row").cast(pl.Int64)).otherwise("operator_row"))
    longest = pl.col("dur").arg_max()
    waited = calls.group_by("track", "one", "cause", maintain_order=True).agg(
        pl.col("row", "call").get(longest), pl.col("ts").min(), pl.col("end").max(), pl.col("operator").first(),
        waited_ns=pl.col("dur").sum(),
    )  # fmt: skip
    return waited.select(_WAIT)


def _with_operators(trace: Trace, calls: pl.DataFrame) -> pl.DataFrame:
    """Calls with the innermost operator around each, and whether it is, or is inside of, one that needs a value."""
    operators = trace.of(Kind.OPERATOR, "row", "ts", "dur", "track", "name")
    columns = {
        "operator_row": _around(operators, calls),
        "in_item": _around(operators.filter(trace.named(_ITEM)), calls),
        "in_shape": _around(operators.filter(trace.named(_SHAPE)), calls),
    }
    calls = calls.with_columns(pl.Series(key, column, dtype=pl.Int64) for key, column in columns.items())
    operator = trace.events["name"].gather(places(columns["operator_row"])).cast(pl.String).fill_null("")
    return calls.with_columns(operator.alias("operator"), pl.col("in_item") != NONE, pl.col("in_shape") != NONE)


def _around(ranges: pl.DataFrame, moments: pl.DataFrame) -> np.ndarray:
    """Row of the innermost range of the same thread around the start of each event; -1 for none."""
    return enclosing(moments.select("track", launch_ts="ts"), ranges)


def _marks(trace: Trace, found: Phases) -> pl.DataFrame:
    """Waits that are marked by a range: of the main thread for its loader, of any for the rest."""
    of_main = pl.lit(True) if found.main == NONE else pl.col("track") == found.main
    number = trace.named(_NUMBER) if not trace.device.height else pl.lit(False)
    marks = trace.events.filter(trace.named(f"{_LOADER}|{_GARBAGE}|{_COMPILATION}|{_NUMBER}"))
    marks = marks.filter(pl.col("kind").is_in([Kind.ANNOTATION.value, Kind.OPERATOR.value, Kind.PYTHON.value]))
    marks = marks.with_columns(
        cause=pl.when(trace.named(_LOADER) & of_main).then(pl.lit(LOADER))
        .when(trace.named(_GARBAGE)).then(pl.lit(GARBAGE))
        .when(trace.named(_COMPILATION)).then(pl.lit(COMPILATION))
        .when(number).then(pl.lit(ITEM))
    ).drop_nulls("cause")  # fmt: skip
    return marks.with_columns(
        end=pl.col("ts") + pl.col("dur"), waited_ns="dur", call=pl.col("name").cast(pl.String), operator=pl.lit("")
    ).select(_WAIT)


def _outermost(every: pl.DataFrame) -> pl.DataFrame:
    """Without those that end inside an earlier one of their thread."""
    reach = pl.col("end").cum_max().shift(1).over("track")
    return every.filter((pl.col("end") > reach).fill_null(True))


def _step_numbers(steps: Windows, moments: pl.Series) -> pl.Series:
    index = steps.at(moments.to_numpy()) if not steps.whole else np.zeros(len(moments), dtype=np.int64)
    return pl.Series(steps.step).gather(pl.Series(index).replace({NONE: None}))


def _idle_after(trace: Trace, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How long the devices stood still because of each wait; `start` increases."""
    idle = np.zeros(len(end), dtype=np.int64)
    busy = union(trace.device["ts"].to_numpy(), trace.device["dur"].to_numpy())
    if len(busy.start) < 2:
        return idle
    gap = np.searchsorted(busy.end, end, side="right") - 1  # the work that ended last before the wait did
    real = (gap >= 0) & (gap < len(busy.start) - 1)
    real[real] = end[real] < busy.start[gap[real] + 1]
    gap, start = gap[real], start[real]
    until = busy.start[gap + 1]
    if len(gap) > 1:
        until[:-1] = np.where(gap[1:] == gap[:-1], np.minimum(until[:-1], start[1:]), until[:-1])
    idle[real] = np.maximum(until - np.maximum(start, busy.end[gap]), 0)
    return idle


def _frames(trace: Trace, every: pl.DataFrame) -> pl.Series:
    """The innermost line of the program at each wait: outside of torch, if there is one; null without stacks."""
    columns = trace.events.select("row", "ts", "dur", "track", "kind", "name")
    is_line = (pl.col("kind") == Kind.PYTHON.value) & trace.named(_LINE)
    lines = columns.filter(is_line & pl.col("track").is_in(every["track"].unique().implode()))
    own = lines.filter(~trace.named(_FOREIGN_LINE))
    rows = _around(own, every)
    rows = np.where(rows == NONE, _around(lines, every), rows)
    words = trace.events["name"].gather(pl.Series(rows).replace({NONE: None})).cast(pl.String)
    stacks = trace.argument("Call stack")
    if not stacks.height or not words.null_count():
        return words
    operators = trace.events.join(stacks.select("row"), on="row", how="semi", maintain_order="left")
    around = every.select(row=pl.Series(_around(operators, every), dtype=pl.Int64)).with_columns(
        pl.col("row").replace({NONE: None}).cast(pl.UInt32)
    )
    stack = around.join(stacks, on="row", how="left", maintain_order="left")["value"].str.split(";")
    said = pl.DataFrame({"words": words, "stack": stack}).with_columns(
        own=pl.col("stack").list.eval(pl.element().filter(~pl.element().str.contains(_FOREIGN_LINE))).list.first()
    )
    return said.select(pl.coalesce("words", "own", pl.col("stack").list.first())).to_series()
