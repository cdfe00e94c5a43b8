"""What the program said it was doing: phases of the host, and the phase that each piece of a device's work belongs to.

A phase is a range that a program marked: our spans, FSDP's, DDP's and the optimizer's marks, and any other. Ranges
nest, and time belongs to the innermost. `within` says where that one stands: the innermost of *our* spans around it, or
the outermost range of any kind in a trace without them. So `FSDP::all_gather` within `forward` and within `backward`
are two.

Left out: profiler steps; the marks of single collectives (`nccl:…`, `hccl:…`, `gloo:…`), which say what runs and
not why; and the compiler's logging.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import polars as pl

from ..spans import GLOO_PREFIX, NCCL_PREFIX, PROFILER_STEP, Span
from .kinds import Kind
from .launchers import call_places, launch_calls
from .nesting import NONE, innermost_at, moments_of, outermost_at
from .tables import Trace, once

NO_PHASE = "other"
"""Time in no phase."""
_NO_PHASES = f"^({PROFILER_STEP}|{NCCL_PREFIX}|{GLOO_PREFIX}|[a-z]+ccl:)|compile_id="
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

    @cached_property
    def _changes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Moments at which the phase may change; before the first and from each on, `within` and the phase."""
        first, last = (self.start[0], self.end.max()) if len(self.start) else (0, 0)
        moments = moments_of(self.start, self.end, first=first, last=last)
        inner = innermost_at(self.start, self.end, moments)
        outer = outermost_at(self.start, self.end, moments)
        ours = np.flatnonzero(self.ours)
        span = innermost_at(self.start[ours], self.end[ours], moments)
        if len(ours):
            outer = np.where(span == NONE, outer, ours[span])
        names = np.append(self.name, _NOWHERE)
        inner, outer = (np.append(_NOWHERE, names[np.where(inner == NONE, NONE, each)]) for each in (inner, outer))
        return moments, outer, inner

    def at(self, moments: np.ndarray, num_names: int) -> np.ndarray:
        """Codes of the phases at the moments; 0 where there is none."""
        changes, outer, inner = self._changes
        place = np.searchsorted(changes, moments, side="right")
        return (outer * num_names + inner)[place]


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


@once
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
    calls, at = launch_calls(trace), call_places(trace, trace.device)
    return trace.device.select(
        "ts",
        "kind",
        "track",
        pl.col("device").clip(0),
        end=pl.col("ts") + pl.col("dur"),
        launch_ts=calls["ts"].gather(at),
        launch_track=calls["track"].gather(at),
    )


def phase_of_work(work: pl.DataFrame, found: Phases) -> np.ndarray:
    """The phase of each piece of work: the one in which it was launched, else the device's mark that it begins in.

    The launch comes first because a device's mark reaches from the first kernel of a phase to its last on a stream, and
    takes in what another thread put between them.
    """
    code = np.full(work.height, _NOWHERE, dtype=np.int64)
    caller, called = work["launch_track"], work["launch_ts"].fill_null(0).to_numpy()
    for track in caller.drop_nulls().unique().to_list():
        mine = np.flatnonzero((caller == track).fill_null(False).to_numpy())
        code[mine] = found.at(track, called[mine])
    rest = code == _NOWHERE
    stream, start = work["track"].to_numpy(), work["ts"].to_numpy()
    for track, marks in found.device.items() if rest.any() else ():
        mine = np.flatnonzero(rest & (stream == track))
        code[mine] = marks.at(start[mine], len(found.names))
    return code
