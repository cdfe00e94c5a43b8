import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.compare.calibration import Calibration
from stepladder.launch.compare.experiment import Outcome
from stepladder.launch.compare.judge import judge
from stepladder.launch.compare.results import ArmResult, Results
from stepladder.launch.compare.segment import Steps
from stepladder.launch.compare.sequential import Protocol
from stepladder.launch.compare.text import speedup, table
from stepladder.launch.compare.why import Why

QUIET = Calibration(pair_sd=0.002, num_pairs=8, source="test")
VERDICT = judge({"fast": [-0.2, -0.201, -0.199, -0.2]}, Protocol(), QUIET)["fast"]
WHY = Why(sentence="Idle 9 -> 1 ms", before_ms=10, after_ms=8, kernels_before=1, kernels_after=1, groups=())


@dataclass(frozen=True)
class Parity:
    passed: bool
    checked: bool = True
    tier: str = "bitwise"
    sentence: str = "the same bits"

    def json(self) -> dict[str, Any]:
        return vars(self)


BASE = ArmResult(
    name="baseline", changes=(), num_segments=4, num_failed=0, num_unsteady=0, step_s=0.1, tokens_per_s=1e4
)
FAST = replace(BASE, name="fast", step_s=0.0819, tokens_per_s=12210.0, verdict=VERDICT)


def results(*arms: ArmResult, calibration: Calibration = QUIET) -> Results:
    outcome = Outcome(
        verdicts={},
        failed={},
        calibration=calibration,
        mde=0.01,
        steps=Steps(window=20, max_warmup=20),
        num_rounds=4,
        ended="every arm is decided",
    )
    return Results(recipe="tiny", folder=Path("comparisons/x"), arms=(BASE, *arms), outcome=outcome, spent_s=120.0)


def text(*arms: ArmResult, **more: Any) -> str:
    return "\n".join(table(results(*arms, **more)))


@pytest.mark.parametrize("parity", [None, Parity(passed=False), Parity(passed=False, checked=False)])
def test_no_multiplier_is_printed_without_the_tier_that_it_passed(parity: Parity | None) -> None:
    assert VERDICT.kind == "faster"
    said = text(replace(FAST, parity=parity))
    assert "1.22" not in said
    assert "x [" not in said
    expected = "not checked" if parity is None or not parity.checked else "not the same training"
    assert expected in said
    assert speedup(replace(FAST, parity=parity)) is None


def test_a_multiplier_stands_beside_its_interval_its_tier_and_its_verdict() -> None:
    said = text(replace(FAST, parity=Parity(passed=True), why=WHY))
    head, _, row, *_ = said.splitlines()
    assert head.split("  ")[0].strip() == "arm"
    assert "1.221x [1.21" in row
    assert "bitwise: passed" in row
    assert row.endswith("faster")
    assert "why: Idle 9 -> 1 ms" in said
    assert "81.90" in row
    assert "12,210" in row


def test_reasons_from_disturbed_steps_are_doubted() -> None:
    disturbed = replace(WHY, before_ms=100.0, after_ms=200.0)
    assert "do not trust it" not in text(replace(FAST, why=replace(WHY, before_ms=100.0, after_ms=85.0)))
    assert "its steps took 100.0 -> 200.0 ms, unlike the measured ones" in text(replace(FAST, why=disturbed))


def test_columns_that_nothing_is_known_of_are_left_out() -> None:
    assert "MFU" not in text(FAST)
    assert "cost" not in text(FAST)
    shown = text(replace(FAST, mfu=0.411, cost_per_billion_tokens=3.5))
    assert "41.1" in shown
    assert "3.50" in shown


def test_a_failed_arm_says_why() -> None:
    failed = ArmResult(
        name="big", changes=(), num_segments=0, num_failed=1, num_unsteady=0, failure="out of memory: tried 9 GiB"
    )
    said = text(failed)
    assert "failed: out of memory" in said
    assert "big: failed, out of memory: tried 9 GiB" in said


def test_what_a_reader_must_know_is_noted() -> None:
    said = text(replace(FAST, num_failed=2, num_unsteady=3))
    assert "note: 2 segments of fast failed" in said
    assert "note: 3 of 4 segments of fast had not settled after 20 steps" in said
    assert "4 pairs of 20 steps, every arm is decided; 2.0 minutes of segments" in said


def test_results_are_json_without_what_json_does_not_have() -> None:
    whole = results(replace(FAST, parity=Parity(passed=True), why=WHY))
    told = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert told["arms"][1]["verdict"]["kind"] == "faster"
    assert told["arms"][1]["parity"] == {
        "passed": True,
        "checked": True,
        "tier": "bitwise",
        "sentence": "the same bits",
    }
    assert told["arms"][1]["may_claim"]
    assert not told["arms"][0]["may_claim"]
