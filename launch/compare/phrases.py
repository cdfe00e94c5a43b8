"""What is told of a comparison before its result."""

import math

from .calibration import Calibration


def floor_line(calibration: Calibration) -> str:
    """The noise floor, and a warning if the calibration is suspect."""
    said = f"one pair of equal arms scatters by {100 * math.expm1(calibration.pair_sd):.2f} %"
    said += f"; over 16 pairs they stay within {100 * calibration.floor(16):.2f} % in 19 of 20 cases"
    return f"{said}\nwarning: {calibration.suspect}" if calibration.suspect else said


def prospect_line(mde: float, max_pairs: int) -> str:
    """What the comparison can find."""
    if math.isinf(mde):
        return f"prospect: with {max_pairs} pairs and this noise not even 4x would be found; quieten the machine"
    return f"prospect: {max_pairs} pairs find a difference of {100 * mde:.1f} % or more in 85 of 100 cases"
