"""The first look at a change: one segment beside one of the stack, which is enough to drop what does not help.

A machine drifts, so that an old segment of the stack proves nothing against a change. Before a change is dropped by
one, the stack runs again beside it.
"""

from dataclasses import dataclass

from ..compare.arms import Arm
from ..compare.segment import Measured
from .screening import Screens

_OLD = 2
"""Segments run since the stack's own, beyond which it is measured anew."""
_COMPILED_S = 5.0
"""What first steps take longer than those of the stack, if something was compiled in them."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen."""

    found: Measured
    """Of the change, the last of its segments."""
    ratio: float | None
    """Of its steps to those of the stack; None if it failed."""
    helps: bool
    """Whether it is worth pairs."""


@dataclass(kw_only=True)
class FirstLooks:
    """All first looks of a climb."""

    screens: Screens
    margin: float
    """What it must win at first sight, as a share."""
    reference_s: float = 0.0
    """A step of the stack, as it was measured last."""
    age: int = _OLD + 1
    """Segments run since then."""

    def know(self, step_s: float) -> None:
        """The stack was measured just now."""
        self.reference_s, self.age = step_s, 0

    def remember(self, step_s: float | None) -> None:
        """The stack was measured so some time ago, before an interruption."""
        self.reference_s, self.age = step_s or self.reference_s, _OLD + 1

    def look(self, name: str, arm: Arm, *, stack_arm: Arm, stack: Measured) -> Look:
        """One segment; a second one if the first has compiled, and one of the stack, before it is given up."""
        look = self._looked(self.screens.get(name, arm, stack=stack))
        if look.ratio is not None and not look.helps and _compiled(look.found, stack):
            look = self._looked(self.screens.look_again(name, arm, stack=stack))
        if look.ratio is not None and not look.helps and self.age > _OLD:
            beside = self.screens.beside(name, stack_arm, stack=stack)
            if beside.segment:
                self.know(beside.segment.median_s)
                look = self._judged(look.found)
        return look

    def _looked(self, found: Measured) -> Look:
        self.age += 1
        return self._judged(found)

    def _judged(self, found: Measured) -> Look:
        if found.segment is None:
            return Look(found=found, ratio=None, helps=False)
        ratio = found.segment.median_s / self.reference_s
        return Look(found=found, ratio=ratio, helps=ratio < 1 - self.margin)


def _compiled(found: Measured, stack: Measured) -> bool:
    return (found.compile_s or 0.0) > (stack.compile_s or 0.0) + _COMPILED_S
