"""The folder of a comparison: every finished segment is on disk at once, so that only the running one can be lost."""

import contextlib
import datetime
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ...profiling.capture import publish
from ...trainer.data.tokens import cache_folder
from .. import run_folder
from ..errors import UsageError
from ..recipe import to_toml
from .arms import AGAIN, BASELINE, Arm
from .calibration import Calibration
from .declared import Declared, differences
from .design import Slot
from .estimate import Estimate
from .segment import Measured
from .sequential import MIN_PAIRS
from .sound import is_count, is_number, is_time

EXPERIMENT = "experiment.json"
RESULTS = "results.json"
_KEPT_DAYS = 14
_OURS = {EXPERIMENT, RESULTS, "segments", "recipes", "why", "sameness", "calibration.json", "report.html", ".lock"}
"""What a folder may hold in which a comparison begins: what one that was killed at its beginning has left."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which segment of a comparison it is."""

    phase: Literal["pilot", "calibration", "pair"]
    round: int
    arm: str

    @property
    def name(self) -> str:
        """Of its folder and its file."""
        return f"{self.phase}-{self.round:03d}-{self.arm}"


def default_name(recipe_name: str) -> Path:
    """`comparisons/<name>-<date>-<time>-<4 hex digits>`."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("comparisons") / f"{recipe_name}-{now}-{secrets.token_hex(2)}"


@dataclass(kw_only=True)
class Store:
    """What is known of a comparison, in its folder."""

    path: Path
    measured: dict[Place, Measured] = field(default_factory=dict[Place, Measured])
    """All finished segments, failed ones included."""
    held: int | None = None
    """Lock of the folder."""

    def close(self) -> None:
        """Let go of the folder."""
        if self.held is not None:
            os.close(self.held)
            self.held = None

    @staticmethod
    def begin(path: Path, arms: Sequence[Arm], identity: Mapping[str, Any], *, command: Sequence[str]) -> "Store":
        """A new folder. Raises: UsageError if it cannot be made, or holds a comparison or anything else."""
        store = Store(path=path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if others := sorted({each.name for each in path.iterdir()} - _OURS):
                raise UsageError(f"--out {path}: holds other things ({others[0]}); choose a new folder")
            store.held = run_folder.lock(path)  # before anything is written that another comparison could be reading
            if (path / EXPERIMENT).exists():
                raise UsageError(
                    f"--out {path}: holds a comparison already; add --resume to continue it, or choose another"
                )
            for name in ("segments", "recipes"):
                (path / name).mkdir(exist_ok=True)
            for arm in arms:
                (path / "recipes" / f"{arm.name}.toml").write_text(to_toml(arm.recipe))
            changes = {arm.name: list(arm.changes) for arm in arms}
            environment = run_folder.environment(arms[0].recipe, command)
            write_json(path / EXPERIMENT, {**identity, "changes": changes, "environment": environment})
        except (OSError, ValueError) as error:  # an embedded null is a ValueError
            store.close()
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"--out {path}: cannot be written ({why}); choose another folder") from error
        except UsageError:
            store.close()
            raise
        return store

    @staticmethod
    def resume(path: Path, identity: Mapping[str, Any], places: Sequence[Place]) -> "Store":
        """A folder that holds a part of this comparison. Raises: UsageError if it holds none, or another one."""
        begun = read_json(path / EXPERIMENT)
        if begun is None:
            raise UsageError(f"--resume: {path} holds no comparison; give the folder of one with --out")
        try:
            other = differences(begun, identity)
        except (LookupError, TypeError, AttributeError) as error:
            raise UsageError(f"--resume: {path / EXPERIMENT} is damaged; begin a new comparison") from error
        if other:
            raise UsageError(f"--resume: {path} holds another comparison ({'; '.join(other)}); begin a new one")
        try:
            store = Store(path=path, held=run_folder.lock(path))
        except OSError as error:
            raise UsageError(f"--resume: {path} cannot be written ({error.strerror}); make it writable") from error
        for place in places:
            told = read_json(store.file_of(place))
            with contextlib.suppress(LookupError, TypeError, ValueError):  # a damaged segment is measured again
                if told is not None:
                    store.measured[place] = Measured.from_json(told)
        return store

    def file_of(self, place: Place) -> Path:
        """Where the result of a segment is kept."""
        return self.path / "segments" / f"{place.name}.json"

    def folder_of(self, place: Place) -> Path:
        """Where a segment runs."""
        return self.path / "segments" / place.name

    def get(self, place: Place, measure: Callable[[Path], Measured]) -> Measured:
        """The result of a segment: the one on disk, or measured now."""
        if place not in self.measured:
            found = measure(self.folder_of(place))
            write_json(self.file_of(place), found.to_json())
            self.measured[place] = found
        return self.measured[place]

    @property
    def spent_s(self) -> float:
        """Time of all segments so far."""
        return sum(each.seconds for each in self.measured.values())

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Leave `results.json`."""
        write_json(self.path / RESULTS, results)

    def read_results(self) -> dict[str, Any] | None:
        """What `write_results` has left, if it has; it is made again if it is damaged."""
        told = read_json(self.path / RESULTS) or {}
        budget_s = told.get("budget_s", "")
        return told if budget_s is None or is_number(budget_s, above=0) else None


@dataclass(frozen=True, kw_only=True)
class KeptCalibration:
    """A calibration of a recipe on a machine, as it is kept for later comparisons."""

    calibration: Calibration
    window: int
    """Steps that its segments measured."""
    segment_s: float
    """How long one of its segments took, the start included."""
    measured_on: str
    """Day, as 2026-11-21."""

    def write(self, path: Path) -> None:
        """Keep it. Raises: OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        estimate = vars(self.calibration.estimate) if self.calibration.estimate else None
        write_json(path, {**vars(self), "calibration": {**vars(self.calibration), "estimate": estimate}})

    @staticmethod
    def read(path: Path, *, today: datetime.date | None = None) -> "KeptCalibration | None":
        """The one that is kept there; None if there is none, or it is too old to say what the machine is like now."""
        told = read_json(path)
        try:
            return None if told is None else KeptCalibration._of(told, today)
        except (LookupError, TypeError, ValueError, AttributeError):  # damaged: it is measured anew
            return None

    @staticmethod
    def _of(told: Mapping[str, Any], today: datetime.date | None) -> "KeptCalibration | None":
        if today is not None:
            age = today - datetime.date.fromisoformat(told["measured_on"])
            if age > datetime.timedelta(days=_KEPT_DAYS):
                return None
        calibration: dict[str, Any] = dict(told["calibration"])
        if calibration["estimate"]:
            estimate = dict(calibration["estimate"])
            estimate["bootstrap"] = tuple(estimate["bootstrap"]) if estimate["bootstrap"] else None
            calibration["estimate"] = Estimate(**estimate)
        values: dict[str, Any] = dict(told)
        values["calibration"] = Calibration(**calibration)
        found = KeptCalibration(**values)
        return found if found.is_sound else None

    @property
    def is_sound(self) -> bool:
        """Whether it can have been measured like that."""
        own, estimate = self.calibration, self.calibration.estimate
        return (
            is_number(own.pair_sd, above=0)
            and (own.largest is None or is_time(own.largest))
            and is_count(own.num_pairs, MIN_PAIRS)
            and isinstance(own.source, str)  # pyright: ignore[reportUnnecessaryIsInstance]
            and is_count(self.window, 1)
            and is_time(self.segment_s)
            and bool(datetime.date.fromisoformat(self.measured_on))
            and (
                estimate is None
                or (
                    all(is_number(each, above=0) for each in (estimate.ratio, estimate.low, estimate.high))
                    and is_time(estimate.p_value)
                    and is_count(estimate.num_pairs, 1)
                    and (estimate.bootstrap is None or all(map(is_number, estimate.bootstrap)))
                )
            )
        )


def all_places(names: Sequence[str], declared: Declared) -> list[Place]:
    """Every segment that a comparison can have."""
    found = [Place(phase="pilot", round=0, arm=name) for name in names]
    calibration = range(declared.calibration_pairs)
    found += [Place(phase="calibration", round=i, arm=name) for i in calibration for name in (BASELINE, AGAIN)]
    pairs = range(declared.protocol.max_pairs)
    return found + [Place(phase="pair", round=i, arm=name) for i in pairs for name in names]


def token_times(measured: Mapping[Place, Measured], *, num_rounds: int) -> dict[Slot, float]:
    """Median seconds of a token in each segment of the first pairs.

    Of a token, which is the same as of a step unless an arm was declared to take more tokens in one.
    """
    return {
        Slot(round=place.round, arm=place.arm): found.segment.median_s / found.times.tokens_per_step
        for place, found in measured.items()
        if place.phase == "pair" and place.round < num_rounds and found.segment and found.times
    }


def calibration_file(key: str) -> Path:
    """Where the calibration of a recipe on this machine is kept."""
    return cache_folder() / "calibrations" / f"{key}.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of this folder holds, or None if there is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return cast(dict[str, Any], told) if isinstance(told, dict) else None


def write_json(path: Path, told: Mapping[str, Any]) -> None:
    """Write a file of this folder, whole or not at all."""
    text = json.dumps(told, indent=1, allow_nan=True)
    publish(path, lambda partial: partial.write_text(text + "\n"))
