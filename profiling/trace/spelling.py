"""How numbers and names are written for a terminal."""

import re

# Control characters, those that turn the direction of writing, and halves of characters, which no terminal takes.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def milliseconds(ns: float) -> str:
    """With three digits behind the point; of a tenth of a second and more with none."""
    return f"{ns / 1e6:.3f}" if abs(ns) < 1e8 else f"{ns / 1e6:.0f}"


def printable(text: str) -> str:
    """Without what a terminal would obey: names come from a file that may be anybody's."""
    return _CONTROL.sub("?", text)
