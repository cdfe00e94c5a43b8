"""Which collective a communication kernel is, in words that all ranks have in common."""

from collections.abc import Iterable

import numpy as np

from ..collective_sizes import PAIRWISE, Collective
from ..collectives import told_of_kernels
from ..kinds import Kind
from ..tables import Trace
from .device import Tasks

Identity = tuple[str, ...]


def numbered(found: Iterable[tuple[int, str | None, str | None, str, int | None]]) -> dict[int, Identity]:
    """By point: process group, its ranks, type, sequence number, and how many such came before.

    Given point, group, ranks, type, sequence number. What is sent and received, or is not told, has no identity: who
    takes part is not known.
    """
    result: dict[int, Identity] = {}
    counts: dict[Identity, int] = {}
    for point, group, ranks, kind, sequence in found:
        if kind == Collective.OTHER or kind in PAIRWISE:
            continue
        said = "" if sequence is None else str(sequence)
        identity = (group or "", "".join((ranks or "").split()), kind, said)
        counts[identity] = counts.get(identity, -1) + 1
        result[point] = (*identity, str(counts[identity]))
    return result


def identities(trace: Trace, tasks: Tasks, base: int) -> dict[int, Identity]:
    """Of the kernels of a window, by their first points; `base` is the number of the first task's first point."""
    which = np.flatnonzero((tasks.frame["kind"] == Kind.COMMUNICATION.value).to_numpy() & tasks.own)
    told = told_of_kernels(trace).select("row", "Process Group Name", "Process Group Ranks", "type", "Seq")
    mine = tasks.frame.select("row")[which].join(told, on="row", how="left", maintain_order="left").drop("row")
    points = (base + 2 * which).tolist()
    return numbered((point, *row) for point, row in zip(points, mine.iter_rows(), strict=True))
