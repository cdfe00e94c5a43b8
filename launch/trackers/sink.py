"""What a tracker's process does with what it is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What is known of a run when its first step has not been made."""

    tracker: str
    """Name of the recipe's table."""
    table: Values
    """Its keys."""
    folder: str
    """The run folder."""
    first_step: int
    """Steps that were done before, if the run is continued."""
    config: Values
    """Recipe and environment, redacted."""
    patience_s: float
    """How long the end of the run waits."""

    @property
    def run_folder(self) -> Path:
        """The run folder."""
        return Path(self.folder)


class Sink(Protocol):
    """A service or a file to which records go. Anything here may raise, and may hang."""

    def __init__(self, beginning: Beginning, say: Callable[[str], None]) -> None:
        """Open it; `say` prints a line on the console of the run."""
        ...

    def log(self, record: Values, at_s: float) -> None:
        """Take one record: the values of a line of `metrics.jsonl`, and when it was written, in seconds since 1970."""
        ...

    def finish(self, summary: Values, code: int) -> None:
        """Bring everything to where it belongs. code: with which the run ends."""
        ...


def numbers(record: Values) -> dict[str, float]:
    """The numbers of a record, `train/loss` and the like; what was not finite stands in JSON as a string."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if value in ("nan", "inf", "-inf"):
            value = float(value)
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{record.get('kind', 'train')}/{name}"] = float(value)
    return found
