"""The lab notebook: what was thought, why, what was changed and what came of it; for people and for programs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...profiling.capture import publish
from ..compare.rungs import Point, Row, of_json
from ..compare.store import read_json, write_json

SCREENED = "no faster"
"""The verdict of a single segment."""


@dataclass(frozen=True, kw_only=True)
class Step(Row):
    """One change that was tried; `docs/compare.md` has the keys."""

    hypothesis: str = ""
    evidence: tuple[str, ...] = ()
    source: str = "catalogue"
    bound: float = 1.0
    estimated_s: float = 0.0
    screening: float | None = None
    seconds_with_all: float = 0.0
    share_before: Mapping[str, float] = field(default_factory=dict[str, float])
    stack_step_s: float | None = None
    """Of the stack that it was tried on."""

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> "Step":
        """The inverse of `to_json`."""
        return Step(**of_json(told))


@dataclass(kw_only=True)
class Notebook:
    """What was done so far."""

    path: Path
    steps: list[Step] = field(default_factory=list[Step])
    preparation_s: float = 0.0
    """What the first profile and the first segment took."""

    def load(self) -> None:
        """Take up what an interrupted climb has left."""
        told = read_json(self.path / "notebook.json")
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # damaged: gone through again
            if told:
                steps, preparation_s = [Step.from_json(each) for each in told["steps"]], float(told["preparation_s"])
                self.steps, self.preparation_s = steps, preparation_s

    def write(self, told: Mapping[str, Any]) -> None:
        """Leave both forms. told: what the results hold beside the steps."""
        whole = {**told, "preparation_s": self.preparation_s, "steps": [step.to_json() for step in self.steps]}
        write_json(self.path / "notebook.json", whole)
        text = "\n".join(markdown(told, self.steps)) + "\n"
        publish(self.path / "notebook.md", lambda partial: partial.write_text(text, encoding="utf-8"))

    @property
    def kept(self) -> list[Step]:
        """The changes that stand."""
        return [step for step in self.steps if step.kept]

    @property
    def spent_s(self) -> float:
        """All time that was used."""
        return self.preparation_s + sum(step.seconds_with_all for step in self.steps)


def markdown(told: Mapping[str, Any], steps: Sequence[Step]) -> Iterator[str]:
    """The notebook as a page."""
    yield f"# Notebook: {told['recipe']}"
    yield ""
    base: Mapping[str, Any] | None = told.get("base")
    if base:
        yield f"Begun at {1000 * base['step_s']:.2f} ms a step."
    for step in steps:
        yield ""
        yield f"## {step.index}. {step.name}: {'kept' if step.kept else 'dropped'}"
        yield ""
        yield f"- **Hypothesis** ({step.source}): {step.hypothesis}; at most {100 * step.bound:.0f} % of a step."
        yield from (f"- **Evidence**: {line}" for line in step.evidence)
        yield f"- **Change**: `{'`, `'.join(step.set)}`"
        if step.screening is not None:
            yield f"- **First look**: one segment took {step.screening:.3f} times as long a step."
        yield f"- **Result**: {step.verdict}; {step.reason}"
        if step.why:
            yield f"- **Why**: {step.why} (under the profiler)"
        if step.cumulative:
            yield f"- **So far**: {step.cumulative}{_at(step.point)}"
        yield f"- **Cost**: {step.seconds_with_all:.0f} s, of which segments {step.seconds:.0f} s"
    final: Mapping[str, Any] | None = told.get("final")
    yield ""
    yield "## The end"
    yield ""
    yield f"- {told['ended']}" if told.get("ended") else "- not yet"
    if final:
        yield f"- The whole, against the base in pairs of its own: {final['reason']}"
    yield f"- Kept: {', '.join(step.name for step in steps if step.kept) or 'nothing'}"


def _at(point: Point | None) -> str:
    return "" if point is None else f", at {1000 * point.step_s:.2f} ms a step"
