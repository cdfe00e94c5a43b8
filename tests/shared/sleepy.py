"""A strategy of a third party that makes a step longer by a known time: what a measurement has to find."""

from pathlib import Path

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
        if not self.ms:
            return program
        return replace(program, after_step=(*program.after_step, lambda: time.sleep(self.ms / 1000)))
"""


def install_sleepy(place: Path) -> dict[str, str]:
    """Make `place` a folder from which `strategies.sleep` is installed; the environment for that."""
    info = place / "sleepy-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (place / "sleepy.py").write_text(SLEEPY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[stepladder.strategies]\nsleep = sleepy:Sleep\n")
    return {"PYTHONPATH": str(place)}
