"""What a comparison has found, arm by arm: what the table prints, and what `results.json` holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from typing import Protocol as Interface

from .arms import BASELINE, Arm
from .experiment import Outcome
from .judge import Verdict
from .segment import Measured
from .store import Place, Store
from .why import Why

_BILLION = 1e9


class Sameness(Interface):
    """What the parity guard has found out about an arm."""

    @property
    def tier(self) -> str:
        """What the arm was held against: bitwise, float32 proxy, bias."""
        ...

    @property
    def passed(self) -> bool:
        """Whether it is the same training."""
        ...

    @property
    def sentence(self) -> str:
        """The finding in words."""
        ...

    @property
    def checked(self) -> bool:
        """False if nothing is known, because a run came to no end."""
        ...

    def json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm. Times are medians over its segments, None if none of them was measured."""

    name: str
    changes: tuple[str, ...]
    num_segments: int
    """Measured ones, of pairs."""
    num_failed: int
    num_unsteady: int
    """Segments whose warm-up ran into its limit."""
    step_s: float | None = None
    p95_s: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    memory_gib: float | None = None
    """The largest of all segments."""
    startup_s: float | None = None
    """From the start of the process to the first step."""
    compile_s: float | None = None
    """What the first steps took beyond median steps, caches being warm."""
    first_compile_s: float | None = None
    """The same in the very first process of the arm."""
    cost_per_billion_tokens: float | None = None
    verdict: Verdict | None = None
    failure: str | None = None
    """Why it was given up."""
    parity: Sameness | None = None
    why: Why | None = None

    @property
    def may_claim(self) -> bool:
        """Whether a multiplier may be printed: only for an arm that passed as the same training."""
        return self.parity is not None and self.parity.passed


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole comparison."""

    recipe: str
    folder: Path
    arms: tuple[ArmResult, ...]
    """The baseline first."""
    outcome: Outcome
    spent_s: float
    """Time of all segments."""
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """As `results.json` holds it; pairs and step times lie in `segments/`."""
        outcome = self.outcome
        return {
            "kind": "comparison",
            "recipe": self.recipe,
            "folder": str(self.folder),
            "machine": dict(self.machine),
            "spent_s": self.spent_s,
            "ended": outcome.ended,
            "num_pairs": outcome.num_rounds,
            "minimum_detectable_effect": None if math.isinf(outcome.mde) else outcome.mde,
            "steps": asdict(outcome.steps),
            "calibration": asdict(outcome.calibration) | {"suspect": outcome.calibration.suspect},
            "arms": [_arm_json(arm) for arm in self.arms],
        }


def _arm_json(arm: ArmResult) -> dict[str, Any]:
    told = {key: value for key, value in vars(arm).items() if key not in ("verdict", "parity", "why")}
    verdict = None
    if arm.verdict is not None:
        verdict = asdict(arm.verdict) | {"kind": str(arm.verdict.kind), "sentence": arm.verdict.sentence}
    return {
        **told,
        "may_claim": arm.may_claim,
        "verdict": verdict,
        "parity": arm.parity.json() if arm.parity else None,
        "why": asdict(arm.why) if arm.why else None,
    }


def collect(
    arms: Sequence[Arm],
    outcome: Outcome,
    store: Store,
    *,
    parity: Mapping[str, Sameness] | None = None,
    reasons: Mapping[str, Why] | None = None,
    price_per_device_hour: float | None = None,
    machine: Mapping[str, Any] | None = None,
) -> Results:
    """Everything that is known of each arm. parity, reasons: by arm, as far as they were looked for."""
    found = [
        _arm_result(
            arm,
            outcome,
            [each for place, each in store.measured.items() if place.phase == "pair" and place.arm == arm.name],
            store.measured.get(Place(phase="pilot", round=0, arm=arm.name)),
            parity=(parity or {}).get(arm.name),
            why=(reasons or {}).get(arm.name),
            price_per_device_hour=price_per_device_hour,
        )
        for arm in arms
    ]
    return Results(
        recipe=arms[0].recipe.name,
        folder=store.path,
        arms=tuple(found),
        outcome=outcome,
        spent_s=store.spent_s,
        machine=machine or {},
    )


def _arm_result(
    arm: Arm,
    outcome: Outcome,
    segments: Sequence[Measured],
    pilot: Measured | None,
    *,
    parity: Sameness | None,
    why: Why | None,
    price_per_device_hour: float | None,
) -> ArmResult:
    done = [(each.segment, each.times, each) for each in segments if each.segment and each.times]
    result: dict[str, Any] = {}
    if done:
        step_s = median(segment.median_s for segment, _, _ in done)
        times = done[0][1]
        rate = times.tokens_per_step / step_s
        result = {
            "step_s": step_s,
            "p95_s": median(segment.p95_s for segment, _, _ in done),
            "tokens_per_s": rate,
            "mfu": times.mfu(step_s),
            "memory_gib": max(each.memory_gib for _, each, _ in done),
            "startup_s": median(each.startup_s or 0.0 for _, _, each in done),
            "compile_s": median(each.compile_s or 0.0 for _, _, each in done),
        }
        if price_per_device_hour is not None:
            result["cost_per_billion_tokens"] = price_per_device_hour * times.num_ranks / 3600 * _BILLION / rate
    return ArmResult(
        name=arm.name,
        changes=arm.changes,
        num_segments=len(done),
        num_failed=len(segments) - len(done) + bool(pilot and pilot.failure),
        num_unsteady=sum(1 for segment, _, _ in done if not segment.steady),
        first_compile_s=pilot.compile_s if pilot else None,
        verdict=None if arm.name == BASELINE else outcome.verdicts.get(arm.name),
        failure=outcome.failed.get(arm.name),
        parity=parity,
        why=why,
        **result,
    )
