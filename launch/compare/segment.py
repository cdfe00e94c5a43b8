"""One segment of a comparison: a fresh process group trains an arm, and leaves the time of every step."""

import errno
import math
import os
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ExitCode
from ..instruments import StepTimes
from ..schema import Recipe
from .arms import Arm
from .estimate import Segment, summarise
from .process import Ended, run_recipe
from .sound import is_count, is_number, is_time
from .workload import measured_part

_NO_MEMORY = ("out of memory", "outofmemoryerror", "defaultcpuallocator", "cannot allocate memory")
_KILLED = (-9, 137)
_LONGEST_REASON = 400
_FULL = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How long a segment is."""

    window: int
    """Steps that are measured, at least."""
    max_warmup: int
    """Where an unsteady warm-up ends."""

    @property
    def num_steps(self) -> int:
        """Steps to be trained."""
        return self.window + self.max_warmup


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of one segment."""

    arm: str
    seconds: float
    """Of the whole process, its start included."""
    failure: str | None = None
    """`out of memory`, `timeout`, `loss not finite`, `crash`, `refused`; None if it was measured."""
    reason: str | None = None
    """Why it failed, in a sentence."""
    segment: Segment | None = None
    times: StepTimes | None = None
    startup_s: float | None = None
    """From the start of the process to the first step."""

    @property
    def compile_s(self) -> float | None:
        """What the first steps took beyond steps of median length: compilation, tuning, filling caches."""
        if self.times is None or self.segment is None:
            return None
        median_s = self.segment.median_s
        return max(0.0, sum(each - median_s for each in self.times.step_s[: self.segment.num_warmup_steps]))

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> "Measured":
        """The inverse of `to_json`. Raises: LookupError, TypeError, ValueError if it is damaged."""
        segment, times = told["segment"], told["times"]
        values: dict[str, Any] = dict(told)
        if segment is not None:
            values["segment"] = Segment(**segment)
        if times is not None:
            lists = {key: tuple(times[key]) for key in ("step_s", "losses")}
            values["times"] = StepTimes(**times | lists)
        found = Measured(**values)
        if not _is_sound(found):
            raise ValueError(f"segment of {found.arm!r}: holds values that none can have")
        return found


def _is_sound(found: Measured) -> bool:
    """Whether a segment can have been measured, or have failed, like that."""
    segment, times = found.segment, found.times
    whole = isinstance(found.arm, str) and is_time(found.seconds)  # pyright: ignore[reportUnnecessaryIsInstance]
    if found.failure is not None or segment is None or times is None:
        return whole and isinstance(found.failure, str) and segment is None and times is None
    return (
        whole
        and is_number(segment.median_s, above=0)
        and is_number(segment.p95_s, above=0)
        and is_count(segment.num_steps, 1)
        and is_count(segment.num_warmup_steps)
        and bool(times.step_s)
        and all(map(is_time, times.step_s))
        and all(map(is_number, (*times.losses, times.began_at)))
        and all(map(is_time, (times.memory_gib, times.waited_s, times.flops_per_token)))
        and is_count(times.num_ranks, 1)
        and is_count(times.tokens_per_step, 1)
        and (times.peak_flops is None or is_number(times.peak_flops, above=0))
        and (found.startup_s is None or is_number(found.startup_s))
    )


def measured_recipe(recipe: Recipe, *, num_steps: int, keep_log_every: bool) -> Recipe:
    """What a segment trains: nothing but steps, and none of them waits for the device in order to log.

    The number of steps stays that of the recipe where it suffices, because schedules depend on it.
    keep_log_every: an arm changes how often is logged, so that it is measured.
    """
    log_every = recipe.run.log_every if keep_log_every else num_steps + 1
    run = replace(recipe.run, num_steps=max(recipe.run.num_steps, num_steps), log_every=log_every)
    return replace(measured_part(recipe), run=run)


def run_segment(
    arm: Arm,
    folder: Path,
    steps: Steps,
    *,
    keep_log_every: bool = False,
    num_ranks: int | None = None,
    timeout_s: float | None = None,
) -> Measured:
    """Measure an arm once; whatever becomes of it is a result."""
    recipe = measured_recipe(arm.recipe, num_steps=steps.num_steps, keep_log_every=keep_log_every)
    file = folder / "steps.json"
    arguments = ("--stop-after", str(steps.num_steps), "--step-times", str(file))
    ended = run_recipe(recipe, folder, arguments, num_ranks=num_ranks, timeout_s=timeout_s)
    _refuse_full_disk(ended, folder)
    times: StepTimes | None = None
    if ended.code == ExitCode.DONE:
        try:
            times = StepTimes.read(file)
        except (OSError, ValueError, TypeError) as error:
            return _failed(arm, ended, "crash", f"ended as if it was done, and left no step times ({error})")
    return judge_times(arm, ended, times, steps)


def _refuse_full_disk(ended: Ended, folder: Path) -> None:
    """A run that failed because the disk is full says nothing of its arm. Raises: OSError, to go on with --resume."""
    told = ended.code != ExitCode.DONE and os.strerror(errno.ENOSPC) in ended.output
    if told and shutil.disk_usage(folder).free < _FULL:  # else it was another place, as shared memory that loaders fill
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def judge_times(arm: Arm, ended: Ended, times: StepTimes | None, steps: Steps) -> Measured:
    """What the end of a process and the times that it left amount to."""
    if times is None:
        kind, reason = failure_of(ended)
        return _failed(arm, ended, kind, reason)
    broken = next((i for i, loss in enumerate(times.losses, start=1) if not math.isfinite(loss)), None)
    if broken is not None:
        return _failed(arm, ended, "loss not finite", f"the loss is {times.losses[broken - 1]} in step {broken}")
    segment = summarise(times.step_s, num_steps=steps.window, max_warmup_steps=steps.max_warmup)
    if segment is None:
        return _failed(arm, ended, "crash", f"{len(times.step_s)} steps where {steps.num_steps} were asked for")
    startup_s = times.began_at - ended.started_at
    return Measured(arm=arm.name, seconds=ended.seconds, segment=segment, times=times, startup_s=startup_s)


def failure_of(ended: Ended) -> tuple[str, str]:
    """The kind of a failure, and the most telling line of what the run has said."""
    if ended.code is None:
        return "timeout", f"not done after {ended.seconds:.0f} s"
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    memory = [line for line in lines if any(sign in line.lower() for sign in _NO_MEMORY)]
    if memory:
        told = next((line for line in memory if line.startswith("error:")), memory[-1])
        return "out of memory", told.removeprefix("error: ")
    if ended.code in _KILLED or "Signal 9 (SIGKILL)" in ended.output:
        return "out of memory", "killed by the system (SIGKILL), as it does when the host's memory is used up"
    errors = [line for line in lines if line.startswith("error:")]
    killed = _signal_of(ended)
    if errors or (ended.reason and not killed):
        told = errors[-1].removeprefix("error: ") if errors else str(ended.reason)
    else:
        last = f"; its last line: {lines[-1]}" if lines else "; it said nothing"
        told = f"ended by {killed}{last}" if killed else f"ended with code {ended.code}{last}"
    return ("refused" if ended.code in (ExitCode.USAGE, ExitCode.CHECKPOINT) else "crash"), told


def _signal_of(ended: Ended) -> str | None:
    """`SIGSEGV`, if a signal has ended the process; one of several ranks is told of by their launcher."""
    if found := re.search(r"Signal \d+ \((SIG[A-Z]+)\)", ended.output):
        return found[1]
    if ended.code is None or ended.code >= 0:
        return None
    return signal.Signals(-ended.code).name if -ended.code in set(signal.Signals) else f"signal {-ended.code}"


def _failed(arm: Arm, ended: Ended, kind: str, reason: str) -> Measured:
    said = "".join(
        each if each.isprintable() else " " for each in reason[:_LONGEST_REASON]
    )  # it may be anybody's bytes
    return Measured(arm=arm.name, seconds=ended.seconds, failure=kind, reason=said)
