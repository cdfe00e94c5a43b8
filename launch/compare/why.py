"""Why an arm takes another time: a profiled window of each, and the difference of the two in words and figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...profiling.spans import Span
from ..profiler_config import ProfilerConfig
from .arms import Arm
from .process import Ended, run_recipe
from .segment import measured_recipe

if TYPE_CHECKING:
    import polars as pl

_ACTIVE_STEPS = 3
_FAMILIES = (
    ("attention", re.compile(r"attention|flash|fmha|sdpa", re.IGNORECASE)),
    (
        "matrix products",
        re.compile(r"gemm|cublas|xmma|wgmma|nvjet|\b(?:add|b|_scaled_|_int_)?mm\b|linear|Cijk_|matmul"),
    ),
    ("pointwise", re.compile(r"elementwise|vectorized|pointwise|fused|triton_|softmax|norm|reduce|cat|aten::")),
)
_KERNELS = ("compute", "communication", "memory")
_NAMES = {"memory": "copies", "communication": "communication", "idle": "idle", "launch": "launch"}
_LEAST_SHARE = 0.01
_MOST_GROUPS = 3
_NS = 1e6


@dataclass(frozen=True, kw_only=True)
class Group:
    """One kind of time in a step, before and after, in milliseconds under the profiler."""

    name: str
    before_ms: float
    after_ms: float

    @property
    def change_ms(self) -> float:
        """Negative if it became less."""
        return self.after_ms - self.before_ms


@dataclass(frozen=True, kw_only=True)
class Why:
    """What made the difference; `before` is the baseline."""

    sentence: str
    before_ms: float
    after_ms: float
    kernels_before: float
    """In a step; operators where there is no device."""
    kernels_after: float
    groups: tuple[Group, ...]
    """They add up to the step."""

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> "Why":
        """The inverse of `dataclasses.asdict`."""
        values: dict[str, Any] = dict(told)
        values["groups"] = tuple(Group(**each) for each in told["groups"])
        return Why(**values)


def profile_arm(
    arm: Arm, folder: Path, *, skip: int, num_ranks: int | None = None, timeout_s: float | None = None
) -> Ended:
    """Train an arm once more, with a profiled window after `skip` steps; its traces lie in `traces_of(folder)`."""
    num_steps = skip + 1 + _ACTIVE_STEPS
    recipe = measured_recipe(arm.recipe, num_steps=num_steps + 1, keep_log_every=False)
    recipe = replace(recipe, profiler=ProfilerConfig(skip_first=skip, warmup=1, active=_ACTIVE_STEPS))
    arguments = ("--stop-after", str(num_steps + 1))  # what is written at the last step is in no window
    return run_recipe(recipe, folder, arguments, num_ranks=num_ranks, timeout_s=timeout_s)


def traces_of(folder: Path) -> Path:
    """Where `profile_arm` leaves traces."""
    return folder / "run" / "traces"


def explain(before: Path, after: Path) -> Why:
    """What made the steps of two folders of traces different. Raises: TraceError."""
    from ...profiling.trace import analysis
    from ...profiling.trace.difference import difference
    from ...profiling.trace.job import Reading

    reading = Reading(cache=False, num_processes=1)
    tables = [
        analysis.analyse([folder], (analysis.of_attribution,), reading=reading).tables["attribution"]
        for folder in (before, after)
    ]
    return explained(difference(*tables))


def explained(changes: "pl.DataFrame") -> Why:
    """The same, from the rows of `profiling.trace.difference`."""
    on_host = all(
        not row["operator"] and (row["part"] != "idle" or "no operator" in (row["name_before"], row["name_after"]))
        for row in changes.rows(named=True)
    )
    totals: dict[str, list[float]] = {}
    counts = [0.0, 0.0]
    for row in changes.rows(named=True):
        for side, place in (("before", 0), ("after", 1)):
            # Each side by its own name: what replaced a kernel may be of another kind.
            name = row[f"name_{side}"] or ""
            group = _group(row["part"], row["phase"] or "", name, row["operator"] or "")
            totals.setdefault(group, [0.0, 0.0])[place] += row[f"step_ns_{side}"] / _NS
            if row["part"] in _KERNELS:
                counts[place] += row[f"count_{side}"]
    groups = [Group(name=name, before_ms=old, after_ms=new) for name, (old, new) in totals.items()]
    groups.sort(key=lambda each: (-round(abs(each.change_ms), 6), each.name))
    return Why(
        sentence=_sentence(groups, counts, on_host=on_host),
        before_ms=sum(each.before_ms for each in groups),
        after_ms=sum(each.after_ms for each in groups),
        kernels_before=counts[0],
        kernels_after=counts[1],
        groups=tuple(groups),
    )


def _group(part: str, phase: str, name: str, operator: str) -> str:
    """The kind of time that a row of the difference belongs to."""
    if part in _NAMES:
        return _NAMES[part]
    if phase.startswith(Span.OPTIMIZER):
        return "optimizer"
    for family, words in _FAMILIES:
        if words.search(name):
            return family
    return next((family for family, words in _FAMILIES if words.search(operator)), "other")


def _sentence(groups: Sequence[Group], counts: Sequence[float], *, on_host: bool) -> str:
    """Counts, and the groups that changed most."""
    said: list[str] = []
    before, after = (round(each) for each in counts)
    if before != after:
        said.append(f"{'operators' if on_host else 'kernels'} per step {before:,} -> {after:,}")
    whole = max(sum(each.before_ms for each in groups), sum(each.after_ms for each in groups))
    changed = [each for each in groups if abs(each.change_ms) > _LEAST_SHARE * whole]
    said += [f"{each.name} {_ms(each.before_ms)} -> {_ms(each.after_ms)} ms" for each in changed[:_MOST_GROUPS]]
    text = ", ".join(said) or "no part of a step changed by more than 1 %"
    return text[0].upper() + text[1:]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
