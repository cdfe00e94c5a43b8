"""How close each kernel comes to what its device can do, and what it is bound by.

The work of an operator comes from the shapes that the trace recorded (`record_shapes=True`, read with `detail=True`);
the kernels that one call launched share it in proportion to their time. What has no shapes, or an operator that no
formula is for, stays unknown and is reported as a share of time.
"""

from typing import Any

import polars as pl

from .dtypes import in_kernel_name
from .kinds import Kind
from .launchers import enclosing, launchers
from .matrix_work import matrix_work
from .peaks import Peak, device_peak
from .segments import began_in_step
from .shapes import call_of
from .tables import Trace
from .work import MATRIX, UNKNOWN, Family, Work, elementwise

SHORT_NS = 5000
"""A kernel below this says more about its launch than about its rates."""

_CALL = ["name", "operator", "dims", "types", "concrete", "tf32"]
_WORK: dict[str, pl.DataType] = {
    "family": pl.String(),
    "dtype": pl.String(),
    "call_flops": pl.Float64(),
    "call_model_flops": pl.Float64(),
    "call_bytes": pl.Float64(),
    "aligned": pl.Boolean(),
    "odd_sides": pl.String(),
}
_TF32 = "(?i)tf32|s1688|xf32"
_ADDS_UP = "(?i)splitk_?reduce|postgsu"
"""Kernels that add the parts of a product up, which another kernel of the same call has computed."""


def kernel_work(trace: Trace) -> pl.DataFrame:
    """One row an event on a device, by start, with the work that it does.

    Columns: row, ts, dur_ns, device, in_step (whether it began in a step), kind, name, operator, dims, dtype, family,
    launch_ts, launch_ns, flops, model_flops, bytes (this kernel's part; null if unknown; model_flops is 0 for what is
    computed again), aligned (whether all sides suit tensor cores; null where none are used) and odd_sides (those that
    do not).
    """
    device = trace.device
    found = launchers(trace, device)
    rows = device.select(
        "row", "ts", pl.col("device").clip(0), in_step=began_in_step(trace, device), dur_ns="dur",
        kind=pl.col("kind").cast(pl.String), name=pl.col("name"),
        tf32=trace.named(_TF32), adds_up=trace.named(_ADDS_UP),
    )  # fmt: skip
    names = trace.events["name"]
    operator = names.gather(found["operator"].clip(0)).cast(pl.String)
    rows = rows.with_columns(
        pl.col("name").cast(pl.String),
        found["launch_ts"],
        launch_ns=found["launch_dur"],
        call=found["operator"],
        recomputed=_recomputed(trace, found),
        operator=pl.select(pl.when(found["operator"] >= 0).then(operator)).to_series(),
    )
    for column, key in (("dims", "Input Dims"), ("types", "Input type"), ("concrete", "Concrete Inputs")):
        said = trace.argument(key).select(pl.col("row").cast(pl.Int64).alias("call"), pl.col("value").cast(pl.String))
        rows = rows.join(said.rename({"value": column}), on="call", how="left", maintain_order="left")
    # The product's kernel says what all of its call compute in.
    rows = rows.with_columns(tf32=pl.col("tf32").any().over("call"))
    rows = rows.join(_work_of_calls(rows), on=_CALL, how="left", nulls_equal=True, maintain_order="left")
    # Copies beside a call's kernels prepare; the work is the kernels', of a product those that multiply.
    computes = pl.col("kind") == Kind.COMPUTE.value
    product = pl.col("family").is_in([family.value for family in MATRIX]) & computes
    multiplies = (product & ~pl.col("adds_up")).any().over("call")
    rows = rows.with_columns(adds_up=pl.col("adds_up") & product & multiplies)
    rows = rows.with_columns(works=(computes | ~computes.any().over("call")) & ~pl.col("adds_up"))
    time = pl.when("works").then("dur_ns").otherwise(0)
    rows = rows.with_columns(total=time.sum().over("call"))  # of its own: a window in a window runs group by group
    total = pl.col("total")
    part = pl.when((pl.col("call") >= 0) & (total > 0)).then(time / total).otherwise(0.0)
    rows = rows.with_columns(
        flops=pl.col("call_flops") * part,
        model_flops=pl.when("recomputed").then(0.0).otherwise(pl.col("call_model_flops") * part),
        bytes=pl.col("call_bytes") * part,
    )
    reduction = pl.when("adds_up").then(pl.lit(Family.REDUCTION.value)).otherwise("family")
    nothing = [pl.when(~pl.col("adds_up")).then(key).alias(key) for key in ("bytes", "aligned", "odd_sides")]
    rows = rows.with_columns(*nothing, family=reduction)
    return _with_copies(trace, rows).select(
        "row", "ts", "dur_ns", "device", "in_step", "kind", "name", "operator", "dims", "dtype", "family",
        "launch_ts", "launch_ns", "flops", "model_flops", "bytes", "aligned", "odd_sides",
    )  # fmt: skip


def _recomputed(trace: Trace, launches: pl.DataFrame) -> pl.Series:
    """Which kernels repeat a forward pass for the backward pass.

    Only what autograd may need has a sequence number; in a backward pass that is what a checkpoint computes again.
    """
    operators = trace.of(Kind.OPERATOR)
    names = pl.col("name").cast(pl.String)
    numbered = trace.argument("Sequence number").select("row")
    recorded = operators.filter(names.str.starts_with("aten::")).join(
        numbered, on="row", how="semi", maintain_order="left"
    )
    nodes = operators.filter(names.str.starts_with("autograd::engine::evaluate_function"))
    node = enclosing(launches, nodes)
    return pl.Series((node >= 0) & (enclosing(launches, recorded) > node))


def _work_of_calls(rows: pl.DataFrame) -> pl.DataFrame:
    """Work of each distinct call."""
    calls = rows.select(_CALL).unique(maintain_order=True)
    made: list[list[Any]] = []
    for name, operator, dims, types, concrete, tf32 in calls.iter_rows():
        work = _work(name, operator, dims, types, concrete)
        dtype = "tf32" if work.dtype == "float" and tf32 else work.dtype
        odd = _odd_sides(work, dtype)
        aligned = not odd if work.sides and dtype not in ("float", "double") else None
        made.append(
            [
                work.family.value,
                dtype,
                work.flops,
                work.model_flops,
                work.num_bytes,
                aligned,
                odd if aligned is False else None,
            ]
        )
    return calls.hstack(pl.DataFrame(made, schema=_WORK, orient="row"))


def _work(name: str, operator: str | None, dims: str | None, types: str | None, concrete: str | None) -> Work:
    call = call_of(operator or "", dims, types, concrete, in_kernel_name(name)) if operator else None
    if call is None:
        return UNKNOWN
    return matrix_work(call) or elementwise(call)


def _odd_sides(work: Work, dtype: str) -> str:
    """Sides that do not fill 16 bytes, which is how tensor cores are fed."""
    multiple = {1: 16, 2: 8, 4: 4}.get(_width(dtype), 0)
    return ", ".join(f"{side} = {length}" for side, length in work.sides if multiple and length % multiple)


def _width(dtype: str) -> int:
    return 1 if dtype.startswith("float8") or dtype in ("int8", "uint8") else 4 if dtype == "tf32" else 2


def _with_copies(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """Copies and fills say how many bytes they move; communication is no matter of the roofline."""
    said = trace.argument("bytes").select(pl.col("row").cast(pl.UInt32), moved=pl.col("value").cast(pl.Float64))
    rows = rows.join(said, on="row", how="left", maintain_order="left")
    copies, sends = pl.col("kind") == Kind.MEMORY.value, pl.col("kind") == Kind.COMMUNICATION.value
    both_ways = pl.when(pl.col("name").str.contains("(?i)DtoD|device -> device")).then(2.0).otherwise(1.0)
    nothing = pl.lit(None, dtype=pl.Float64)
    return rows.with_columns(
        family=pl.when(copies)
        .then(pl.lit(Family.COPY.value))
        .when(sends)
        .then(pl.lit(Family.COMMUNICATION.value))
        .otherwise("family"),
        flops=pl.when(copies).then(0.0).when(sends).then(nothing).otherwise("flops"),
        model_flops=pl.when(copies | sends).then(nothing).otherwise("model_flops"),
        bytes=pl.when(copies).then(pl.col("moved") * both_ways).when(sends).then(nothing).otherwise("bytes"),
    )


def roofline(trace: Trace, peak: Peak | str | None = None, work: pl.DataFrame | None = None) -> pl.DataFrame:
    """One row a kernel, its device and the shapes it works on, the longest first.

    Columns: device, name, operator, family, dtype, dims, count, dur_ns, in_steps_ns (of those that began in steps),
    median_ns, share (of the busy events of all devices), flops, model_flops, bytes, flop_s, byte_s, intensity
    (operations a byte), bound, efficiency (of the roof: the time that the device needs at best over the time taken),
    aligned, odd_sides.
    Bound: "compute" or "memory", whichever takes longer at best; "launch" for kernels shorter than a launch of this
    trace or than `SHORT_NS`; "host link" for copies to and from the host; "communication"; "unknown".
    `work` is what `kernel_work` gave, if it is there already.
    """
    work = kernel_work(trace) if work is None else work
    peak = device_peak(trace, peak)
    keys = ["device", "name", "operator", "family", "dtype", "dims", "aligned", "odd_sides"]
    total = max(int(work["dur_ns"].sum()), 1)
    table = work.group_by(keys, maintain_order=True).agg(
        count=pl.len(),
        dur_ns=pl.col("dur_ns").sum(),
        in_steps_ns=pl.col("dur_ns").filter("in_step").sum(),
        median_ns=pl.col("dur_ns").median().cast(pl.Int64),
        **{key: pl.when(pl.col(key).is_not_null().all()).then(pl.col(key).sum()) for key in _SUMS},
    )
    seconds = pl.col("dur_ns") / 1e9
    some = pl.col("dur_ns") > 0
    table = table.with_columns(
        share=pl.col("dur_ns") / total,
        flop_s=pl.when(some).then(pl.col("flops") / seconds),
        byte_s=pl.when(some).then(pl.col("bytes") / seconds),
        intensity=pl.when(pl.col("bytes") > 0).then(pl.col("flops") / pl.col("bytes")),
    )
    table = _with_bounds(table, peak, work["launch_ns"].median())
    columns = [
        *keys[:6],
        "count",
        "dur_ns",
        "in_steps_ns",
        "median_ns",
        "share",
        *_SUMS,
        "flop_s",
        "byte_s",
        "intensity",
    ]
    columns += ["bound", "efficiency", "aligned", "odd_sides"]
    return table.sort("dur_ns", descending=True, maintain_order=True).select(columns)


_SUMS = ("flops", "model_flops", "bytes")


def _with_bounds(table: pl.DataFrame, peak: Peak | None, launch_ns: object) -> pl.DataFrame:
    matrix = table["family"].is_in([family.value for family in MATRIX]).to_list()
    rates = [
        (peak.of(dtype) if product else peak.flop_s.get("vector")) if peak else None
        for dtype, product in zip(table["dtype"].to_list(), matrix, strict=True)
    ]
    host = pl.col("name").str.contains("(?i)HtoD|DtoH|host -> device|device -> host")
    memory = pl.lit(peak.byte_s if peak else None, dtype=pl.Float64)
    short = max(float(launch_ns) if isinstance(launch_ns, int | float) else 0.0, SHORT_NS)
    compute_ns = pl.col("flops") / pl.col("rate") * 1e9
    memory_ns = pl.when(~host).then(pl.col("bytes") / memory * 1e9)
    best = pl.max_horizontal(compute_ns, memory_ns)
    fused = pl.col("family") == Family.FUSED.value  # its operations are unknown, and too few to matter
    bound = (
        pl.when(pl.col("family") == Family.COMMUNICATION.value)
        .then(pl.lit("communication"))
        .when(host)
        .then(pl.lit("host link"))
        .when(pl.col("median_ns") < short)
        .then(pl.lit("launch"))
        .when(memory_ns.is_null() | (compute_ns.is_null() & ~fused))
        .then(pl.lit("unknown"))
        .when(compute_ns.fill_null(0) >= memory_ns)
        .then(pl.lit("compute"))
        .otherwise(pl.lit("memory"))
    )
    known = memory_ns.is_not_null() & (compute_ns.is_not_null() | fused) & (pl.col("dur_ns") > 0)
    return table.with_columns(rate=pl.Series(rates, dtype=pl.Float64)).with_columns(
        bound=bound, efficiency=pl.when(known).then(best / pl.col("dur_ns"))
    )


def roofline_summary(table: pl.DataFrame) -> pl.DataFrame:
    """What `roofline` gave, by family and bound: count, dur_ns, share, flops, bytes; "unknown" has a row too."""
    keys = [key for key in ("rank", "family", "bound") if key in table.columns]
    return (
        table.group_by(keys, maintain_order=True)
        .agg(pl.col("count", "dur_ns", "share", "flops", "bytes").sum())
        .sort("dur_ns", descending=True, maintain_order=True)
    )
