"""Whether the traces of several ranks belong together: recorded by one job, in the same steps, at the same time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tables import Trace, job_of

_SAME_IN_A_JOB = ("backend", "nccl_version")
_MAX_APART_NS = 1_000_000_000
"""Between the end of a trace and the begin of another; clocks of hosts may be apart."""
_MAX_RANKS = 8
_MOST_RANKS = 1 << 20
"""A header that says more is not believed."""
_MAX_LETTERS = 40


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """When a trace was recorded, and what it says of its job."""

    steps: tuple[int, int, int] | None
    """The first, the last, and how many; None if there are no marks of steps."""
    start_ns: int
    end_ns: int
    said: Mapping[str, Any]
    world_size: int | None = None


def recorded(trace: Trace) -> Recorded:
    """What is compared of a trace, which has events."""
    numbers = trace.steps["step"].unique().sort()
    start, dur = (trace.events[column].to_numpy() for column in ("ts", "dur"))
    job = job_of(trace.header)
    return Recorded(
        steps=(int(numbers[0]), int(numbers[-1]), len(numbers)) if len(numbers) else None,
        start_ns=int(start.min()),
        end_ns=int((start + dur).max()),
        said={key: job[key] for key in _SAME_IN_A_JOB if key in job},
        world_size=job.get("world_size") if isinstance(job.get("world_size"), int) else None,
    )


def absent(ranks: Mapping[int, Recorded]) -> list[int]:
    """Ranks of the job that were not read, by what the headers say of its size."""
    sizes = {each.world_size for each in ranks.values() if each.world_size is not None}
    size = sizes.pop() if len(sizes) == 1 else 0
    return [rank for rank in range(min(size, _MOST_RANKS)) if rank not in ranks]


def doubts(ranks: Mapping[int, Recorded], *, largest_group: int = 0) -> list[str]:
    """Why what is said about ranks together may mean nothing, a sentence each.

    `largest_group` is the size of the largest group that a collective of them names.
    """
    notes = _incomplete(ranks, largest_group) if len(ranks) > 1 else []
    notes += [note for key in _SAME_IN_A_JOB for note in _differing(key, ranks)]
    return notes + (_other_steps(ranks) or _other_time(ranks))


def _incomplete(ranks: Mapping[int, Recorded], largest_group: int) -> list[str]:
    """The others' waiting for a rank that was not read looks like transferring, and nobody knows who came last."""
    missing, so = absent(ranks), "what waited for the others cannot be told from what transferred, nor who came last"
    if missing:
        said = f"{len(ranks)} of {len(ranks) + len(missing)} ranks were read (missing {_spans(missing)})"
        return [f"{said}: in collectives of those {so}"]
    if largest_group > len(ranks):
        return [f"a collective is of {largest_group} ranks, and {len(ranks)} ranks were read: in it {so}"]
    return []


def _spans(which: Sequence[int]) -> str:
    """`0, 2 to 5`."""
    begins = [rank for rank, before in zip(which, [None, *which], strict=False) if before != rank - 1]
    ends = [rank for rank, after in zip(which, [*which[1:], None], strict=True) if after != rank + 1]
    words = [str(one) if one == other else f"{one} to {other}" for one, other in zip(begins, ends, strict=True)]
    return ", ".join(words[:_MAX_RANKS]) + (", ..." if len(words) > _MAX_RANKS else "")


def _differing(key: str, ranks: Mapping[int, Recorded]) -> list[str]:
    values = sorted({str(each.said[key])[:_MAX_LETTERS] for each in ranks.values() if key in each.said})
    if len(values) < 2:
        return []
    return [f"the traces say different things of {key} ({', '.join(values)}); give the traces of one job"]


def _other_steps(ranks: Mapping[int, Recorded]) -> list[str]:
    known = {rank: each.steps for rank, each in ranks.items() if each.steps}
    if not known:
        return []
    first = min(known)
    others = sorted(rank for rank, steps in known.items() if steps != known[first])
    if not others:
        return []
    return [
        f"{_ranks(others)} recorded in other steps ({_span(known[others[0]])}) than rank {first} "
        f"({_span(known[first])}), so what is said about ranks together compares different work; "
        "give windows of the same steps"
    ]


def _other_time(ranks: Mapping[int, Recorded]) -> list[str]:
    late = max(ranks, key=lambda rank: ranks[rank].start_ns)
    early = min(ranks, key=lambda rank: ranks[rank].end_ns)
    apart_ns = ranks[late].start_ns - ranks[early].end_ns
    if apart_ns <= _MAX_APART_NS:
        return []
    return [
        f"the trace of rank {late} begins {apart_ns / 1e9:.1f} s after that of rank {early} ends: another window, "
        "another job, or clocks that are apart; what is said about ranks together may mean nothing"
    ]


def _ranks(which: Sequence[int]) -> str:
    names = ", ".join(map(str, which[:_MAX_RANKS])) + (", ..." if len(which) > _MAX_RANKS else "")
    return f"rank {names} was" if len(which) == 1 else f"ranks {names} were"


def _span(steps: tuple[int, int, int]) -> str:
    first, last, num = steps
    return str(first) if first == last else f"{first} to {last}" + (f", {num} of them" if num <= last - first else "")
