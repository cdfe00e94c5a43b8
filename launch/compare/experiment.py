"""Runs a comparison: pilots, calibration, then rounds of pairs until every arm is decided or the budget is spent.

All of it is replayed from the segments on disk, in the same order and with the same decisions, so that going on after
an interruption is the same as never having been interrupted.
"""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

from . import budget
from .arms import AGAIN, BASELINE, Arm
from .calibration import Calibration, assumed, calibrate
from .declared import Declared, key_of, machine
from .design import Slot, log_differences, round_order
from .estimate import MIN_WARMUP_STEPS
from .judge import Kind, Verdict, judge
from .phrases import floor_line, prospect_line
from .power import minimum_detectable_effect
from .segment import Measured, Steps
from .sequential import MIN_PAIRS
from .store import KeptCalibration, Place, Store, calibration_file, token_times

MAX_FAILURES = 2
"""Segments of an arm that may fail; it is given up with the last of them."""
_LONGEST_WARMUP = 4 * MIN_WARMUP_STEPS
_MOST_STEPS = 2000
_PATIENCE = 10.0
_LEAST_TIMEOUT_S = 300.0
_LEAST_PILOT_TIMEOUT_S = 1800.0
"""A first compilation may take that long."""


class Measure(Interface):
    """How a segment is measured: a process in life, a formula in tests."""

    def __call__(self, arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
        """Run the arm once in this folder, and say what came of it; ended when the time is up."""
        ...


class ExperimentError(Exception):
    """A comparison cannot go on, because of what it has measured; a sentence."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """Whom the experiment tells what happens; nobody by default."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, float, float], None] = lambda what, done, left_s: None
    """What runs now, the share that is done, and seconds to go at most."""
    opened: Callable[[Path], None] = lambda folder: None
    """The folder, as soon as it is there."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a comparison has found."""

    verdicts: Mapping[str, Verdict]
    failed: Mapping[str, str]
    """Why an arm was given up."""
    calibration: Calibration
    mde: float
    """Smallest relative effect that is found in 90 % of such comparisons."""
    steps: Steps
    num_rounds: int
    ended: str
    """Why no more pairs were measured."""


@dataclass(kw_only=True)
class Experiment:
    """One comparison, from its folder."""

    arms: Sequence[Arm]
    declared: Declared
    store: Store
    measure: Measure
    budget_s: float | None = None
    calibrate_anew: bool = False
    told: Told = field(default_factory=Told)
    failed: dict[str, str] = field(default_factory=dict[str, str], init=False)

    @property
    def names(self) -> list[str]:
        """Of all arms, the baseline first."""
        return [arm.name for arm in self.arms]

    def run(self) -> Outcome:
        """Measure until all is decided. Raises: UsageError for a budget that is too short, ExperimentError."""
        kept = self._kept_calibration()
        if kept and self.budget_s is not None and self.budget_s < 2 * kept.segment_s:
            needed_s = kept.segment_s * len(self.arms) * (1 + MIN_PAIRS)
            raise budget.too_short(self.budget_s, 2 * kept.segment_s, "one pair took", needed_s)
        self._pilots()
        wanted = self._steps()
        # A longer window of an earlier calibration is kept: its noise is that of such segments.
        fits = kept is not None and kept.window * 2 >= wanted.window
        steps = Steps(window=max(wanted.window, kept.window if kept else 0), max_warmup=wanted.max_warmup)
        if not fits:
            kept, steps = None, wanted
        open_arms = [arm for arm in self.names[1:] if arm not in self.failed]
        if not open_arms:
            return self._rounds(kept.calibration if kept else assumed(), math.inf, steps)
        self._check_budget(calibrated=kept is not None)
        calibration = self._calibrated(kept, steps)
        mde = minimum_detectable_effect(calibration, self.declared.protocol, num_arms=len(open_arms))
        self.told.say(prospect_line(mde, self.declared.protocol.max_pairs))
        return self._rounds(calibration, mde, steps)

    def _get(self, place: Place, arm: Arm, steps: Steps, *, share: float = 0.0, left_s: float = math.inf) -> Measured:
        """A segment, from disk or measured now; a failure of it is counted."""
        timeout_s = self.patience_s(arm.name)
        if place not in self.store.measured:
            self.told.progress(f"{place.phase} {place.round + 1}: {place.arm}", share, left_s)
        found = self.store.get(place, lambda folder: self.measure(arm, folder, steps, timeout_s=timeout_s))
        if found.failure:
            self.told.say(f"{place.phase} {place.round + 1}: {place.arm} failed, {found.failure}: {found.reason}")
        return found

    def patience_s(self, arm: str) -> float | None:
        """How long a segment may take: by the pilot of its arm, else that of the baseline, else by the budget."""
        # A pilot may take long, for it compiles; but one that hangs must not take more than there is.
        left_s = math.inf if self.budget_s is None else self.budget_s - self.store.spent_s
        for name, least_s in ((arm, _LEAST_TIMEOUT_S), (BASELINE, min(_LEAST_PILOT_TIMEOUT_S, left_s))):
            if pilot := self.store.measured.get(Place(phase="pilot", round=0, arm=name)):
                return max(least_s, _PATIENCE * pilot.seconds)
        return self.budget_s

    def _pilots(self) -> None:
        """Run every arm once without counting it: caches fill, impossible arms fall out, durations become known."""
        steps = Steps(window=self.declared.window_steps, max_warmup=_LONGEST_WARMUP)
        for i, arm in enumerate(self.arms):
            found = self._get(Place(phase="pilot", round=0, arm=arm.name), arm, steps, share=i / len(self.arms))
            if found.failure and arm.name == BASELINE:
                raise ExperimentError(f"the baseline fails, {found.failure}: {found.reason}")
            if found.failure:
                self.failed[arm.name] = f"{found.failure}: {found.reason}"

    def _pilot(self, arm: str) -> Measured:
        return self.store.measured[Place(phase="pilot", round=0, arm=arm)]

    def _steps(self) -> Steps:
        """How long all further segments are: by the fastest arm, so that its window is long enough too."""
        pilots = [self._pilot(name) for name in self.names if name not in self.failed]
        segments = [pilot.segment for pilot in pilots if pilot.segment]
        fastest_s = min(each.median_s for each in segments)
        window = max(self.declared.window_steps, math.ceil(self.declared.window_s / fastest_s))
        settled = max(each.num_warmup_steps for each in segments)
        return Steps(window=min(window, _MOST_STEPS), max_warmup=min(_LONGEST_WARMUP, 2 * settled))

    def _kept_calibration(self) -> KeptCalibration | None:
        """That of this folder, else one of an earlier comparison."""
        if own := KeptCalibration.read(self.store.path / "calibration.json"):
            return own
        if self.calibrate_anew or any(place.phase == "calibration" for place in self.store.measured):
            return None
        key = key_of(self.arms[0], self.declared, machine())
        return KeptCalibration.read(calibration_file(key), today=datetime.date.today())

    def _calibrated(self, kept: KeptCalibration | None, steps: Steps) -> Calibration:
        """The noise floor: kept, or measured now. Raises: ExperimentError if too many of its segments fail."""
        own_file = self.store.path / "calibration.json"
        if kept:
            kept.write(own_file)
            self.told.say(f"noise floor kept from {kept.measured_on}: {floor_line(kept.calibration)}")
            return kept.calibration
        names, baseline = (BASELINE, AGAIN), self.arms[0]
        medians: dict[Slot, float] = {}
        seconds: list[float] = []
        num_pairs = self.declared.calibration_pairs
        for index in range(num_pairs):
            for i, name in enumerate(round_order(names, self.declared.seed, index)):
                place = Place(phase="calibration", round=index, arm=name)
                share = (2 * index + i) / (2 * num_pairs)
                left_s = (2 * num_pairs - 2 * index - i) * self._pilot(BASELINE).seconds
                found = self._get(place, baseline, steps, share=share, left_s=left_s)
                seconds.append(found.seconds)
                if found.segment:
                    medians[Slot(round=index, arm=name)] = found.segment.median_s
        source = f"{num_pairs} pairs of the recipe against itself, on this machine"
        try:
            calibration = calibrate(log_differences(medians, baseline=BASELINE, candidate=AGAIN), source=source)
        except ValueError as error:
            raise ExperimentError(f"too many segments of the baseline fail: {error}") from error
        new = KeptCalibration(
            calibration=calibration,
            window=steps.window,
            segment_s=sum(seconds) / len(seconds),
            measured_on=datetime.date.today().isoformat(),
        )
        new.write(own_file)
        try:
            new.write(calibration_file(key_of(baseline, self.declared, machine())))
        except OSError as error:  # the folder of the comparison has it
            self.told.say(f"note: the noise floor is not kept for later comparisons ({error.strerror})")
        self.told.say(f"noise floor: {floor_line(calibration)}")
        return calibration

    def _check_budget(self, *, calibrated: bool) -> None:
        """Refuse a budget that cannot end in a verdict. Raises: UsageError."""
        if self.budget_s is not None:
            before_s = 0.0 if calibrated else 2 * self.declared.calibration_pairs * self._pilot(BASELINE).seconds
            pilots_s = sum(self._pilot(name).seconds for name in self.names)
            budget.check(self.budget_s, pair_s=self._round_cost(set()), pilots_s=pilots_s, calibration_s=before_s)

    def _round_cost(self, decided: set[str]) -> float:
        """Seconds that a round takes: the mean of each arm's segments so far."""
        costs: list[float] = []
        for name in self.names:
            if name not in decided and name not in self.failed:
                own = [each.seconds for place, each in self.store.measured.items() if place.arm == name]
                costs.append(sum(own) / len(own))
        return sum(costs)

    def _rounds(self, calibration: Calibration, mde: float, steps: Steps) -> Outcome:
        """Pairs until all is decided, as often as the protocol and the budget allow."""
        max_pairs, candidates = self.declared.protocol.max_pairs, self.names[1:]
        verdicts: dict[str, Verdict] = {}
        done, ended = 0, f"all {max_pairs} pairs are measured"
        for index in range(max_pairs):
            waiting = [name for name in candidates if not _is_over(verdicts.get(name)) and name not in self.failed]
            if not waiting:
                ended = "every arm is decided" if verdicts else "no arm could be measured"
                break
            if not self._affords(index, waiting):
                ended = f"the budget of {self.budget_s:.0f} s is spent"
                break
            self._round(index, waiting, steps)
            if BASELINE in self.failed:
                ended = f"the baseline failed {MAX_FAILURES} times"
                break
            done = index + 1
            self._judge(verdicts, calibration, done, over=False)
            said = ", ".join(f"{name} {verdicts[name].kind}" for name in waiting if name in verdicts)
            self.told.say(f"pair {done}: {said}")
        self._judge(verdicts, calibration, done, over=True)
        return Outcome(
            verdicts=verdicts,
            failed=dict(self.failed),
            calibration=calibration,
            mde=mde,
            steps=steps,
            num_rounds=done,
            ended=ended,
        )

    def _affords(self, index: int, waiting: Sequence[str]) -> bool:
        """Whether a round is there already, or the budget allows it."""
        places = [Place(phase="pair", round=index, arm=name) for name in (BASELINE, *waiting)]
        if self.budget_s is None or all(place in self.store.measured for place in places):
            return True
        decided = {name for name in self.names[1:] if name not in waiting}
        return self.store.spent_s + self._round_cost(decided) <= self.budget_s

    def _round(self, index: int, waiting: Sequence[str], steps: Steps) -> None:
        """One segment of the baseline and of each arm that waits; an arm that fails too often is given up."""
        by_name = {arm.name: arm for arm in self.arms}
        decided = {name for name in self.names[1:] if name not in waiting}
        left = self.declared.protocol.max_pairs - index
        left_s = left * self._round_cost(decided)
        if self.budget_s is not None:
            left_s = min(left_s, self.budget_s - self.store.spent_s)
        for name in round_order(self.names, self.declared.seed, index):
            if name not in decided:
                share = 1 - left / self.declared.protocol.max_pairs
                place = Place(phase="pair", round=index, arm=name)
                found = self._get(place, by_name[name], steps, share=share, left_s=left_s)
                if found.failure and self._num_failures(name, index) >= MAX_FAILURES:
                    self.failed[name] = f"{found.failure}: {found.reason}"

    def _num_failures(self, name: str, index: int) -> int:
        places = (Place(phase="pair", round=i, arm=name) for i in range(index + 1))
        return sum(1 for place in places if place in self.store.measured and self.store.measured[place].failure)

    def _judge(self, verdicts: dict[str, Verdict], calibration: Calibration, done: int, *, over: bool) -> None:
        """Renew the verdict on every arm that is not decided; all of them share the error."""
        medians = token_times(self.store.measured, num_rounds=done)
        differences = {name: log_differences(medians, baseline=BASELINE, candidate=name) for name in self.names[1:]}
        found = judge(differences, self.declared.protocol, calibration, over=over)
        for name, verdict in found.items():
            if not _is_over(verdicts.get(name)):
                verdicts[name] = verdict


def _is_over(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.kind is not Kind.CONTINUE
