"""What a strategy may change about the numbers of a training: declared beside its keys, so that a check can follow.

Whoever compares two recipes asks `claims`; the largest of what the differing keys may change says what sameness can be
expected of the two, and is then shown by running them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import IntEnum
from typing import Any, TypeAlias


class Changes(IntEnum):
    """How far two trainings may differ, each including those before it."""

    NOTHING = 0
    """The same bits, from the same kernels in the same order: only when and where things happen."""
    REDUCTION_ORDER = 1
    """The same mathematics rounded elsewhere: the order of sums, what is fused, another kernel."""
    PRECISION = 2
    """Numbers of 16 bits in the place of wider ones."""
    LOW_PRECISION = 3
    """Numbers of 8 bits or fewer, or of an approximation."""
    ALGORITHM = 4
    """Another training: no equality can be expected."""

    @property
    def words(self) -> str:
        """As it is printed."""
        return _WORDS[self]


_WORDS = {
    Changes.NOTHING: "nothing",
    Changes.REDUCTION_ORDER: "the order of sums",
    Changes.PRECISION: "precision",
    Changes.LOW_PRECISION: "precision, to 8 bits or fewer",
    Changes.ALGORITHM: "the algorithm",
}


@dataclass(frozen=True, kw_only=True)
class Depends:
    """A change that depends on settings or on the run."""

    usually: Changes
    sometimes: Changes
    when: str
    """In words, to be continued from `sometimes`."""
    holds: Callable[[Any, Any], bool]
    """Whether it is so, given the strategy and the `Run`."""

    def of(self, strategy: Any, run: Any) -> Changes:
        """What it is here."""
        return self.sometimes if self.holds(strategy, run) else self.usually


Rule: TypeAlias = Changes | Depends


@dataclass(frozen=True, kw_only=True)
class MayChange:
    """What a strategy may change when it is switched on or off, and by each of its keys."""

    switch: Rule
    """On or off, and all keys that are not named below."""
    keys: Mapping[str, Rule] = field(default_factory=dict[str, Rule])

    def rule(self, key: str) -> Rule:
        """What a key may change."""
        return self.keys.get(key, self.switch)

    def sentence(self) -> str:
        """As the manual prints it."""
        grouped: dict[str, list[str]] = {}
        for key, rule in self.keys.items():
            grouped.setdefault(_said(rule), []).append(key)
        return "; ".join([_said(self.switch), *(f"{', '.join(keys)}: {said}" for said, keys in grouped.items())])


def rules(rule: Rule, *keys: str) -> dict[str, Rule]:
    """The same rule for several keys."""
    return dict.fromkeys(keys, rule)


UNDECLARED = MayChange(switch=Changes.ALGORITHM)
"""Of a third party's strategy that says nothing."""


def declared(strategy: Any) -> MayChange:
    """What a strategy, or its class, declares."""
    return getattr(strategy, "changes", UNDECLARED)


def _said(rule: Rule) -> str:
    return rule.words if isinstance(rule, Changes) else f"{rule.usually.words}, or {rule.sometimes.words} {rule.when}"


def _of(rule: Rule, strategy: Any, run: Any) -> Changes:
    return rule if isinstance(rule, Changes) else rule.of(strategy, run)


def defaults(kind: type[Any]) -> dict[str, Any]:
    """Values of a strategy's keys that its recipe need not state."""
    return {own.name: own.default for own in fields(kind) if own.default is not MISSING}


def claims(name: str, before: Any, after: Any, run_before: Any, run_after: Any) -> Iterator[tuple[str, Changes]]:
    """What each difference between two settings of a strategy may change; None is a strategy that is off."""
    sides = [(side, run) for side, run in ((before, run_before), (after, run_after)) if side is not None]
    if not sides or before == after:
        return
    may = declared(sides[0][0])
    if len(sides) == 1:
        yield f"strategies.{name}", _of(may.switch, *sides[0])
    off = defaults(type(sides[0][0]))
    for key in (own.name for own in fields(sides[0][0])):
        values = [getattr(side, key) if side is not None else off.get(key) for side in (before, after)]
        if values[0] != values[1]:
            yield f"strategies.{name}.{key}", max(_of(may.rule(key), *side) for side in sides)
