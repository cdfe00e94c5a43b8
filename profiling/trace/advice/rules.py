"""All rules, and the advice that follows from them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .copies import exposed_copies, pageable
from .exchanges import exchanges
from .facts import Facts, Findings
from .finding import Finding
from .kernels import fusion, launch_bound, optimizer, tiny_operators
from .matrices import float32, odd_sides
from .ranks import pipeline, straggler
from .waiting import garbage, loader, reads_on_host, recompilation, synchronisations

if TYPE_CHECKING:
    from ..analysis import Analysis

Rule = Callable[[Facts], Findings]
RULES: Sequence[Rule] = (
    loader, pageable, exposed_copies, recompilation, garbage, synchronisations, reads_on_host,
    optimizer, launch_bound, fusion, tiny_operators, float32, odd_sides,
    pipeline, straggler, exchanges,
)  # fmt: skip
"""Causes before their effects: of two findings that can win the same the first stays first."""


def advise(analysis: "Analysis") -> list[Finding]:
    """What the trace gives evidence for, by what it can win at most; empty on a good trace.

    The bounds do not add up: two findings may speak of the same time.
    """
    facts = Facts(analysis)
    if facts.step_ns <= 0:
        return []
    found = [finding for rule in RULES for finding in rule(facts)]
    return sorted(found, key=lambda finding: -finding.wins_at_most_ns)


def nothing_found(analysis: "Analysis") -> str:
    """What to say where there is no finding."""
    facts = Facts(analysis)
    if facts.step_ns <= 0:
        return "Nothing to advise: the trace has no time that could be shared out."
    where = "the host (the traces have no device)" if facts.on_host else "host and device"
    return f"Nothing to advise: no finding has evidence in {facts.num_steps} steps of {where}."
