"""Where the time of a step goes, as the climber needs it: shares of kinds of time, and the analyzer's advice."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...strategies.wins import Part
from ..compare.arms import Arm
from ..compare.process import run_recipe
from ..compare.segment import measured_recipe
from ..compare.why import explain, traces_of
from ..errors import ExitCode
from ..profiler_config import ProfilerConfig

_ACTIVE_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One finding of the analyzer."""

    title: str
    evidence: tuple[str, ...]
    remedy: str
    share: float
    """Of a step, that it can win at most."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a profiled window says."""

    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of a step, by `Part`; empty if nothing is known."""
    advice: tuple[Advice, ...] = ()
    note: str | None = None
    """Why nothing is known."""

    def bound(self, parts: frozenset[Part]) -> float:
        """Of a step, that can be won at most by making these parts shorter; all of it where nothing is known."""
        if not self.shares:
            return 1.0
        return min(1.0, sum(share for part, share in self.shares.items() if part in parts))

    @property
    def bottleneck(self) -> str:
        """The largest share, in words."""
        if not self.shares:
            return "nothing is known of where the time goes"
        part = max(self.shares, key=lambda each: self.shares[each])
        return f"{part} takes {100 * self.shares[part]:.0f} % of a step"

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> "Profile":
        """The inverse of `to_json`."""
        advice = tuple(Advice(**each | {"evidence": tuple(each["evidence"])}) for each in told["advice"])
        return Profile(shares=told["shares"], advice=advice, note=told["note"])


def take(arm: Arm, folder: Path, *, skip: int, num_ranks: int | None = None, timeout_s: float | None = None) -> Profile:
    """Train the recipe with a profiled window after `skip` steps, its log lines included, and read the traces."""
    num_steps = skip + 2 + _ACTIVE_STEPS
    recipe = measured_recipe(arm.recipe, num_steps=num_steps, keep_log_every=True)
    recipe = replace(recipe, profiler=ProfilerConfig(skip_first=skip, warmup=1, active=_ACTIVE_STEPS))
    ended = run_recipe(recipe, folder, ("--stop-after", str(num_steps)), num_ranks=num_ranks, timeout_s=timeout_s)
    if ended.code != ExitCode.DONE:
        return Profile(note=f"the profiled run failed: {ended.reason or 'it said nothing'}")
    return read_traces(traces_of(folder))


def read_traces(folder: Path) -> Profile:
    """What the traces of a folder say."""
    from ...profiling.errors import TraceError
    from ...profiling.trace import analysis
    from ...profiling.trace.advice import advise, of_advice
    from ...profiling.trace.job import Reading

    try:
        groups = explain(folder, folder).groups  # of one run with itself: its kinds of time
        reading = Reading(cache=False, num_processes=1)
        found = analysis.analyse([folder], [*analysis.STANDARD, of_advice], reading=reading)
        findings = advise(found)
    except (TraceError, OSError) as error:
        return Profile(note=f"the traces say nothing: {error}")
    whole = sum(group.before_ms for group in groups)
    advice = tuple(
        Advice(title=each.title, evidence=each.evidence, remedy=each.remedy, share=each.share) for each in findings
    )
    shares = {group.name: group.before_ms / whole for group in groups} if whole else {}
    return Profile(shares=shares, advice=advice)
