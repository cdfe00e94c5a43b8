"""The result of a comparison for a terminal. No multiplier is printed without the tier of sameness that it passed."""

import math
from collections.abc import Callable, Iterator, Sequence

from .judge import Kind, Verdict
from .results import ArmResult, Results

_NOT_CHECKED = "not checked"
_DIFFERENT = "not the same training"
_CREDIBLE = 1.5
"""Factor by which the ratio of profiled steps may differ from that of measured ones; profiling itself costs time."""

Cell = Callable[[ArmResult], str | None]


def table(results: Results) -> Iterator[str]:
    """Lines: the arms, the verdict on each in words, what made the difference, what was left out."""
    from ...profiling.trace.text import columns

    heads, rows = cells(results.arms)
    yield from columns(heads, [[each or "-" for each in row] for row in rows])
    yield ""
    for arm in results.arms[1:]:
        yield f"{arm.name}: {sentence(arm)}"
        if arm.why:
            yield f"  why: {arm.why.sentence} (under the profiler){doubt(results.arms[0], arm)}"
        if arm.parity:
            yield f"  sameness, {arm.parity.tier}: {arm.parity.sentence}"
    yield from _notes(results)


def cells(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str | None]]]:
    """Headings and rows of the table; columns of which nothing is known are left out."""
    kept = [(head, [cell(arm) for arm in arms]) for head, cell in _COLUMNS]
    kept = [(head, column) for head, column in kept if any(each is not None for each in column)]
    return [head for head, _ in kept], [[column[i] for _, column in kept] for i in range(len(arms))]


def sentence(arm: ArmResult) -> str:
    """The verdict on one arm, with a multiplier only if it is the same training."""
    if arm.failure:
        return f"failed, {arm.failure}"
    if is_different(arm):
        return f"{_DIFFERENT}, whatever its speed"
    if arm.verdict is None:
        return "not measured"
    if arm.may_claim:
        return arm.verdict.sentence
    return f"{_bare(arm.verdict)}; no multiplier, because sameness was not checked"


def is_different(arm: ArmResult) -> bool:
    """Whether the guard has found another training."""
    return arm.parity is not None and arm.parity.checked and not arm.parity.passed


def _bare(verdict: Verdict) -> str:
    said = f"{verdict.kind} over {verdict.num_pairs} pairs"
    return said if verdict.p_value is None else f"{said}, p = {verdict.p_value:.2g}"


def doubt(baseline: ArmResult, arm: ArmResult) -> str:
    """A warning if the profiled steps say something else than the measured ones: three steps are easily disturbed."""
    why = arm.why
    if why is None or not (baseline.step_s and arm.step_s and why.before_ms and why.after_ms):
        return ""
    measured, profiled = arm.step_s / baseline.step_s, why.after_ms / why.before_ms
    if abs(math.log(profiled / measured)) <= math.log(_CREDIBLE):
        return ""
    return f"; its steps took {why.before_ms:.1f} -> {why.after_ms:.1f} ms, unlike the measured ones: do not trust it"


def speedup(arm: ArmResult) -> str | None:
    """`1.150x [1.100, 1.200]`, in times faster than the baseline; None where it may not be said."""
    verdict = arm.verdict
    if verdict is None or not arm.may_claim or arm.failure:
        return None
    if verdict.ratio is None or verdict.low is None or verdict.high is None:
        return None
    return f"{1 / verdict.ratio:.3f}x [{1 / verdict.high:.3f}, {1 / verdict.low:.3f}]"


def verdict_word(arm: ArmResult) -> str | None:
    """The verdict, or what stands in its way; None for the baseline."""
    if arm.failure:
        return f"failed: {arm.failure.split(':')[0]}"
    if is_different(arm):
        return _DIFFERENT
    if arm.verdict is None:
        return None
    return "undecided" if arm.verdict.kind is Kind.CONTINUE else str(arm.verdict.kind)


def _parity(arm: ArmResult) -> str | None:
    if arm.verdict is None and not arm.failure:
        return None
    if arm.parity is None or not arm.parity.checked:
        return _NOT_CHECKED
    return f"{arm.parity.tier}: {'passed' if arm.parity.passed else 'failed'}"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


_COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("arm", lambda arm: arm.name),
    ("ms/step", lambda arm: _number(arm.step_s and 1000 * arm.step_s, ".2f")),
    ("tokens/s", lambda arm: _number(arm.tokens_per_s, ",.0f")),
    ("times faster [95 %]", speedup),
    ("p95 ms", lambda arm: _number(arm.p95_s and 1000 * arm.p95_s, ".2f")),
    ("mem GiB", lambda arm: _number(arm.memory_gib, ".2f")),
    ("compile s", lambda arm: _number(arm.first_compile_s, ".1f")),
    ("again s", lambda arm: _number(arm.compile_s, ".1f")),
    ("start s", lambda arm: _number(arm.startup_s, ".1f")),
    ("MFU %", lambda arm: _number(arm.mfu and 100 * arm.mfu, ".1f")),
    ("cost/1e9 tok", lambda arm: _number(arm.cost_per_billion_tokens, ",.2f")),
    ("parity", _parity),
    ("verdict", verdict_word),
)


def _notes(results: Results) -> Iterator[str]:
    """What a reader must know beside the table."""
    outcome = results.outcome
    yield ""
    yield (
        f"{outcome.num_rounds} pairs of {outcome.steps.window} steps, {outcome.ended}; "
        f"{results.spent_s / 60:.1f} minutes of segments"
    )
    for arm in results.arms:
        if arm.num_failed and not arm.failure:
            yield f"note: {arm.num_failed} segments of {arm.name} failed and are left out"
        if arm.num_unsteady:
            yield (
                f"note: {arm.num_unsteady} of {arm.num_segments} segments of {arm.name} had not settled after "
                f"{outcome.steps.max_warmup} steps"
            )
    if outcome.calibration.suspect:
        yield f"warning: {outcome.calibration.suspect}"
