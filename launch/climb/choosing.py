"""What can be tried on the stack as it stands, the most worthwhile first."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ..compare.comparison import Asked
from ..compare.equal_tokens import MICROBATCH
from ..compare.equal_tokens import key_of as change_key
from ..compare.rungs import DIFFERENT, FAILED
from ..compare.segment import Measured
from ..errors import UsageError
from ..plan import Plan
from .catalogue import of_declarations, of_memory
from .costs import estimated_s
from .notebook import Step
from .profile import Profile
from .proposal import Proposal, merged, of_advice
from .screening import key_of

AGAIN_AFTER = 1.2
"""How many times faster the stack must have become for a change that did not help to be tried again."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known when something is to be chosen."""

    plan: Plan
    """Of the stack."""
    measured: Measured
    """A segment of it."""
    step_s: float
    """Its step as it was measured last."""
    profile: Profile
    steps: Sequence[Step]
    """All that was tried."""
    visited: Collection[str]
    """Recipes that stood already, by `key_of`: nothing leads back to them."""
    too_large: int | None
    """A size of microbatches that ran out of memory."""
    calibrated: bool
    asked: Asked
    only: Collection[str] = ()
    """Keys, or tables of keys, to which a climb is confined; none for all."""


def proposals(now: Situation, plan_of: Callable[[Sequence[str]], Plan]) -> list[Proposal]:
    """All that may help, with what each costs, by what it can win for that. plan_of: of the stack with changes."""
    memory_gib = now.measured.times.memory_gib if now.measured.times else None
    every = merged(
        [
            *of_advice(now.profile),
            *of_declarations(now.plan, now.profile),
            *of_memory(now.plan, now.profile, too_large=now.too_large, memory_gib=memory_gib),
        ]
    )
    calibration_s = 0.0 if now.calibrated else 2 * now.asked.declared.calibration_pairs * now.measured.seconds
    found: list[Proposal] = []
    for each in every:
        if _was_tried(each, now) or not _is_allowed(each, now.only):
            continue
        try:
            candidate = plan_of(each.set)
        except UsageError:
            continue
        if key_of(candidate.recipe) in now.visited:
            continue
        profiled, guarded = now.asked.declared.profile, now.asked.guarded
        cost_s = estimated_s(now.plan, candidate, now.measured, guarded=guarded, profiled=profiled)
        found.append(replace(each, estimated_s=cost_s + calibration_s))
    return sorted(found, key=lambda each: (-each.worth, each.set))


def _is_allowed(proposal: Proposal, only: Collection[str]) -> bool:
    """Whether it changes nothing but what may be changed; the number of microbatches goes with their size."""
    may = (*only, "strategies.accumulation") if MICROBATCH in only else tuple(only)
    keys = [change_key(change) for change in proposal.set]
    return not only or all(any(key == each or key.startswith(f"{each}.") for each in may) for key in keys)


def _was_tried(proposal: Proposal, now: Situation) -> bool:
    """Whether it did not help, and the stack has not become so much faster since then that it might."""
    before = [step for step in now.steps if sorted(step.set) == sorted(proposal.set)]
    if not before or before[-1].kept:
        return False
    step = before[-1]
    if step.verdict in (DIFFERENT, FAILED) or step.stack_step_s is None:
        return True
    return step.stack_step_s < AGAIN_AFTER * now.step_s
