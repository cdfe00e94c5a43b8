"""The loop of the climber: look, propose, try one, keep or revert, until nothing is worth its cost."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..compare.arms import Arm, ArmSpec
from ..compare.bench import CANDIDATE, Bench
from ..compare.budget import too_short_to_climb
from ..compare.equal_tokens import MICROBATCH, key_of, resized
from ..compare.experiment import ExperimentError
from ..compare.ladder import cumulated, whole_stack
from ..compare.rungs import DIFFERENT, FAILED, Point, Row
from ..compare.segment import Measured
from ..compare.store import read_json, write_json
from ..plan import Plan, plan_here
from ..recipe import diff, read, to_toml
from .choosing import Situation, proposals
from .first_look import FirstLooks, Look
from .notebook import SCREENED, Notebook, Step
from .profile import Profile
from .proposal import Proposal
from .screening import Screens, spent_beyond_pilots
from .screening import key_of as recipe_key

OUT_OF_MEMORY = "out of memory"
_BASE = "00-base"

TakeProfile = Callable[[Arm, Path], Profile]


@dataclass(frozen=True, kw_only=True)
class Climb:
    """A climb that has ended."""

    base: Point | None
    steps: tuple[Step, ...]
    final: Row | None
    """The whole of it against the base, None if nothing was kept."""
    recipe: Path
    folder: Path
    results: dict[str, Any]


@dataclass(kw_only=True)
class Climber:
    """One climb, from its folder."""

    bench: Bench
    screens: Screens
    notebook: Notebook
    take_profile: TakeProfile
    clock: Callable[[], float]
    stack: Path = field(default_factory=Path)
    """The recipe as it stands."""
    profile: Profile = field(default_factory=Profile)
    """Of the stack."""
    looks: FirstLooks = field(init=False)
    only: tuple[str, ...] = ()
    """Keys to which it is confined; none for all."""
    fitted: tuple[str, ...] = ()
    """What had to be changed for the recipe to run at all."""
    plans: dict[tuple[Path, tuple[str, ...]], Plan] = field(default_factory=dict[tuple[Path, tuple[str, ...]], Plan])
    """Of files that stay as they are, each with changes."""
    too_large: int | None = None
    """A size of microbatches that ran out of memory."""

    def __post_init__(self) -> None:
        self.looks = FirstLooks(screens=self.screens, margin=self.bench.asked.declared.protocol.margin)

    def run(self) -> Climb:
        """Climb until nothing is worth its cost, or the budget is spent."""
        self._begin()
        ended = ""
        while not ended:
            self._look()
            chosen, ended = self._choose()
            if chosen is not None:
                self._try(chosen)
            self.notebook.write(self._told(ended=ended))
        final = self._whole()
        recipe = self.bench.path / "recipe.toml"
        recipe.write_text(to_toml(self.plan_of(self.stack).recipe))
        told = {**self._told(ended=ended), "final": final.to_json() if final else None, "stack": recipe.name}
        steps = [step.to_json() for step in self.notebook.steps]
        places = sorted(self.bench.path.glob("final*/segments"))
        final_s = sum(map(spent_beyond_pilots, places))
        measured_s = (
            self.screens.spent_s + final_s + sum(map(spent_beyond_pilots, self.bench.path.glob("tries/*/segments")))
        )
        told |= {"steps": steps, "fitted": list(self.fitted), "measured_s": measured_s}
        results = self.bench.write_results("climb", told, spent_s=self.notebook.spent_s + final_s, ended=ended)
        self.notebook.write(results)
        return Climb(
            base=self._base_point(),
            steps=tuple(self.notebook.steps),
            final=final,
            recipe=recipe,
            folder=self.bench.path,
            results=results,
        )

    def plan_of(self, recipe: Path, changes: Sequence[str] = ()) -> Plan:
        """A plan on this machine. Raises: UsageError."""
        place = (recipe, tuple(changes))
        if place not in self.plans:
            make_plan = self.bench.tools.make_plan or partial(plan_here, num_ranks=self.bench.asked.declared.ranks)
            self.plans[place] = make_plan(read(str(recipe), changes))
        return self.plans[place]

    def _arm(self, recipe: Path, changes: Sequence[str] = ()) -> Arm:
        return Arm(name=CANDIDATE, plan=self.plan_of(recipe, changes), changes=tuple(changes))

    def _place(self, step: Step) -> Path:
        return self.bench.path / "stacks" / f"{step.index:02d}-{step.name}.toml"

    def _base_point(self) -> Point | None:
        recipe = self.plan_of(self._base_path).recipe
        found = self.screens.known.get(recipe_key(recipe))
        return Point.of_segment(found, recipe) if found else None

    def _told(self, *, ended: str) -> dict[str, Any]:
        base = self._base_point()
        name = self.plan_of(self.stack).recipe.name
        return {"recipe": name, "base": vars(base) if base else None, "ended": ended}

    def _begin(self) -> None:
        """The first segment. A recipe that does not fit gets smaller microbatches. Raises: ExperimentError."""
        bench = self.bench
        self.screens.load()
        self.notebook.load()
        bench.calibration = next(iter(sorted(bench.path.glob("tries/*/calibration.json"))), None)
        self.stack = bench.write_stack(_BASE, bench.recipe(bench.asked.recipe, bench.asked.overrides))
        began_s, resumed = self.clock(), bool(self.notebook.steps)
        while (found := self._segment_of_stack()).failure:
            plan = self.plan_of(self.stack)
            size = plan.recipe.batch.microbatch_size
            smaller = resized(plan, size // 2) if size > 1 else None
            if found.failure != OUT_OF_MEMORY or smaller is None:
                raise ExperimentError(f"the recipe fails, {found.failure}: {found.reason}")
            bench.tools.told.say(f"{found.failure} with microbatches of {size}; {', '.join(smaller)}")
            self.too_large, self.fitted = size, smaller
            self.stack = bench.write_stack(_BASE, bench.recipe(self.stack, smaller))
            self.plans.clear()
        self.looks.know(found.segment.median_s if found.segment else 0.0)
        if not resumed:
            self.notebook.preparation_s += max(self.screens.spent_s, self.clock() - began_s)
        for step in self.notebook.steps:
            self.stack = self._place(step) if step.kept else self.stack
            self._remember_size(step)
            self.looks.remember(step.point.step_s if step.kept and step.point else step.stack_step_s)

    def _segment_of_stack(self) -> Measured:
        return self.screens.get(f"stack-{len(self.notebook.kept):02d}-{self.too_large or 0}", self._arm(self.stack))

    def _look(self) -> None:
        """Profile the stack, unless that was done."""
        name = f"{len(self.notebook.kept):02d}"
        folder, file = self.bench.path / "profiles" / name, self.bench.path / "profiles" / f"{name}.json"
        with contextlib.suppress(LookupError, TypeError, ValueError):  # a damaged profile is taken again
            if told := read_json(file):
                self.profile = Profile.from_json(told)
                return
        began_s = self.clock()
        self.profile = self.take_profile(self._arm(self.stack), folder)
        self.notebook.preparation_s += self.clock() - began_s
        file.parent.mkdir(exist_ok=True)
        write_json(file, self.profile.to_json())
        self.bench.tools.told.say(f"profile {name}: {self.profile.note or self.profile.bottleneck}")

    def _choose(self) -> tuple[Proposal | None, str]:
        """The change to be tried next; or none, and why the climb ends. Raises: UsageError if none could be tried."""
        asked = self.bench.asked
        stack = self._segment_of_stack()
        situation = Situation(
            plan=self.plan_of(self.stack),
            measured=stack,
            step_s=self.looks.reference_s,
            profile=self.profile,
            steps=self.notebook.steps,
            visited=self._visited,
            too_large=self.too_large,
            calibrated=self.bench.calibration is not None,
            asked=asked,
            only=self.only,
        )
        found = proposals(situation, lambda changes: self.plan_of(self.stack, changes))
        left_s = (asked.budget_s or 0.0) - self.notebook.spent_s - self._reserve_s
        beyond_s: list[float] = []
        for each in found:
            if each.bound < asked.declared.protocol.margin:
                continue
            if self.bench.refusals(self.stack, ArmSpec(name=CANDIDATE, changes=each.set)):
                continue
            if each.estimated_s <= left_s:
                return each, ""
            beyond_s.append(each.estimated_s)
        if beyond_s:
            whole_s, least_s = asked.budget_s or 0.0, min(beyond_s)
            if not self.notebook.steps:
                raise too_short_to_climb(whole_s, least_s, whole_s - left_s + least_s)
            left = f"{max(0.0, left_s):.0f} s are left beside the final comparison"
            return None, f"the budget of {whole_s:.0f} s is spent: {left}, and the next change takes {least_s:.0f} s"
        return None, "no further proposal is worth its cost"

    @property
    def _visited(self) -> set[str]:
        """Recipes that stood already."""
        places = [self._base_path, *(self._place(step) for step in self.notebook.kept)]
        return {recipe_key(self.plan_of(path).recipe) for path in places}

    @property
    def _reserve_s(self) -> float:
        """For the final comparison: some pairs of the base and of what stands."""
        stacks = [
            self.screens.known.get(recipe_key(self.plan_of(path).recipe)) for path in (self._base_path, self.stack)
        ]
        return 4 * sum(each.seconds for each in stacks if each)

    @property
    def _base_path(self) -> Path:
        return self.bench.path / "stacks" / f"{_BASE}.toml"

    def _try(self, proposal: Proposal) -> None:
        """One change: a first look, the comparison, the guard; kept or reverted."""
        notebook, rung = self.notebook, proposal.rung
        index, began_s = len(notebook.steps) + 1, self.clock()
        self.bench.tools.told.say(f"try {index}, {rung.name}: {proposal.hypothesis}; {', '.join(rung.set)}")
        stack, name = self._segment_of_stack(), f"{index:02d}-{rung.name}"
        arm, place = self._arm(self.stack, rung.set), f"tries/{name}"
        look = self.looks.look(name, arm, stack_arm=self._arm(self.stack), stack=stack)
        row, stack_step_s = self._dropped_at_first_sight(index, proposal, look), self.looks.reference_s
        if row is None:
            left_s = (self.bench.asked.budget_s or 0.0) - notebook.spent_s + stack.seconds + look.found.seconds
            tried = self.bench.try_rung(index, rung, self.stack, place=place, left_s=left_s)
            row = cumulated(tried.row, notebook.steps)
            stack_step_s = tried.base.step_s if tried.base else stack_step_s
            self.looks.know(row.point.step_s if row.kept and row.point else stack_step_s)
        seconds = self.screens.cost_s(name) + spent_beyond_pilots(self.bench.path / place / "segments")
        known: dict[str, Any] = vars(row) | {"seconds": seconds}
        step = Step(
            **known,
            hypothesis=proposal.hypothesis,
            evidence=proposal.evidence,
            source=proposal.source,
            bound=proposal.bound,
            estimated_s=proposal.estimated_s,
            screening=look.ratio,
            seconds_with_all=max(seconds, self.clock() - began_s),
            share_before=self.profile.shares,
            stack_step_s=stack_step_s,
        )
        if step.kept:
            self.stack = self.bench.write_stack(f"{index:02d}-{step.name}", self.bench.recipe(self.stack, rung.set))
        notebook.steps.append(step)
        self._remember_size(step)
        self.bench.tools.told.say(f"try {index}, {rung.name}: {'kept' if step.kept else 'dropped'}; {step.reason}")

    def _dropped_at_first_sight(self, index: int, proposal: Proposal, look: Look) -> Row | None:
        """The row of a change that one segment is enough to drop."""
        recipe, found = self.plan_of(self.stack, proposal.set).recipe, look.found
        changes = tuple(diff(self.plan_of(self.stack).recipe, recipe))
        common: dict[str, Any] = {"index": index, "name": proposal.rung.name, "set": proposal.set, "changes": changes}
        if look.ratio is None:
            return Row(verdict=FAILED, reason=f"{found.failure}: {found.reason}", **common)
        if look.helps:
            return None
        reason = f"one segment took {look.ratio:.3f} times as long a step, so that no pairs were spent on it"
        return Row(verdict=SCREENED, reason=reason, point=Point.of_segment(found, recipe), **common)

    def _remember_size(self, step: Step) -> None:
        """A microbatch that ran out of memory is a ceiling for those to come."""
        sizes = [change.partition("=")[2] for change in step.set if key_of(change) == MICROBATCH]
        if sizes and step.verdict == FAILED and step.reason.startswith(OUT_OF_MEMORY):
            self.too_large = min(int(sizes[0]), self.too_large or int(sizes[0]))

    def _whole(self) -> Row | None:
        """The whole against the base. If the sum of what passed does not pass, the last change is taken back."""
        found: Row | None = None
        for back, step in enumerate(reversed(self.notebook.kept)):
            self.stack = self._place(step)
            self.bench.tools.told.say(f"the whole, up to {step.name}, against the base")
            place = f"final-{back + 1}" if back else "final"
            found = whole_stack(self.bench, self._base_path, self.stack, left_s=None, place=place).row
            if found.verdict != DIFFERENT:
                return found
            self.stack = self._base_path
        return found
