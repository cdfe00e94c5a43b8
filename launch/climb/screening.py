"""Single segments: the first look at a change, which a comparison then takes for its pilot."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..compare.arms import Arm
from ..compare.bench import PILOT, patience_s
from ..compare.declared import Declared
from ..compare.estimate import MIN_WARMUP_STEPS
from ..compare.experiment import Measure
from ..compare.segment import Measured, Steps
from ..compare.sound import seconds_in
from ..compare.store import read_json, write_json
from ..compare.workload import measured_part
from ..recipe import recipe_hash
from ..schema import Recipe

_LONGEST_WARMUP = 4 * MIN_WARMUP_STEPS
_MOST_STEPS = 2000
_WARM, _BESIDE = "_warm", "_beside"
"""Further segments for one change: with filled caches, and of the stack. They sort behind the first."""


def key_of(recipe: Recipe) -> str:
    """What a segment is known by: the recipe as far as it is measured."""
    return recipe_hash(measured_part(recipe))


@dataclass(kw_only=True)
class Screens:
    """All single segments, in a folder; each recipe is run once."""

    path: Path
    declared: Declared
    measure: Measure
    known: dict[str, Measured] = field(default_factory=dict[str, Measured])
    """By `key_of`."""

    def load(self) -> None:
        """Take up what an interrupted climb has left."""
        for file in sorted(self.path.glob("[!.]*.json")):
            if file.stem.endswith(_BESIDE):
                continue
            if found := _read(file):
                self.known[found[0]] = found[1]

    def get(self, name: str, arm: Arm, *, stack: Measured | None = None) -> Measured:
        """The segment of a recipe, measured now unless it is known. stack: of what the recipe is a change of."""
        key = key_of(arm.recipe)
        if key not in self.known:
            self.known[key] = self._run(name, arm, stack)
        return self.known[key]

    def look_again(self, name: str, arm: Arm, *, stack: Measured) -> Measured:
        """A second segment of a recipe whose first has compiled; it is the one that is known from then on.

        For a while after a compilation its helpers still run, and steps take longer than they ever will again.
        """
        found = self.known[key_of(arm.recipe)] = self._run(f"{name}{_WARM}", arm, stack)
        return found

    def beside(self, name: str, stack_arm: Arm, *, stack: Measured) -> Measured:
        """Another segment of the stack, beside that of the change of this name."""
        return self._run(f"{name}{_BESIDE}", stack_arm, stack)

    def _run(self, name: str, arm: Arm, stack: Measured | None) -> Measured:
        """The segment of this name: the one on disk, or measured now."""
        file = self.path / f"{name}.json"
        if kept := _read(file):
            return kept[1]
        timeout_s = patience_s(stack.seconds) if stack else None
        found = self.measure(arm, self.path / name, self._steps(stack), timeout_s=timeout_s)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(file, {"recipe": key_of(arm.recipe), "measured": found.to_json()})
        return found

    def _steps(self, stack: Measured | None) -> Steps:
        """As long as the comparison's segments will be, as far as that is known."""
        window = self.declared.window_steps
        if stack and stack.segment:
            window = max(window, math.ceil(self.declared.window_s / stack.segment.median_s))
        return Steps(window=min(window, _MOST_STEPS), max_warmup=_LONGEST_WARMUP)

    def cost_s(self, name: str) -> float:
        """What the segment of this name took; nothing if its recipe was known."""
        files = [self.path / f"{name}{suffix}.json" for suffix in ("", _WARM, _BESIDE)]
        return sum(seconds_in((read_json(file) or {}).get("measured")) for file in files)

    @property
    def spent_s(self) -> float:
        """Time of all of them."""
        files = self.path.glob("[!.]*.json")
        return sum(self.cost_s(file.stem) for file in files if not file.stem.endswith((_WARM, _BESIDE)))

    def as_pilots(self) -> Measure:
        """Measures as this does, but answers for a pilot with what is known already."""

        def measure(arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
            known = self.known.get(key_of(arm.recipe))
            if known is not None and folder.name.startswith(PILOT):
                return replace(known, arm=arm.name)
            return self.measure(arm, folder, steps, timeout_s=timeout_s)

        return measure


def spent_beyond_pilots(segments: Path) -> float:
    """Time of the segments of a comparison but for its pilots, which are screens."""
    files = (file for file in segments.glob("[!.]*.json") if not file.name.startswith(PILOT))
    return sum(seconds_in(read_json(file)) for file in files)


def _read(file: Path) -> tuple[str, Measured] | None:
    """The recipe's key and its segment; None if there is none, or it is damaged, so that it is measured again."""
    try:
        told = read_json(file) or {}
        return str(told["recipe"]), Measured.from_json(told["measured"])
    except (LookupError, TypeError, ValueError):
        return None
