"""The timelines of the devices, cut wherever anything changes, and what each cut is.

A step is the window of its profiler mark on the host. Each instant of it is, on each device, exactly one of

    compute                    a kernel computes and none communicates
    overlapped communication   a kernel communicates while one computes
    exposed communication      a kernel communicates and none computes
    copy                       only copies or fills run
    idle                       nothing runs

Work belongs to the phase in which the host launched it, idle time to the phase in which the main thread was at that
instant. Where several pieces of one sort of work run at once, the one that began last stands for them.

A trace without a device is read as if its host were one: its operators are the kernels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from ..spans import GLOO_PREFIX, NCCL_PREFIX, Span
from .intervals import Intervals, join, union, without
from .kinds import Kind
from .nesting import NONE, innermost_at, moments_of
from .phases import Phases, launched, phase_of_work
from .tables import Trace, once

PARTS = ("compute", "exposed_communication", "overlapped_communication", "copy", "idle")
"""What an instant of a device may be."""
_COMPUTE, _EXPOSED, _OVERLAPPED, _COPY, _IDLE = range(5)
HOST = -1
"""The number of the host where it stands for a device."""
By = Literal["time", "launch"]
SEGMENTS = {
    "step": pl.Int64,
    "code": pl.Int64,
    "part": pl.Int64,
    "ns": pl.Int64,
    "earlier": pl.Boolean,
    "unlinked": pl.Boolean,
    "device": pl.Int64,
}
"""Index of the window (-1 for none), code of the phase, index in `PARTS`, length, and whether the work was launched
before the window or by a call that is not in the trace."""
_NUMBER_OF = {kind: number for number, kind in enumerate(Kind)}
_COLLECTIVE = f"^({GLOO_PREFIX}|{NCCL_PREFIX}|mpi:|ucc:)"
_COLLECTIVE_CALL = "^(c10d::|_c10d_functional|record_param_comms)"
_LOADER = f"^({Span.DATA_WAIT.value}$|enumerate\\(DataLoader\\))"


@dataclass(frozen=True)
class Windows:
    """[S] steps in order of time, which do not overlap."""

    step: np.ndarray
    """Numbers; -1 for the whole of a trace without steps."""
    start: np.ndarray
    end: np.ndarray
    whole: bool = False
    """Whether the trace has no steps, and the one window is all of it."""

    def at(self, moments: np.ndarray) -> np.ndarray:
        """Index of the step that each moment lies in; -1 outside of all."""
        index = np.searchsorted(self.start, moments, side="right") - 1
        return np.where((index >= 0) & (moments < self.end[index]), index, NONE)


@once
def windows(trace: Trace) -> Windows:
    """The steps of a trace; without any, one window around everything that ran on a device, else on the host."""
    steps = trace.steps
    if steps.height:
        start = steps["ts"].to_numpy()
        end = start + steps["dur"].to_numpy()
        end = np.minimum(end, np.append(start[1:], end[-1]))  # marks of two threads or of a merged file may overlap
        return Windows(steps["step"].to_numpy(), start, end)
    events = trace.device if trace.device.height else trace.events.filter(pl.col("kind") != Kind.OTHER.value)
    if not events.height:
        none = np.zeros(0, dtype=np.int64)
        return Windows(none, none, none)
    start, end = events["ts"].to_numpy(), (events["ts"] + events["dur"]).to_numpy()
    return Windows(np.array([-1]), start.min(keepdims=True), end.max(keepdims=True), whole=True)


def began_in_step(trace: Trace, work: pl.DataFrame) -> pl.Series:
    """Which of some events began in a step; all of them in a trace without steps."""
    steps = windows(trace)
    if steps.whole or not work.height:
        return pl.Series(np.ones(work.height, dtype=bool))
    return pl.Series(steps.at(work["ts"].to_numpy()) != NONE)


def pieces(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """What occupied the devices: ts, end, kind, device, code (of the phase), launch_ts, launch_step, linked.

    Work whose launch is not in the trace counts as launched when it began.
    """
    work = launched(trace)
    code = phase_of_work(work, found)
    moments = work["launch_ts"].fill_null(work["ts"]).to_numpy()
    return work.drop("track", "launch_track").with_columns(
        code=pl.Series(code),
        launch_step=pl.Series(steps.at(moments) if not steps.whole else np.zeros(work.height, dtype=np.int64)),
        launch_ts=pl.col("launch_ts").fill_null(-1 << 62),
        linked=pl.col("launch_ts").is_not_null(),
    )


def segments(trace: Trace, work: pl.DataFrame, found: Phases, steps: Windows, by: By = "time") -> pl.DataFrame:
    """The cut timelines, as `SEGMENTS` has them; those that are alike are one row."""
    if not len(steps.start):
        return pl.DataFrame(schema=SEGMENTS)
    if not work.height:
        return _host_segments(trace, found, steps)
    by = "time" if steps.whole else by
    parts = [
        _device_segments(each, steps, found, by).with_columns(device=pl.lit(device, dtype=pl.Int64))
        for device, each in _by_device(work)
    ]
    return pl.concat(parts)


def _by_device(work: pl.DataFrame) -> list[tuple[int, pl.DataFrame]]:
    devices: list[int] = work["device"].unique(maintain_order=True).to_list()
    return [(each, work.filter(pl.col("device") == each) if len(devices) > 1 else work) for each in devices]


def _device_segments(work: pl.DataFrame, steps: Windows, found: Phases, by: By) -> pl.DataFrame:
    """The timeline of one device."""
    first, last = int(steps.start[0]), int(steps.end.max())
    if by == "launch":
        last = int(work.filter(pl.col("launch_step") >= 0)["end"].to_numpy().max(initial=last))
    main = found.host.get(found.main)
    marks = [main.start, main.end] if main else []
    start, end = work["ts"].to_numpy(), work["end"].to_numpy()
    cuts = moments_of(start, end, steps.start, steps.end, *marks, first=first, last=last)
    at, ns = cuts[:-1], np.diff(cuts)
    part, owner = _running(work, at)
    busy = np.flatnonzero(part != _IDLE)
    step = steps.at(at)
    if by == "launch" and len(busy):
        step = _next_step(work["launch_step"].to_numpy(), owner, busy)
    idle = np.flatnonzero(part == _IDLE)
    code = np.empty(len(at), dtype=np.int64)
    code[idle], code[busy] = found.at(found.main, at[idle]), work["code"].to_numpy()[owner[busy]]
    earlier, unlinked = np.zeros(len(at), dtype=bool), np.zeros(len(at), dtype=bool)
    unlinked[busy] = ~work["linked"].to_numpy()[owner[busy]]
    if not steps.whole:
        before = work["launch_ts"].to_numpy()[owner[busy]] < steps.start[np.maximum(step[busy], 0)]
        earlier[busy] = before & ~unlinked[busy] & (step[busy] != NONE)
    return _summed({"step": step, "code": code, "part": part, "earlier": earlier, "unlinked": unlinked}, ns, by)


def _running(work: pl.DataFrame, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At each moment the part (an index in `PARTS`), and the piece of work that stands for it; -1 while idle."""
    kind = work["kind"].to_physical().to_numpy()
    start, end = work["ts"].to_numpy(), work["end"].to_numpy()
    owners: list[np.ndarray] = []
    for each in (Kind.COMPUTE, Kind.COMMUNICATION, Kind.MEMORY):
        mine = np.flatnonzero(kind == _NUMBER_OF[each]).astype(np.int32)
        owners.append(np.append(mine, NONE)[innermost_at(start[mine], end[mine], at)])
    computes, communicates, copies = (owner != NONE for owner in owners)
    parts = [computes & communicates, computes, communicates, copies]
    part = np.select(parts, [_OVERLAPPED, _COMPUTE, _EXPOSED, _COPY], _IDLE).astype(np.int8)
    return part, np.where(communicates, owners[1], np.where(computes, owners[0], owners[2]))


def _summed(columns: dict[str, np.ndarray], ns: np.ndarray, by: By) -> pl.DataFrame:
    """Segments that are alike as one."""
    flags = 2 * columns["earlier"] + columns["unlinked"]
    key = (columns["step"] * len(PARTS) + columns["part"]) * 4 + flags  # one number is grouped faster than four
    frame = pl.DataFrame({"key": key, "code": columns["code"], "ns": ns})
    frame = frame.group_by("key", "code").agg(pl.col("ns").sum())
    if by == "time":
        frame = frame.filter(pl.col("key") >= 0)  # else it is of no step
    rest, flags = np.divmod(frame["key"].to_numpy(), 4)
    step, part = np.divmod(rest, len(PARTS))
    return frame.select("code", "ns").with_columns(
        step=pl.Series(step), part=pl.Series(part), earlier=pl.Series(flags >= 2), unlinked=pl.Series(flags % 2 == 1)
    )


def _next_step(launch_step: np.ndarray, owner: np.ndarray, busy: np.ndarray) -> np.ndarray:
    """The step that launched what runs, and while nothing runs, what runs next: that is what the device waits for."""
    following = np.minimum(np.searchsorted(busy, np.arange(len(owner))), len(busy) - 1)
    return launch_step[owner[busy[following]]]


def _host_segments(trace: Trace, found: Phases, steps: Windows) -> pl.DataFrame:
    """The host's timeline where there is no device: operators compute, collectives communicate, loaders wait."""
    named = trace.named
    marks = trace.events.filter(pl.col("kind").is_in([Kind.OPERATOR.value, Kind.ANNOTATION.value]))
    collectives, calls = marks.filter(named(_COLLECTIVE)), marks.filter(named(_COLLECTIVE_CALL))
    tracks = _computing_tracks(trace, found)
    operators = trace.of(Kind.OPERATOR).filter(pl.col("track").is_in(tracks), ~named(_COLLECTIVE))
    waits = marks.filter(pl.col("track") == found.main, named(_LOADER))
    not_computing = join(_set(calls.filter(pl.col("track").is_in(tracks))), _set(waits))
    computes = without(_set(operators), not_computing)
    communicates = join(_set(collectives), _set(calls))
    main = found.host.get(found.main)
    edges = [*computes, *communicates, steps.start, steps.end, *([main.start, main.end] if main else [])]
    cuts = moments_of(*edges, first=int(steps.start[0]), last=int(steps.end.max()))
    at = cuts[:-1]
    busy, waiting = _inside(computes, at), _inside(communicates, at)
    part = np.select([busy & waiting, busy, waiting], [_OVERLAPPED, _COMPUTE, _EXPOSED], _IDLE)
    data = {"step": steps.at(at), "code": found.at(found.main, at), "part": part, "ns": np.diff(cuts)}
    frame = pl.DataFrame(data).with_columns(earlier=False, unlinked=False, device=pl.lit(HOST, dtype=pl.Int64))
    return frame.filter(pl.col("step") != NONE)


def _computing_tracks(trace: Trace, found: Phases) -> list[int]:
    """The main thread and those that run backward passes; a loader's or a writer's thread keeps nobody busy."""
    operators = trace.of(Kind.OPERATOR)
    backward = operators.filter(trace.named("^autograd::engine::"))
    tracks = set(backward["track"].unique().to_list())
    if found.main == NONE:
        longest = operators.group_by("track").agg(pl.col("dur").sum()).sort("dur", "track", descending=[True, False])
        tracks |= set(longest["track"].head(1).to_list())
    return sorted(tracks | ({found.main} - {NONE}))


def _set(events: pl.DataFrame) -> Intervals:
    return union(events["ts"].to_numpy(), events["dur"].to_numpy())


def _inside(times: Intervals, at: np.ndarray) -> np.ndarray:
    """Whether each moment is in the set."""
    if not len(times.start):
        return np.zeros(len(at), dtype=bool)
    index = np.searchsorted(times.start, at, side="right") - 1
    return (index >= 0) & (at < times.end[index])
