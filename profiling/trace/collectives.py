"""Every collective of a rank: what it is, how many bytes it moves, and how much of it no computation hides.

What a kernel communicates stands in its arguments; else in those of the operator that launched it (AMD); else in the
name and shapes of the range `nccl:...` around its launch; else in its own name alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ..spans import GLOO_PREFIX, NCCL_PREFIX
from .collective_sizes import bus_factor, bytes_of_inputs, collective_of, message_bytes
from .dtypes import bytes_of
from .intervals import measure, union
from .kinds import Kind
from .launchers import call_places, enclosing, launch_calls, places
from .peaks import GIGA, Peak, device_peak
from .tables import Trace, job_of, once

_C10D = "c10d::"
_WRITES_FIRST = "^c10d::alltoall_base_$"
"""Operators whose first tensor is what a rank gets out; the range nccl:... inside has only what it puts in."""
_BEFORE = -(1 << 62)
_SAID = {
    "Collective name": pl.String,
    "Process Group Name": pl.String,
    "Process Group Ranks": pl.String,
    "Group size": pl.Int64,
    "dtype": pl.String,
    "In msg nelems": pl.Int64,
    "Out msg nelems": pl.Int64,
    "Seq": pl.Int64,
}
SCHEMA: dict[str, pl.DataType] = {
    "row": pl.UInt32(),
    "name": pl.String(),
    "type": pl.String(),
    "on_host": pl.Boolean(),
    "device": pl.Int64(),
    "stream": pl.Int64(),
    "ts": pl.Int64(),
    "dur_ns": pl.Int64(),
    "exposed_ns": pl.Int64(),
    "step": pl.Int64(),
    "group": pl.String(),
    "ranks": pl.String(),
    "size": pl.Int64(),
    "dtype": pl.String(),
    "in_bytes": pl.Int64(),
    "out_bytes": pl.Int64(),
    "message_bytes": pl.Int64(),
    "bus_bytes": pl.Float64(),
    "link_gb_s": pl.Float64(),
    "seq": pl.Int64(),
    "order": pl.Int64(),
    "step_order": pl.Int64(),
}


def collectives(trace: Trace, peak: Peak | str | None = None, link_gb_s: float | None = None) -> pl.DataFrame:
    """One row a communication kernel, or a range `gloo:...` of the host, by start; the columns of `SCHEMA`.

    `step` is that of the launch: a step lasts until the next one begins; -1 is before the first, or launched before
    the trace began; null without steps.
    `group` and `ranks` are empty where the trace does not say; `size` is then the whole job if it has only one group.
    `order` counts the same type in the same group, `step_order` within a step. `exposed_ns` is the part that no
    compute kernel of the device covers; on the host, no operator of another thread. `link_gb_s` is the device's by
    the table of peaks, or as given, in 1e9 bytes a second.
    """
    rows = pl.concat([_of_device(trace), _of_host(trace)])
    found = device_peak(trace, peak)
    if link_gb_s is None and found and found.link_byte_s:
        link_gb_s = found.link_byte_s / GIGA
    rows = _with_bytes(_with_size(trace, rows).sort("ts", maintain_order=True))
    rows = rows.with_columns(_step_of(trace, rows["launched"]), link_gb_s=pl.lit(link_gb_s, dtype=pl.Float64))
    same = ["group", "ranks", "type"]
    order = pl.int_range(pl.len(), dtype=pl.Int64)
    rows = rows.with_columns(order=order.over(same), step_order=order.over([*same, "step"]))
    return rows.select(pl.col(key).cast(kind) for key, kind in SCHEMA.items())


@once
def told_of_kernels(trace: Trace) -> pl.DataFrame:
    """What is known of each communication kernel, by itself, its operator or the range around its launch.

    row, name, ts, dur, stream, device, launched (when), type, and the keys of `_SAID` (null where nothing is said).
    """
    kernels = trace.of(Kind.COMMUNICATION)
    calls, at = launch_calls(trace), call_places(trace, kernels)
    launches = pl.DataFrame({"launch_ts": calls["ts"].gather(at), "track": calls["track"].gather(at)})
    names = pl.col("name").cast(pl.String)
    told = trace.argument("Collective name")["row"].to_numpy()
    telling = trace.events[told].filter(pl.col("kind").is_in([Kind.OPERATOR.value, Kind.ANNOTATION.value]))
    titled = _ranges(trace, f"^({NCCL_PREFIX}|{_C10D})")
    rows = kernels.select(
        "row", names, "ts", "dur", "stream", "device", on_host=pl.lit(False), launched="ts"
    ).with_columns(
        launched=_launched(kernels, launches),
        telling=pl.Series(enclosing(launches, telling)),
        titled=pl.Series(enclosing(launches, titled)),
        writing=pl.Series(enclosing(launches, _ranges(trace, _WRITES_FIRST))),
    )
    return _described(trace, rows)


def _of_device(trace: Trace) -> pl.DataFrame:
    """Kernels, with what is said about them, and exposed times."""
    kernels = told_of_kernels(trace)
    covered = np.zeros(len(kernels), dtype=np.int64)
    compute = trace.of(Kind.COMPUTE, "ts", "dur", "device")
    start, dur = kernels["ts"].to_numpy(), kernels["dur"].to_numpy()
    for device in kernels["device"].unique().to_list():
        mine = (kernels["device"] == device).to_numpy()
        busy = compute.filter(pl.col("device") == device)
        busy = union(busy["ts"].to_numpy(), busy["dur"].to_numpy())
        covered[mine] = measure(busy, start[mine], start[mine] + dur[mine])
    return kernels.with_columns(exposed_ns=pl.col("dur") - pl.Series(covered))


def _launched(kernels: pl.DataFrame, launches: pl.DataFrame) -> pl.Series:
    """Times of the launches: "before all" for those before the trace began; where none is told, the kernel's own."""
    at = launches["launch_ts"]
    return at.fill_null(_BEFORE) if at.count() else kernels["ts"]


def _of_host(trace: Trace) -> pl.DataFrame:
    """Ranges of Gloo, which works on the host."""
    names = pl.col("name").cast(pl.String)
    gloo = _ranges(trace, f"^{GLOO_PREFIX}")
    work = trace.of(Kind.OPERATOR) if len(gloo) else trace.of(Kind.OPERATOR).head(0)
    work = work.filter(
        ~pl.col("track").is_in(gloo["track"].unique().implode()) & ~trace.named(f"^({_C10D}|record_param_comms$)")
    )
    start, dur = gloo["ts"].to_numpy(), gloo["dur"].to_numpy()
    covered = measure(union(work["ts"].to_numpy(), work["dur"].to_numpy()), start, start + dur)
    own = pl.col("row").cast(pl.Int64)
    rows = gloo.select(
        "row",
        names,
        "ts",
        "dur",
        "stream",
        "device",
        on_host=pl.lit(True),
        launched="ts",
        telling=own,
        titled=own,
        writing=pl.lit(-1, dtype=pl.Int64),
    )
    return _described(trace, rows).with_columns(exposed_ns=pl.col("dur") - pl.Series(covered))


def _ranges(trace: Trace, pattern: str) -> pl.DataFrame:
    """Operators and annotations whose names match."""
    kinds = (Kind.OPERATOR, Kind.ANNOTATION)
    return trace.events.filter(trace.named(pattern)).filter(pl.col("kind").is_in([kind.value for kind in kinds]))


def _described(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """With what the kernel says, else the operator, else the title of the range around it."""
    rows = rows.with_columns(pl.col("telling", "titled", "writing").cast(pl.Int64))
    for key, kind in _SAID.items():
        said = trace.argument(key).select(pl.col("row").cast(pl.Int64), pl.col("value").cast(kind))
        rows = rows.with_columns(_looked_up(rows["row"], said).fill_null(_looked_up(rows["telling"], said)).alias(key))
    title = trace.events["name"].gather(rows["titled"].clip(0)).cast(pl.String)
    title = pl.select(pl.when(rows["titled"] >= 0).then(title)).to_series()
    listed, written = (_listed(trace, rows[at]) for at in ("titled", "writing"))
    inputs = {each: bytes_of_inputs(*each) for each in set(listed)}
    outputs = {each: bytes_of_inputs(*each, num=1) for each in set(written)}
    words = rows["Collective name"].fill_null(title).fill_null(rows["name"])
    types = {word: collective_of(word).value for word in words.unique().to_list()}
    return rows.with_columns(
        _translated(words, types, pl.String).alias("type"),
        pl.Series("input_bytes", [inputs[each] for each in listed], dtype=pl.Int64),
        pl.Series("output_bytes", [outputs[each] for each in written], dtype=pl.Int64),
    )


def _listed(trace: Trace, at: pl.Series) -> list[tuple[str | None, str | None]]:
    """`Input Dims` and `Input type` of events by row."""
    dims, types = (
        _looked_up(at, trace.argument(key).select(pl.col("row").cast(pl.Int64), "value").cast({"value": pl.String}))
        for key in ("Input Dims", "Input type")
    )
    return list(zip(dims.to_list(), types.to_list(), strict=True))


def _looked_up(at: pl.Series, said: pl.DataFrame) -> pl.Series:
    """Values by row (of which a table is sorted); null where there is none."""
    known, wanted = said["row"].to_numpy(), at.to_numpy()
    if not len(known):
        return pl.Series("value", [None] * len(at), dtype=said.schema["value"])
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return said["value"].gather(places(np.where(known[place] == wanted, place, -1)))


def _translated(words: pl.Series, meanings: Mapping[str, Any], kind: type[pl.DataType]) -> pl.Series:
    """What each word stands for; null for none."""
    table = pl.DataFrame(
        {"word": list(meanings), "meaning": list(meanings.values())}, schema={"word": pl.String, "meaning": kind}
    )
    keys = pl.DataFrame({"word": words.cast(pl.String)})
    return keys.join(table, on="word", how="left", maintain_order="left")["meaning"]


def _with_size(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """Groups; where nothing is said, the whole job if it has no other."""
    job = job_of(trace.header)
    world, alone = job.get("world_size"), job.get("pg_count", 1) == 1
    size = world if alone and isinstance(world, int) and 0 < world < 1 << 31 else None
    untold = pl.col("Process Group Name").is_null() & pl.col("Process Group Ranks").is_null()
    return rows.with_columns(
        group=pl.col("Process Group Name").fill_null(""),
        ranks=pl.col("Process Group Ranks").fill_null("").str.replace_all(" ", ""),
        size=pl.col("Group size").fill_null(pl.when(untold).then(pl.lit(size, dtype=pl.Int64))),
    )


def _with_bytes(rows: pl.DataFrame) -> pl.DataFrame:
    """Bytes of both ends, of the message, and that must be sent."""
    width = {name: bytes_of(name) for name in rows["dtype"].drop_nulls().unique().to_list()}
    each = _translated(rows["dtype"], width, pl.Int64)
    put_in = (rows["In msg nelems"] * each).fill_null(rows["input_bytes"])
    got_out = (rows["Out msg nelems"] * each).fill_null(rows["output_bytes"])
    ends = list(zip(rows["type"].to_list(), put_in.to_list(), got_out.to_list(), rows["size"].to_list(), strict=True))
    messages = {each: message_bytes(*each) for each in set(ends)}
    sent = {
        each: None if message is None or not each[3] else message * bus_factor(each[0], each[3])
        for each, message in messages.items()
    }
    return rows.with_columns(
        dur_ns="dur",
        in_bytes=put_in,
        out_bytes=got_out,
        message_bytes=pl.Series([messages[each] for each in ends], dtype=pl.Int64),
        bus_bytes=pl.Series([sent[each] for each in ends], dtype=pl.Float64),
        seq=pl.col("Seq").fill_null(-1),
    )


def _step_of(trace: Trace, at: pl.Series) -> pl.Series:
    steps = trace.steps
    if not len(steps):
        return pl.Series("step", [None] * len(at), dtype=pl.Int64)
    place = np.searchsorted(steps["ts"].to_numpy(), at.to_numpy(), side="right") - 1
    return pl.Series("step", np.where(place >= 0, steps["step"].to_numpy()[place], -1), dtype=pl.Int64)


def collective_summary(rows: pl.DataFrame) -> pl.DataFrame:
    """What `collectives` gave (of one rank, or of several with `rank`), by group and type; the longest first.

    `algorithm_gb_s` and `bus_gb_s` are those of the collectives whose bytes are known, over their whole time, the wait
    for late ranks included; `link_share` is the bus bandwidth over the link's peak. `exposed_ns` adds up kernels, so
    that time in which two are exposed counts twice.
    """
    keys = [key for key in ("rank", "group", "ranks", "size", "type", "on_host") if key in rows.columns]
    known, sendable = pl.col("message_bytes").is_not_null(), pl.col("bus_bytes").is_not_null()
    time = pl.col("dur_ns")
    table = rows.group_by(keys, maintain_order=True).agg(
        count=pl.len(),
        num_bytes=pl.when(known.any()).then(pl.col("message_bytes").sum()),
        dur_ns=time.sum(),
        median_ns=time.median().cast(pl.Int64),
        max_ns=time.max(),
        exposed_ns=pl.col("exposed_ns").sum(),
        algorithm_gb_s=_rate(pl.col("message_bytes").sum(), time.filter(known).sum()),
        bus_gb_s=_rate(pl.col("bus_bytes").sum(), time.filter(sendable).sum()),
        link_gb_s=pl.col("link_gb_s").first(),
    )
    return table.with_columns(link_share=pl.col("bus_gb_s") / pl.col("link_gb_s")).sort(
        "dur_ns", descending=True, maintain_order=True
    )


def _rate(num_bytes: pl.Expr, dur_ns: pl.Expr) -> pl.Expr:
    """1e9 bytes a second; a byte a nanosecond is one. Null without time or bytes."""
    return pl.when((dur_ns > 0) & (num_bytes > 0)).then(num_bytes / dur_ns)
