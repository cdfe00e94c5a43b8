"""What a piece of advice says, and the words for its numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ...spans import PREFIX


class Fault(StrEnum):
    """What a finding is about: a name for programs, which stays when sentences are worded anew."""

    LOADER = "loader"
    SYNCHRONISATION = "synchronisation"
    READ_ON_HOST = "read_on_host"
    PAGEABLE = "pageable"
    EXPOSED_COPY = "exposed_copy"
    GARBAGE = "garbage"
    RECOMPILATION = "recompilation"
    LAUNCH_BOUND = "launch_bound"
    UNFUSED = "unfused"
    TINY_OPERATORS = "tiny_operators"
    OPTIMIZER = "optimizer"
    FLOAT32 = "float32"
    ODD_SIDES = "odd_sides"
    UNEVEN_STAGES = "uneven_stages"
    BUBBLE = "bubble"
    STRAGGLER = "straggler"
    EVERY_MICROBATCH = "every_microbatch"
    SMALL_BUCKETS = "small_buckets"
    SLOW_LINK = "slow_link"
    NOT_OVERLAPPED = "not_overlapped"
    DOMINATING = "dominating"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A loss that the trace shows, and what may be done about it."""

    fault: Fault
    title: str
    evidence: tuple[str, ...]
    """Sentences with numbers and places: ranks, steps, phases, operators, kernels, lines of the program."""
    cause: str
    remedy: str
    """A diff of the recipe where it is ours to change."""
    measure_next: str
    wins_at_most_ns: int
    """Of a step of mean length."""
    share: float
    """The same, of the step."""
    assumptions: str
    """Under which the bound is one."""

    def row(self) -> Mapping[str, Any]:
        """As a report shows it."""
        return asdict(self) | {"evidence": list(self.evidence)}


def time(ns: float) -> str:
    """A length of time: `12.3 ms`."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}" if abs(ns) < 999.5 * size else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"


def size(num_bytes: float) -> str:
    """A number of bytes: `3.5 MiB`."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= one:
            return f"{num_bytes / one:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def number(count: float) -> str:
    """A mean count: whole if it is."""
    return f"{count:.0f}" if count >= 100 or float(count).is_integer() else f"{count:.1f}"


def place(within: str | None, phase: str | None) -> str:
    """A phase, and what it is within."""
    short = [each.removeprefix(PREFIX) for each in (within, phase) if each and each != "other"]
    return " / ".join(dict.fromkeys(short)) or "no marked phase"
