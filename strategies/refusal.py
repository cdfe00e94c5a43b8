"""Combinations that cannot work, as data: `check` says them, and the documentation's table is made from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def always(strategy: Any, run: Any) -> bool:
    """The refusal holds whatever the settings."""
    return True


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One combination that a strategy refuses, the reason, and the nearest configuration that works."""

    beside: str
    """Name of another strategy (`fsdp2`), a mesh axis longer than 1 (`mesh.tp`), a device (`device cpu`), what a
    model may have (`model experts`), or samples (`data documents`)."""
    why: str
    instead: str
    """What to do, as an imperative."""
    setting: str = ""
    """The own setting to which this is limited, as it is printed: `scope = 'model'`; empty: the strategy as such."""
    holds: Callable[[Any, Any], bool] = always
    """Whether the setting is so, given the strategy and the `Run`."""

    def applies(self, strategy: Any, run: Any) -> bool:
        """Whether this very run is refused."""
        kind, _, name = self.beside.partition(".") if self.beside.startswith("mesh.") else ("", "", self.beside)
        if kind:
            present = run.degrees[name] > 1
        elif name.startswith("device "):
            present = run.device_type == name.removeprefix("device ")
        elif name.startswith("model "):
            present = getattr(run.facts, name.removeprefix("model ")) is not None
        elif name.startswith("data "):
            present = getattr(run, name.removeprefix("data ")) is not None
        else:
            present = name in run.active
        return present and self.holds(strategy, run)

    def sentence(self) -> str:
        """What `check` prints, to be continued from the strategy's path."""
        strategy = not self.beside.startswith(("mesh.", "device ", "model ", "data "))
        other = f"strategies.{self.beside}" if strategy else self.beside
        where = f"{self.setting}: " if self.setting else ""
        return f"{where}cannot work beside {other}: {self.why}; {self.instead}"
