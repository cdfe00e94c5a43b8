"""What may be tried next: changes with the reason for each, a bound of what it can win, and what trying it costs."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..compare.rungs import Rung
from .profile import Profile

Source = Literal["advice", "catalogue", "memory"]
_ASSIGNMENT = re.compile(r"^([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)+)\s*=\s*([^#]+?)\s*(?:#.*)?$")
_CERTAIN = 0.9
"""A bound beyond it says no more than that everything is possible."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A change that may help."""

    set: tuple[str, ...]
    source: Source
    hypothesis: str
    evidence: tuple[str, ...] = ()
    bound: float
    """Of a step, that it can win at most."""
    estimated_s: float = 0.0
    """What trying it takes, the guard included."""

    @property
    def worth(self) -> float:
        """What it can win at most for its cost; the larger, the sooner it is tried."""
        return -math.log1p(-min(self.bound, _CERTAIN)) / max(self.estimated_s, 1e-9)

    @property
    def rung(self) -> Rung:
        """The change under a name of its own."""
        parts: list[str] = []
        shown = self.set[:1] if self.source == "memory" else self.set  # the number of microbatches follows
        for change in shown:
            key, _, value = change.partition("=")
            word = key.strip().removeprefix("strategies.").removeprefix("loader.").removeprefix("batch.")
            value = value.strip().strip("\"'")
            parts.append(word if value in ("{}", "true") else f"no-{word}" if value == "false" else f"{word}-{value}")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).strip("-._")[:50]
        return Rung(name=name or "change", set=self.set)


def of_advice(profile: Profile) -> Iterator[Proposal]:
    """The remedies of the analyzer that are changes of a recipe; those of several strategies are alternatives."""
    for advice in profile.advice:
        for changes in alternatives(advice.remedy):
            yield Proposal(
                set=changes,
                source="advice",
                hypothesis=f"{advice.title[0].lower()}{advice.title[1:]}",
                evidence=advice.evidence,
                bound=advice.share,
            )


def alternatives(remedy: str) -> list[tuple[str, ...]]:
    """The changes in a remedy, a line each, those of one table together."""
    tables: dict[str, list[str]] = {}
    for line in remedy.splitlines():
        found = _ASSIGNMENT.match(line.strip())
        if found and "..." not in found[2]:
            owner = ".".join(found[1].split(".")[: 2 if found[1].startswith("strategies.") else 1])
            tables.setdefault(owner, []).append(f"{found[1]}={found[2]}")
    return [tuple(changes) for changes in tables.values()]


def merged(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Each change once: with the evidence of the first who proposed it, and the least of all bounds."""
    found: dict[tuple[str, ...], Proposal] = {}
    for each in proposals:
        key = tuple(sorted(each.set))
        known = found.get(key)
        found[key] = each if known is None else replace(known, bound=min(known.bound, each.bound))
    return list(found.values())
