"""In which order the segments of an experiment run: a pure function of seed, arms and round, so that it can be resumed.

Each arm runs once a round, so that a round holds one pair for each candidate. Two rounds make a block: the first in
random order, the second in the reverse. So a candidate comes before the baseline as often as after it, and whatever
changes in a line over a block cancels. For two arms a block is ABBA or BAAB.
"""

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One segment to be run."""

    round: int
    """Which pair of each candidate it belongs to, from 0."""
    arm: str


def round_order(arms: Sequence[str], seed: int, round_index: int) -> tuple[str, ...]:
    """The arms in the order in which they run in a round."""
    order = list(arms)
    random.Random(f"{seed}/{round_index // 2}").shuffle(order)
    return tuple(reversed(order) if round_index % 2 else order)


def schedule(arms: Sequence[str], *, seed: int, num_rounds: int) -> Iterator[Slot]:
    """All segments in order. Raises: ValueError if there are no two arms, or two of one name."""
    if len(arms) < 2 or len(set(arms)) < len(arms):
        raise ValueError(f"arms = {list(arms)}: a comparison needs two arms with different names; name another one")
    for index in range(num_rounds):
        for arm in round_order(arms, seed, index):
            yield Slot(round=index, arm=arm)


def next_slot(
    arms: Sequence[str], *, seed: int, num_rounds: int, done: Collection[Slot], decided: Collection[str] = ()
) -> Slot | None:
    """The segment to be run next, or None if all are done.

    done: finished segments, failed ones included. decided: candidates that need no more; the places of the others stay.
    """
    waiting = (slot for slot in schedule(arms, seed=seed, num_rounds=num_rounds) if slot.arm not in decided)
    return next((slot for slot in waiting if slot not in done), None)


def log_differences(medians_s: Mapping[Slot, float], *, baseline: str, candidate: str) -> list[float]:
    """Candidate minus baseline, as logarithms, of each round in which both have finished, in order of rounds."""
    rounds = sorted(slot.round for slot in medians_s if slot.arm == candidate)
    both = [(Slot(round=index, arm=baseline), Slot(round=index, arm=candidate)) for index in rounds]
    return [math.log(medians_s[b] / medians_s[a]) for a, b in both if a in medians_s]
