"""The bench on which changes are tried one after another: each by a comparison in a folder of its own.

A change is measured first, and only one that is faster is profiled and held against the guard, which takes longer than
the measurement. All of a comparison's segments stay on disk, so that what was interrupted is gone through again without
being measured again.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import run_folder
from ..errors import UsageError
from ..plan import plan_here
from ..recipe import read, to_toml
from ..schema import Recipe
from .arms import BASELINE, Arm, ArmSpec, MakePlan
from .comparison import Asked, Guard, arms_of, compare, fresh_guard
from .declared import machine
from .experiment import ExperimentError, Measure, Told
from .judge import Kind
from .page import leave_page
from .results import ArmResult, Results
from .rungs import FAILED, NOT_TRIED, REFUSED, Point, Row, Rung, finding_of
from .segment import Measured, Steps, run_segment
from .sound import seconds_in
from .store import KeptCalibration, default_name, read_json, write_json

CANDIDATE = "candidate"
PILOT = "pilot-"
"""How the folders of segments begin that are not counted."""
_CALIBRATION = "calibration.json"
_PATIENCE = 5.0
_LEAST_PATIENCE_S = 300.0
"""A change is not waited for longer than this, or than so many times what its baseline takes."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """With what comparisons are made: processes and the real guard, or what a test puts there."""

    told: Told = field(default_factory=Told)
    guard: Guard | None = None
    measure: Measure | None = None
    make_plan: MakePlan | None = None


@dataclass(kw_only=True)
class Bench:
    """Comparisons below one folder, with one noise floor."""

    path: Path
    asked: Asked
    """What all of them have in common; its recipe is the first baseline."""
    tools: Tools
    held: int | None = None
    keep_log_every: bool = False
    """Whether segments log as their recipe says, because a change of that is among what is tried."""
    calibration: Path | None = None
    """Of the first comparison. Its noise is taken for that of the later ones, unless their windows are far longer."""

    @property
    def _measure(self) -> Measure:
        """Segments of this bench, without patience for a change that is hopelessly slow."""
        measure = self.tools.measure or real_measure(self.asked.declared.ranks, keep_log_every=self.keep_log_every)
        baseline_s = 0.0

        def patient(arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
            nonlocal baseline_s
            if folder.name.startswith(PILOT) and arm.name != BASELINE and baseline_s:
                timeout_s = min(timeout_s or math.inf, patience_s(baseline_s))
            found = measure(arm, folder, steps, timeout_s=timeout_s)
            baseline_s = found.seconds if arm.name == BASELINE else baseline_s
            return found

        return patient

    @property
    def _guard(self) -> Guard:
        """The guard with one folder for all comparisons, which have many of its runs in common."""
        guard, folder = self.tools.guard or fresh_guard(self.asked.declared.ranks), self.path / "sameness"
        return lambda baseline, arm, _: guard(baseline, arm, folder)

    def close(self) -> None:
        """Let go of the folder."""
        if self.held is not None:
            os.close(self.held)
            self.held = None

    def recipe(self, path: Path | str, changes: Sequence[str] = ()) -> Recipe:
        """A recipe that can run here. Raises: UsageError with every problem."""
        found = read(str(path), changes)
        self._make_plan(found)
        return found

    @property
    def _make_plan(self) -> MakePlan:
        return self.tools.make_plan or partial(plan_here, num_ranks=self.asked.declared.ranks)

    def write_stack(self, name: str, recipe: Recipe) -> Path:
        """Leave a recipe that serves as a baseline."""
        path = self.path / "stacks" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_toml(recipe))
        return path

    @property
    def spent_s(self) -> float:
        """Time of all segments below the folder."""
        return sum(spent_in(path) for path in self.path.rglob("segments"))

    def left_s(self, *so_far: float) -> float | None:
        """What is left of the budget after so many seconds."""
        return None if self.asked.budget_s is None else self.asked.budget_s - sum(so_far)

    def compare(
        self,
        place: str,
        baseline: Path,
        arms: Sequence[ArmSpec],
        *,
        left_s: float | None,
        guarded: bool,
        profiled: bool,
    ) -> Results:
        """One comparison in the folder `place`, or the rest of it. Raises: UsageError, ExperimentError."""
        folder = self.path / place
        asked = self._asked(baseline, arms)
        asked = replace(
            asked,
            declared=replace(asked.declared, profile=profiled),
            guarded=guarded,
            budget_s=left_s,
            out=folder,
            resume=(folder / "experiment.json").exists(),
        )
        self._share_calibration(folder)
        tools = self.tools
        told = replace(tools.told, opened=_nobody)
        found = compare(asked, told=told, guard=self._guard, measure=self._measure, make_plan=tools.make_plan)
        if self.calibration is None and (folder / _CALIBRATION).exists():  # not if no arm came through its pilot
            self.calibration = folder / _CALIBRATION
        return found

    def _asked(self, baseline: Path, arms: Sequence[ArmSpec]) -> Asked:
        return replace(self.asked, recipe=str(baseline), arms=tuple(arms), overrides=(), refused=())

    def refusals(self, baseline: Path, arm: ArmSpec) -> tuple[str, ...]:
        """Why an arm cannot be compared with a baseline; empty if it can."""
        try:
            arms_of(replace(self._asked(baseline, [arm]), out=None, resume=False), self.tools.make_plan)
        except UsageError as error:
            return error.problems
        return ()

    def _share_calibration(self, folder: Path) -> None:
        if self.calibration is None or (folder / _CALIBRATION).exists():
            return
        if kept := KeptCalibration.read(self.calibration):
            folder.mkdir(parents=True, exist_ok=True)
            kept.write(folder / _CALIBRATION)

    def try_rung(self, index: int, rung: Rung, baseline: Path, *, place: str, left_s: float | None) -> "Tried":
        """Try one change of a baseline: measured, and if it is faster profiled and guarded."""
        common: dict[str, Any] = {"index": index, "name": rung.name, "set": rung.set}
        arm = ArmSpec(name=CANDIDATE, changes=rung.set)
        if problems := self.refusals(baseline, arm):
            reason = "; ".join(problem.removeprefix(f"arm {CANDIDATE}: ") for problem in problems)
            return Tried(row=Row(verdict=REFUSED, reason=reason, **common))
        if left_s is not None and left_s <= 0:
            return Tried(row=Row(verdict=NOT_TRIED, reason="the budget is spent", **common))
        try:
            results = self._measured_then_checked(place, baseline, arm, left_s)
        except UsageError as error:
            if not error.problems[0].startswith("--budget"):
                raise
            found: dict[str, Any] = {"verdict": NOT_TRIED, "reason": f"the budget is spent ({error.problems[0]})"}
        except ExperimentError as error:
            found = {"verdict": FAILED, "reason": str(error)}
        else:
            recipe = self.recipe(baseline, rung.set)
            found = finding_of(results.arms[1], recipe, guarded=self.asked.guarded)
            row = Row(**common, **found, seconds=results.spent_s, folder=place)
            return Tried(row=row, base=Point.of(results.arms[0], self.recipe(baseline)), results=results)
        seconds = spent_in(self.path / place / "segments")
        return Tried(row=Row(**common, **found, seconds=seconds, folder=place if seconds else None))

    def _measured_then_checked(self, place: str, baseline: Path, arm: ArmSpec, left_s: float | None) -> Results:
        results = self.compare(place, baseline, [arm], left_s=left_s, guarded=False, profiled=False)
        if not is_faster(results.arms[1]):
            return results
        declared, guarded = self.asked.declared, self.asked.guarded
        if not declared.profile and not guarded:
            return results
        return self.compare(place, baseline, [arm], left_s=left_s, guarded=guarded, profiled=declared.profile)

    def write_results(self, kind: str, told: Mapping[str, Any], *, spent_s: float, ended: str) -> dict[str, Any]:
        """Leave `results.json`."""
        results = {
            "kind": kind,
            "recipe": self.recipe(self.asked.recipe, self.asked.overrides).name,
            "folder": str(self.path),
            "machine": machine(),
            "command": list(self.asked.command),
            "budget_s": self.asked.budget_s,
            "spent_s": spent_s,
            "ended": ended,
            **told,
        }
        write_json(self.path / "results.json", results)
        leave_page(self.path, self.tools.told.say)
        return json.loads(json.dumps(results))


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of one change."""

    row: Row
    base: Point | None = None
    """The baseline, in the same comparison."""
    results: Results | None = None


def _nobody(folder: Path) -> None:
    """Folders within the folder are not told of."""


def patience_s(baseline_s: float) -> float:
    """How long a change is waited for, where its baseline takes this long."""
    return max(_LEAST_PATIENCE_S, _PATIENCE * baseline_s)


def real_measure(num_ranks: int | None, *, keep_log_every: bool) -> Measure:
    """Segments as processes."""

    def measure(arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
        return run_segment(arm, folder, steps, keep_log_every=keep_log_every, num_ranks=num_ranks, timeout_s=timeout_s)

    return measure


def is_faster(arm: ArmResult) -> bool:
    """Whether the measurement says so, and it did not fail."""
    return arm.verdict is not None and arm.verdict.kind is Kind.FASTER and not arm.failure


def spent_in(segments: Path) -> float:
    """Time of all finished segments of a comparison."""
    return sum(seconds_in(read_json(file)) for file in segments.glob("[!.]*.json"))


def changes_logging(changes: Iterable[str]) -> bool:
    """Whether one of these `a.b=value` changes how often is logged: what is tried must be in what is measured."""
    return any(change.split("=")[0] == "run.log_every" for change in changes)


def open_bench(kind: str, asked: Asked, told: Mapping[str, Any], tools: Tools) -> Bench:
    """The folder, begun or continued. told: what was declared. Raises: UsageError."""
    path = asked.out or default_name(read(asked.recipe, asked.overrides).name)
    file = path / f"{kind}.json"
    now = json.loads(json.dumps(told))
    if asked.resume:
        begun = read_json(file)
        if begun is None:
            raise UsageError(f"--resume: {path} holds no {kind}; give the folder of one with --out")
        other = [f"{key} was {begun.get(key)}, is {now[key]}" for key in now if begun.get(key) != now[key]]
        if other:
            raise UsageError(f"--resume: {path} holds another {kind} ({'; '.join(other)}); begin a new one")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not asked.resume:
            _refuse_others(path)
        held = run_folder.lock(path)
        write_json(file, now)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror}); choose another folder") from error
    tools.told.opened(path)
    return Bench(path=path, asked=asked, tools=tools, held=held)


def _refuse_others(path: Path) -> None:
    """Leave a folder as it is that holds anything but what one leaves that was killed at its beginning."""
    others = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    if any(name.endswith(".json") for name in others):
        raise UsageError(f"--out {path}: holds something already; add --resume to continue it, or choose another")
    if others:
        raise UsageError(f"--out {path}: holds other things ({others[0]}); choose a new folder")
