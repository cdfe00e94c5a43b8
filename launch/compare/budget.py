"""Whether the time that is allowed suffices for any verdict."""

import math

from ..errors import UsageError
from .sequential import MIN_PAIRS

_RESERVE = 1.2


def check(budget_s: float, *, pair_s: float, pilots_s: float, calibration_s: float) -> None:
    """Refuse a budget that cannot end in a verdict.

    pair_s: a round of all arms. pilots_s, calibration_s: what comes before the first pair. Raises: UsageError.
    """
    needed_s = pilots_s + calibration_s + MIN_PAIRS * pair_s
    if budget_s < pair_s:
        raise too_short(budget_s, pair_s, "one pair takes", needed_s)
    if budget_s < needed_s:
        pairs = max(0, math.floor((budget_s - pilots_s - calibration_s) / pair_s))
        after = f" after {calibration_s:.0f} s of calibration" if calibration_s else ""
        raise UsageError(
            f"--budget {budget_s:.0f}s: allows {pairs} pairs of {pair_s:.0f} s{after}, and a verdict needs {MIN_PAIRS}"
            f"; give {math.ceil(_RESERVE * needed_s)}s at least"
        )


def too_short(budget_s: float, pair_s: float, said: str, needed_s: float) -> UsageError:
    """The refusal of a budget that ends before the first pair does."""
    return UsageError(
        f"--budget {budget_s:.0f}s: shorter than one pair; {said} {pair_s:.0f} s here, and a verdict needs {MIN_PAIRS}"
        f"; give {math.ceil(_RESERVE * needed_s)}s at least"
    )


def too_short_to_climb(budget_s: float, change_s: float, needed_s: float) -> UsageError:
    """The refusal of a budget that allows not one change."""
    return UsageError(
        f"--budget {budget_s:.0f}s: too short to try one change; that takes {change_s:.0f} s here, beside what was "
        f"measured already and the final comparison; give {math.ceil(_RESERVE * needed_s)}s at least"
    )
