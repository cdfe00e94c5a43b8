"""A folder of results -> what its page shows: plain values, in the order of the page, the answer first."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ....profiling.spans import PREFIX, PROFILER_STEP
from ..judge import Kind
from ..results import ArmResult
from ..text import cells, is_different, sentence, speedup, verdict_word
from . import evidence, record, search
from .load import Compared, Found

Told = dict[str, Any]

_TONES = {"faster": "good", "slower": "bad", "same": "even"}


def data_of(found: Found) -> Told:
    """Everything that the page's script reads.

    Raises: KeyError, TypeError, ValueError, AttributeError for results that are not ours.
    """
    name = str(found.results.get("recipe", found.path.name))
    compared = found.compared
    told = {
        "kind": found.kind,
        "title": f"{found.kind.capitalize()}: {name}",
        "subtitle": record.subtitle(found),
        "pairs": evidence.pairs(compared) if compared else [],
        "segments": evidence.segments(compared) if compared else [],
        "losses": evidence.losses(compared) if compared else None,
        "breakdown": evidence.breakdown(compared) if compared else [],
        "sameness": evidence.sameness(compared.arms) if compared else [],
        "failures": evidence.failures(compared) if compared else [],
        "forest": forest(compared) if compared and found.kind == "comparison" else None,
        "table": table(compared) if compared and found.kind == "comparison" else None,
        "answer": answer(compared) if compared and found.kind == "comparison" else None,
        "of": None if found.kind != "comparison" and compared is None else _of(found),
        "recipes": record.recipes(found),
        "environment": record.environment(found),
        "reproduce": record.reproduce(found),
        "notes": notes(compared) if compared else [],
        "frames": {},
        "prefixes": {"span": PREFIX, "step": PROFILER_STEP},
    }
    if found.kind != "comparison":
        told |= search.sections(found)
    return _plain(told)


def _of(found: Found) -> str:
    """Whose pairs, losses and segments the page shows."""
    if found.kind in ("ladder", "climb"):
        return "The finished stack against the base, in pairs of its own."
    return ""


def answer(found: Compared) -> Told:
    """The headline, a line for each arm, and the figures that a reader looks for."""
    claimed = [arm for arm in found.arms[1:] if arm.may_claim]
    best = min(filter(_is_faster, claimed), key=_ratio, default=None)
    tone, headline = (
        ("good", f"{best.name} is {1 / _ratio(best):.2f}x as fast as the baseline") if best else _not_won(found)
    )
    return {
        "tone": tone,
        "headline": headline,
        "lines": [_line(arm) for arm in found.arms[1:]],
        "figures": _figures(found, best),
    }


def _ratio(arm: ArmResult) -> float:
    return arm.verdict.ratio or 1.0 if arm.verdict else 1.0


def _not_won(found: Compared) -> tuple[str, str]:
    """The headline where nothing may be claimed to be faster: tone and words."""
    arms = found.arms[1:]
    verdicts = [arm.verdict.kind for arm in arms if arm.verdict and not arm.failure]
    unchecked = [arm for arm in arms if _is_faster(arm) and not is_different(arm)]
    if unchecked:
        return "even", f"{unchecked[0].name} is faster; by how much is not said, because sameness was not checked"
    if any(_is_faster(arm) for arm in arms):
        name = next(arm.name for arm in arms if _is_faster(arm))
        return "bad", f"Nothing is won: {name} takes less time, but is not the same training"
    if not verdicts:
        return "bad", "No arm could be measured"
    if all(kind is Kind.SAME for kind in verdicts):
        return "even", f"No difference as large as {100 * found.protocol.margin:g} %"
    if any(kind in (Kind.UNDECIDED, Kind.CONTINUE) for kind in verdicts):
        return "even", "No arm was shown to be faster, and not every arm is decided"
    return "bad", "No arm is faster than the baseline"


def _is_faster(arm: ArmResult) -> bool:
    return arm.verdict is not None and arm.verdict.kind is Kind.FASTER and not arm.failure


def _line(arm: ArmResult) -> Told:
    word = verdict_word(arm) or "not measured"
    return {"arm": arm.name, "badge": word, "tone": _tone(arm), "text": sentence(arm), "changes": list(arm.changes)}


def _tone(arm: ArmResult) -> str:
    if arm.failure or is_different(arm):
        return "bad"
    return _TONES.get(str(arm.verdict.kind) if arm.verdict else "", "open")


def _figures(found: Compared, best: ArmResult | None) -> list[Told]:
    """The best arm beside the baseline, then what the comparison could find."""
    base, told = found.arms[0], list[Told]()
    pairs = [
        ("time of a step", "step_s", 1000.0, ".4g", "ms"),
        ("tokens per second", "tokens_per_s", 1.0, ",.0f", ""),
        ("peak memory of a rank", "memory_gib", 1.0, ".2f", "GiB"),
        ("cost of 1e9 tokens", "cost_per_billion_tokens", 1.0, ",.2f", ""),
    ]
    for label, key, scale, form, unit in pairs:
        before, after = getattr(base, key), getattr(best, key) if best else None
        if before is not None:
            values = [format(scale * value, form) for value in (before, after) if value is not None]
            told.append({"label": label, "value": " → ".join(values), "note": unit})
    mde = found.results.get("minimum_detectable_effect")
    if mde is not None:
        told.append({"label": "smallest difference that it finds", "value": f"{100 * float(mde):.1f} %", "note": ""})
    return told


def forest(found: Compared) -> Told:
    """The interval of each arm; none is drawn for an arm that may claim nothing."""
    rows: list[Told] = []
    for arm in found.arms[1:]:
        verdict = arm.verdict
        drawn = verdict is not None and speedup(arm) is not None and verdict.ratio and verdict.low and verdict.high
        mark = None
        if drawn and verdict and verdict.ratio and verdict.low and verdict.high:
            mark = [1 / verdict.ratio, 1 / verdict.high, 1 / verdict.low]
        boot = verdict.bootstrap if drawn and verdict else None
        rows.append(
            {
                "name": arm.name,
                "mark": mark,
                "floor": verdict.floor if verdict else None,
                "resampled": [1 / boot[1], 1 / boot[0]] if boot else None,
                "text": speedup(arm) or "no multiplier",
                "badge": verdict_word(arm) or "not measured",
                "tone": _tone(arm),
                "pairs": verdict.num_pairs if verdict else 0,
                "why_not": None if mark else sentence(arm),
            }
        )
    return {"rows": rows, "margin": found.protocol.margin}


def table(found: Compared) -> Told:
    """The table of the terminal."""
    heads, rows = cells(found.arms)
    return {"heads": heads, "rows": rows}


def notes(found: Compared) -> list[str]:
    """What a reader must know beside the figures."""
    told, steps = found.results, dict(found.results.get("steps") or {})
    said = [
        f"{told.get('num_pairs')} pairs of {steps.get('window')} measured steps: {told.get('ended')}.",
        f"The noise floor: {found.calibration.source}; one pair scatters by "
        f"{100 * math.expm1(found.calibration.pair_sd):.2f} %.",
    ]
    for arm in found.arms:
        if arm.num_unsteady:
            said.append(
                f"{arm.num_unsteady} of {arm.num_segments} segments of {arm.name} had not settled after "
                f"{steps.get('max_warmup')} steps."
            )
    suspect = dict(told["calibration"]).get("suspect")
    return said + ([f"Warning: {suspect}"] if suspect else [])


def _plain(value: Any) -> Any:
    """The same as JSON without NaN or infinity, which become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
