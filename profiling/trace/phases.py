"""What the program said it was doing: phases of the host, and the phase that each piece of a device's work belongs to.

A phase is a range that a program marked: our spans, FSDP's, DDP's and the optimizer's marks, and any other. Ranges
nest, and time belongs to the innermost. `within` says where that one stands: the innermost of *our* spans around it, or
the outermost range of any kind in a trace without them. So `FSDP::all_gather` within `forward` and within `backward`
are two.

Left out: profiler steps; the marks of single collectives (`nccl:…`, `gloo:…`), which say what runs and not why; and the
compiler's logging.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl

from ..spans import GLOO_PREFIX, NCCL_PREFIX, PROFILER_STEP, Span
from .kinds import Kind
from .launchers import launch_calls
from .nesting import NONE, innermost_at, outermost_at
from .tables import Trace

NO_PHASE = "other"
"""Time in no phase."""
_NO_PHASES = f"^({PROFILER_STEP}|{NCCL_PREFIX}|{GLOO_PREFIX})|compile_id="
_NOWHERE = 0


@dataclass(frozen=True)
class Ranges:
    """The phases of one thread or stream, in order of their starts."""

    start: np.ndarray
    end: np.ndarray
    name: np.ndarray
    """Codes of names, from 1 on."""
    ours: np.ndarray
    """Whether a range is one of our spans."""

    def at(self, moments: np.ndarray, num_names: int) -> np.ndarray:
        """Codes of the phases at the moments; 0 where there is none."""
        inner = innermost_at(self.start, self.end, moments)
        outer = outermost_at(self.start, self.end, moments)
        ours = np.flatnonzero(self.ours)
        span = innermost_at(self.start[ours], self.end[ours], moments)
        if len(ours):
            outer = np.where(span == NONE, outer, ours[span])
        if not len(self.name):
            return np.full(len(moments), _NOWHERE, dtype=np.int64)
        return np.where(inner == NONE, _NOWHERE, self.name[outer] * num_names + self.name[inner])


@dataclass(frozen=True)
class Phases:
    """Phases by thread and stream. A phase is coded as one number, for `within` and the phase itself."""

    names: Sequence[str]
    """By code; the first is `NO_PHASE`."""
    host: dict[int, Ranges]
    """By track."""
    device: dict[int, Ranges]
    main: int
    """Track of the thread that takes the steps; -1 if no thread has a mark."""

    def at(self, track: int, moments: np.ndarray) -> np.ndarray:
        """What a host thread was doing; where it does not say, what the main thread was doing."""
        found = np.full(len(moments), _NOWHERE, dtype=np.int64)
        for each in (track, self.main):
            open_ = np.flatnonzero(found == _NOWHERE)
            if each in self.host and len(open_):
                found[open_] = self.host[each].at(moments[open_], len(self.names))
        return found

    def named(self, codes: pl.Series) -> tuple[pl.Series, pl.Series]:
        """`within` and `phase` of codes, as texts."""
        names = pl.Series(self.names, dtype=pl.String)
        return names.gather(codes // len(self.names)), names.gather(codes % len(self.names))


def phases(trace: Trace) -> Phases:
    """The phases of a trace."""
    categories = cast(pl.Enum, trace.events["name"].dtype).categories
    is_phase = ~categories.str.contains(_NO_PHASES)
    ours = categories.is_in([span.value for span in Span])
    host = _ranges(trace.of(Kind.ANNOTATION), is_phase, ours)
    main = trace.steps["track"].mode().to_list() or [
        track for track, _ in sorted(host.items(), key=lambda item: -int((item[1].end - item[1].start).sum()))
    ]
    return Phases(
        names=[NO_PHASE, *categories.to_list()],
        host=host,
        device=_ranges(trace.of(Kind.DEVICE_ANNOTATION), is_phase, ours),
        main=min(main) if trace.steps.height else (main or [-1])[0],
    )


def _ranges(marks: pl.DataFrame, is_phase: pl.Series, ours: pl.Series) -> dict[int, Ranges]:
    code = marks["name"].to_physical()
    marks = marks.select("ts", "dur", "track", name=code, ours=ours.gather(code)).filter(is_phase.gather(code))
    return {
        int(track): Ranges(
            start=each["ts"].to_numpy(),
            end=(each["ts"] + each["dur"]).to_numpy(),
            name=each["name"].to_numpy().astype(np.int64) + 1,
            ours=each["ours"].to_numpy(),
        )
        for (track,), each in marks.partition_by("track", as_dict=True).items()
    }


def launched(trace: Trace) -> pl.DataFrame:
    """What occupied the devices, each with the call that launched it.

    A row for each row of `trace.device`, in its order: ts, end, kind, track, device, launch_ts, launch_track (both null
    if the call is not in the trace). A row without a device's number counts for device 0.
    """
    calls = launch_calls(trace).select("correlation", launch_ts="ts", launch_track="track")
    work = trace.device.select(
        "ts",
        pl.col("kind").cast(pl.String),
        "track",
        "correlation",
        pl.col("device").clip(0),
        end=pl.col("ts") + pl.col("dur"),
    )
    return work.join(calls, on="correlation", how="left", maintain_order="left").drop("correlation")


def phase_of_work(work: pl.DataFrame, found: Phases) -> np.ndarray:
    """The phase of each piece of work: the one in which it was launched, else the device's mark that it begins in.

    The launch comes first because a device's mark reaches from the first kernel of a phase to its last on a stream, and
    takes in what another thread put between them.
    """
    code = np.full(work.height, _NOWHERE, dtype=np.int64)
    numbered = work.with_row_index("i")
    for (track,), each in numbered.drop_nulls("launch_track").partition_by("launch_track", as_dict=True).items():
        code[each["i"].to_numpy()] = found.at(int(track), each["launch_ts"].to_numpy())
    rest = numbered.filter(pl.Series(code == _NOWHERE))
    for (track,), each in rest.partition_by("track", as_dict=True).items():
        if track in found.device:
            code[each["i"].to_numpy()] = found.device[int(track)].at(each["ts"].to_numpy(), len(found.names))
    return code
