"""Recipe table of the checkpoints."""

from dataclasses import dataclass

from ...strategies.limits import PositiveInt


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept; the last step is always saved."""

    every: PositiveInt = 500
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Newest checkpoints that stay; older ones are removed after a new one is complete."""
