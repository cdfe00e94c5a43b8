"""Which of two functions is faster: the protocol of `stepladder compare`, for anything that can be called."""

import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from ..compare.calibration import CALIBRATION_PAIRS, Calibration, calibrate
from ..compare.design import Slot, log_differences, next_slot
from ..compare.estimate import MIN_WARMUP_STEPS, is_steady, summarise
from ..compare.judge import Kind, Verdict, judge
from ..compare.sequential import Protocol
from ..errors import UsageError

Call = Callable[[], object]
_FIRST, _SECOND, _AGAIN = "first", "second", "first again"
_STEP_S = 0.001
"""Calls are timed in steps of at least this, so that the clock costs nothing."""
_MIN_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is known of two functions. Ratios are times, second over first: below 1 the second is faster."""

    verdict: Verdict
    calibration: Calibration
    """What the first differs by from itself on this machine."""
    first_s: float
    """Of one call, the median over all segments."""
    second_s: float
    fresh: bool
    """Whether every segment had a process of its own."""

    @property
    def speedup(self) -> float:
        """How many times as fast the second is."""
        return 1 / self.verdict.ratio if self.verdict.ratio else self.first_s / self.second_s

    def __str__(self) -> str:
        """The verdict in words and figures."""
        where = "" if self.fresh else "; all in one process, whose memory layout is a part of the answer"
        doubt = f"; {self.calibration.suspect}" if self.calibration.suspect else ""
        return f"the second is {self.verdict.sentence}{where}{doubt}"


@dataclass(frozen=True, kw_only=True)
class _Length:
    """Of one segment."""

    calls_per_step: int
    num_steps: int


def compare(
    first: Call,
    second: Call,
    *,
    fresh: bool = False,
    max_pairs: int = 16,
    margin: float = 0.01,
    alpha: float = 0.05,
    segment_s: float = 0.2,
    seed: int = 0,
) -> Comparison:
    """Time two functions in interleaved pairs of segments until the difference is clear, or the pairs are used up.

    With `fresh`, each segment is a process of its own, in which `first()` or `second()` is called once to make what is
    timed: both must be functions of a module, and return a function. Without, they are timed themselves, in this
    process. The noise floor comes from the first against itself. margin: differences smaller than it do not matter.
    segment_s: about how long a segment measures. Raises: UsageError for settings that allow no verdict.
    """
    try:
        protocol = Protocol(max_pairs=max_pairs, margin=margin, alpha=alpha)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if segment_s <= 0:
        raise UsageError(f"segment_s = {segment_s}: must be greater than 0")
    run = _in_a_process if fresh else _here
    gc.collect()  # so that no segment pays for what was there before
    length = run(first, None, segment_s)
    time_of = partial(_median_s, run, length, segment_s)
    medians: dict[Slot, float] = {}
    calibration_of: dict[Slot, float] = {}
    _measure(calibration_of, {_FIRST: first, _AGAIN: first}, time_of, seed=seed + 1, num_rounds=CALIBRATION_PAIRS)
    calibration = calibrate(
        log_differences(calibration_of, baseline=_FIRST, candidate=_AGAIN), source="the first against itself"
    )
    arms = {_FIRST: first, _SECOND: second}
    num_rounds = 0
    while True:  # until the pairs are used up at the latest, which is a verdict too
        num_rounds += 1
        _measure(medians, arms, time_of, seed=seed, num_rounds=num_rounds)
        differences = log_differences(medians, baseline=_FIRST, candidate=_SECOND)
        verdict = judge({_SECOND: differences}, protocol, calibration)[_SECOND]
        if verdict.kind is not Kind.CONTINUE:
            break
    return Comparison(
        verdict=verdict,
        calibration=calibration,
        first_s=median(each for slot, each in medians.items() if slot.arm == _FIRST),
        second_s=median(each for slot, each in medians.items() if slot.arm == _SECOND),
        fresh=fresh,
    )


def _measure(
    medians: dict[Slot, float], arms: dict[str, Call], time_of: Callable[[Call], float], *, seed: int, num_rounds: int
) -> None:
    """Run the segments that are missing of so many rounds."""
    while (slot := next_slot(list(arms), seed=seed, num_rounds=num_rounds, done=medians)) is not None:
        medians[slot] = time_of(arms[slot.arm])


def _median_s(run: Any, length: _Length, segment_s: float, call: Call) -> float:
    """Seconds of one call in a segment."""
    return run(call, length, segment_s)


def _here(call: Call, length: _Length | None, segment_s: float) -> Any:
    """The median time of a call in a segment in this process; without a length, the length that suits it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _length_for(call, segment_s) if length is None else _segment(call, length)
    finally:
        if enabled:
            gc.enable()


def _segment(call: Call, length: _Length) -> float:
    """Warm up until it is steady, then measure."""
    calls = length.calls_per_step
    times = [_step_s(call, calls) for _ in range(MIN_WARMUP_STEPS)]
    while not is_steady(times) and len(times) < 4 * MIN_WARMUP_STEPS:
        times.append(_step_s(call, calls))
    times += [_step_s(call, calls) for _ in range(length.num_steps)]
    found = summarise(times, num_steps=length.num_steps, max_warmup_steps=len(times) - length.num_steps)
    assert found is not None, "the warm-up ends where it has ended"
    return found.median_s / calls


def _length_for(call: Call, segment_s: float) -> _Length:
    """So many calls that a step can be timed, so many steps that a segment takes as long as wished."""
    calls = 1
    _step_s(call, calls)  # the first call compiles, allocates, loads
    while (took_s := _step_s(call, calls)) < _STEP_S:
        calls = max(2 * calls, min(round(1.2 * calls * _STEP_S / max(took_s, 1e-9)), 1000 * calls))
    return _Length(calls_per_step=calls, num_steps=max(_MIN_STEPS, round(segment_s / took_s)))


def _step_s(call: Call, number: int) -> float:
    wait = _synchronize()
    wait()
    started_s = time.perf_counter()
    for _ in range(number):
        call()
    wait()
    return time.perf_counter() - started_s


def _synchronize() -> Callable[[], object]:
    """What waits for the device, if this process uses one."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return lambda: None
    return torch.cuda.synchronize


def _in_a_process(make: Call, length: _Length | None, segment_s: float) -> Any:
    """The same in a process that was started for it. Raises: UsageError with what went wrong there."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    try:
        process = context.Process(target=_serve, args=(make, length, segment_s, send), daemon=True)
        process.start()
    except Exception as error:  # pickle has errors of its own
        said = f"compare(fresh=True): {make!r} cannot be sent to a process ({error}); use a function of a module"
        raise UsageError(said) from error
    send.close()
    try:
        ok, answer = receive.recv()
    except EOFError:
        process.join()
        ok, answer = False, f"its process ended with {process.exitcode}"
    process.join()
    if not ok:
        raise UsageError(f"compare(fresh=True): {getattr(make, '__name__', make)}: {answer}")
    return answer


def _serve(make: Call, length: _Length | None, segment_s: float, send: Any) -> None:
    try:
        call = make()
        if not callable(call):
            raise TypeError(f"returns {type(call).__name__}, and not the function that is to be timed")
        send.send((True, _here(call, length, segment_s)))
    except Exception as error:
        send.send((False, f"{type(error).__name__}: {error}"))
