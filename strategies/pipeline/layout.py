"""The schedules by name, and which rank holds which stage."""

from typing import Literal, TypeAlias

ScheduleName: TypeAlias = Literal[
    "gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv", "dualpipev", "csv"
]

DEFAULT_STAGES_PER_RANK = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved_1f1b": 2,
    "interleaved_zero_bubble": 2,
    "zbv": 2,
    "dualpipev": 2,
}
V_SHAPED = frozenset({"zbv", "dualpipev"})
"""The stages run down the ranks and up again, so that one rank has the first and the last."""
SPLITS_BACKWARD = frozenset({"interleaved_zero_bubble", "zbv", "dualpipev"})
"""Compute the gradients of inputs and of weights at different times."""


def rank_of_stages(schedule: str, num_ranks: int, stages_per_rank: int) -> tuple[int, ...]:
    """The rank along pp that holds each stage."""
    num_stages = num_ranks * stages_per_rank
    if schedule in V_SHAPED:
        return tuple(min(stage, num_stages - 1 - stage) for stage in range(num_stages))
    return tuple(stage % num_ranks for stage in range(num_stages))
