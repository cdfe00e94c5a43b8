"""What a comparison rests on, as the page draws it: pairs over time, every segment, losses, parts of a step, failures.

A speed is the time of the baseline over that of the arm: above 1 the arm is faster.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ..arms import AGAIN, BASELINE
from ..design import log_differences
from ..judge import interval_of
from ..results import ArmResult
from ..segment import Measured
from ..store import token_times
from ..text import doubt, is_different
from .load import Compared

_MOST_POINTS = 600
_ROUNDING = 1e-12
Row = dict[str, Any]


def pairs(found: Compared) -> list[Row]:
    """Of each arm the speed in each pair, and what all pairs up to it say: the estimate, its interval, the floor."""
    times = token_times(found.segments, num_rounds=found.protocol.max_pairs)
    rows: list[Row] = []
    for arm in found.arms[1:]:
        rounds = sorted({s.round for s in times if s.arm == arm.name} & {s.round for s in times if s.arm == BASELINE})
        differences = log_differences(times, baseline=BASELINE, candidate=arm.name)
        running: list[Row] = []
        for count in range(2, len(differences) + 1):
            now = interval_of(differences[:count], found.protocol, found.calibration)
            interval = {"speed": 1 / now.ratio, "low": 1 / now.high, "high": 1 / now.low, "floor": now.floor}
            running.append({"round": rounds[count - 1] + 1} | interval)
        points = [[index + 1, math.exp(-each)] for index, each in zip(rounds, differences, strict=True)]
        used = arm.verdict.num_pairs if arm.verdict else 0
        rows.append(
            {
                "arm": arm.name,
                "points": points,
                "running": running,
                "decided": rounds[used - 1] + 1 if 0 < used <= len(rounds) else None,
                "verdict": str(arm.verdict.kind) if arm.verdict else None,
                "different": is_different(arm),
                "claimed": arm.may_claim,
            }
        )
    return rows


def segments(found: Compared) -> list[Row]:
    """Every measured segment in order of time, beside the median of its arm: what the machine did meanwhile."""
    begun = min((each.times.began_at for each in found.segments.values() if each.times), default=0.0)
    usual: dict[str, float] = {}
    counted = [(place, each) for place, each in found.segments.items() if place.phase != "pilot" and each.segment]
    for name in {_arm(place.arm) for place, _ in counted}:
        own = [each.segment.median_s for place, each in counted if _arm(place.arm) == name and each.segment]
        usual[name] = median(own)
    rows = [
        {
            "arm": _arm(place.arm),
            "phase": place.phase,
            "round": place.round + 1,
            "at_s": each.times.began_at - begun,
            "step_ms": 1000 * each.segment.median_s,
            "beside_usual": each.segment.median_s / usual[_arm(place.arm)] - 1,
            "steady": each.segment.steady,
        }
        for place, each in counted
        if each.segment and each.times
    ]
    return sorted(rows, key=lambda row: row["at_s"])


def losses(found: Compared) -> Row | None:
    """The loss of each arm by step, mean over its segments, which all see the same data from the same weights."""
    by_arm: dict[str, list[Measured]] = {}
    for place, each in found.segments.items():
        if each.times and place.phase == "pair":
            by_arm.setdefault(place.arm, []).append(each)
    tokens = {each.times.tokens_per_step for own in by_arm.values() for each in own if each.times}
    if BASELINE not in by_arm:
        return None
    by_token = len(tokens) > 1  # declared so: then steps of two arms are not the same
    curves: list[Row] = []
    for name in (arm.name for arm in found.arms if arm.name in by_arm):
        runs = [each.times for each in by_arm[name] if each.times]
        values = [fmean(step) for step in zip(*(times.losses for times in runs), strict=False)]
        scale = runs[0].tokens_per_step if by_token else 1
        kept = _thinned(len(values))
        curves.append({"arm": name, "x": [(i + 1) * scale for i in kept], "loss": [values[i] for i in kept]})
    return {"x": "tokens" if by_token else "step", "curves": curves, "beside": [] if by_token else _beside(curves)}


def _beside(curves: Sequence[Row]) -> list[Row]:
    """By how much each arm's loss differs from the baseline's, relative."""
    base = dict(zip(curves[0]["x"], curves[0]["loss"], strict=True))
    rows: list[Row] = []
    for curve in curves[1:]:
        pairs = zip(curve["x"], curve["loss"], strict=True)
        both = [(x, (loss - base[x]) / abs(base[x])) for x, loss in pairs if base.get(x)]
        shares = [share if abs(share) > _ROUNDING else 0.0 for _, share in both]  # of means of equal losses
        rows.append({"arm": curve["arm"], "x": [x for x, _ in both], "share": shares})
    return rows


def _thinned(length: int) -> list[int]:
    """Places that are kept of a curve: all, or evenly so many, the last always."""
    stride = max(1, math.ceil(length / _MOST_POINTS))
    return sorted({*range(0, length, stride), *([length - 1] if length else [])})


def breakdown(found: Compared, *, only: str | None = None, label: str | None = None) -> list[Row]:
    """What a step of each arm is made of, in ms under the profiler, the baseline first; only: leave out other arms."""
    baseline, rows = found.arms[0], list[Row]()
    for arm in found.arms[1:]:
        why = arm.why
        if why is None or (only is not None and arm.name != only):
            continue
        if not rows:
            parts = {group.name: group.before_ms for group in why.groups}
            rows.append(_made_of(BASELINE, why.before_ms, why.kernels_before, parts, found))
        parts = {group.name: group.after_ms for group in why.groups}
        told = _made_of(arm.name, why.after_ms, why.kernels_after, parts, found)
        rows.append(told | {"label": label or arm.name, "sentence": why.sentence, "doubt": doubt(baseline, arm)})
    return rows


def _made_of(name: str, step_ms: float, kernels: float, parts: Mapping[str, float], found: Compared) -> Row:
    report = found.path / "why" / name / "run" / "report.html"
    shown = sorted(((key, float(value)) for key, value in parts.items() if value > 0), key=lambda part: -part[1])
    return {
        "arm": name,
        "label": name,
        "step_ms": float(step_ms),
        "kernels": float(kernels),
        "parts": [list(part) for part in shown],
        "report": ["why", name, "run", "report.html"] if report.is_file() else None,
    }


def failures(found: Compared) -> list[Row]:
    """Every segment that failed, and every arm that was given up."""
    rows = [
        {
            "arm": place.arm,
            "what": f"{place.phase} {place.round + 1}",
            "kind": each.failure,
            "reason": each.reason,
            "output": f"segments/{place.name}/output.txt",
        }
        for place, each in found.segments.items()
        if each.failure
    ]
    return rows + [
        {"arm": arm.name, "what": "the arm", "kind": "given up", "reason": arm.failure, "output": None}
        for arm in found.arms
        if arm.failure
    ]


def sameness(arms: Sequence[ArmResult]) -> list[Row]:
    """What the guard did for each arm, and what it found."""
    rows: list[Row] = []
    for arm in arms[1:]:
        told: Mapping[str, Any] = arm.parity.json() if arm.parity else {}
        rows.append(
            {
                "arm": arm.name,
                "tier": arm.parity.tier if arm.parity else None,
                "passed": arm.parity is not None and arm.parity.passed,
                "checked": arm.parity is not None and arm.parity.checked,
                "sentence": arm.parity.sentence if arm.parity else "it was not looked at",
                "claims": list(dict(told.get("claims") or {}).items()),
                "checks": [_check(each) for each in told.get("checks") or ()],
                "biases": [_bias(each) for each in told.get("biases") or ()],
            }
        )
    return rows


def _check(told: Mapping[str, Any]) -> Row:
    found, allowed = float(told["found"]), float(told["allowed"])
    what = f"{told['what']} ({told['where']})" if told.get("where") else str(told["what"])
    return {"what": what, "found": found, "allowed": allowed, "passed": found <= allowed}


def _bias(told: Mapping[str, Any]) -> Row:
    numbers = {key: float(told[key]) for key in ("mean", "reach", "margin", "negligible")}
    return numbers | {"what": str(told["what"]), "num_seeds": told["num_seeds"]}


def _arm(name: str) -> str:
    """Whose recipe a segment ran: the second baseline of a calibration is the first."""
    return BASELINE if name == AGAIN else name
