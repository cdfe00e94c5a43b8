"""Lists of numbers as Linux and nvidia-smi write them: `0-19,40-59`."""

import re
from collections.abc import Iterable
from itertools import pairwise

MAX_NUMBER = 16_384
"""Above any CPU or NUMA node: Linux is built for at most 8192 CPUs."""
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


def parse_numbers(text: str) -> tuple[int, ...] | None:
    """The numbers in ascending order; None if the text is no such list. The empty text is the empty list."""
    found: list[int] = []
    for part in text.strip().split(",") if text.strip() else ():
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_NUMBER or (found and first <= found[-1]):
            return None
        found.extend(range(first, last + 1))
    return tuple(found)


def format_numbers(numbers: Iterable[int]) -> str:
    """The shortest such list."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def looks_cut(numbers: tuple[int, ...]) -> bool:
    """Whether this is how nvidia-smi prints the first six entries of a list without ranges: 0,2,4,6,8,10."""
    return len(numbers) == 6 and all(after - before > 1 for before, after in pairwise(numbers))
