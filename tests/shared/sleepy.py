"""A strategy of a third party that makes a step longer by a known time: what a measurement has to find."""

SLEEPY = """
import time
from dataclasses import dataclass, replace
from typing import ClassVar
from stepladder.strategies.changes import Changes, MayChange
from stepladder.strategies.wins import EVERYTHING, Try, Wins

@dataclass(frozen=True, kw_only=True)
class Sleep:
    ms: float = 0.0
    after: ClassVar[str] = "clip"
    conflicts: ClassVar[tuple] = ()
    changes: ClassVar[MayChange] = MayChange(switch=Changes.NOTHING)
    wins: ClassVar[Wins] = Wins(keys={"ms": Try(values=(20.0,), parts=EVERYTHING)})

    @property
    def owns(self):
        return frozenset()

    def check(self, run):
        return iter(())

    def apply(self, program, run):
        return replace(program, after_step=(*program.after_step, lambda: time.sleep(self.ms / 1000)))
"""
