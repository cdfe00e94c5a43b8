"""Collectives that run on the host: ranges that begin where they are asked for and end when the work is done."""

import re

import numpy as np
import polars as pl

from ...spans import GLOO_PREFIX
from ..collective_sizes import collective_of
from ..kinds import Kind
from ..tables import Trace
from .collectives import Identity, numbered
from .graph import (
    CATEGORIES,
    END_TIER,
    LONGEST_DELAY_NS,
    START_TIER,
    Category,
    Edges,
    Points,
    Relation,
    edges,
    join_edges,
    words,
)
from .host import Threads

_WAITING = re.compile(r"wait|synchronize|c10d|all_?reduce|all_?gather|reduce_?scatter|barrier", re.IGNORECASE)
_MOST = 0.5


def ranges(trace: Trace, window: tuple[int, int]) -> pl.DataFrame:
    """The collectives that were asked for in a window."""
    found = trace.of(Kind.ANNOTATION).filter(trace.named(f"^{GLOO_PREFIX}"))
    return found.filter((pl.col("ts") >= window[0]) & (pl.col("ts") < window[1]))


def chains(trace: Trace, found: pl.DataFrame) -> Points:
    """Two points for each: 2 k where it is asked for, 2 k + 1 where it is done. What waits for it ends the step."""
    n = found.height
    start, dur = found["ts"].to_numpy(), found["dur"].to_numpy()
    tier = np.stack([np.full(n, START_TIER), np.where(dur > 0, END_TIER, START_TIER)], axis=1)

    def both(column: np.ndarray) -> np.ndarray:
        return np.repeat(column.astype(np.int32), 2)

    return Points(
        time=np.stack([start, start + dur], axis=1).ravel(),
        first=np.tile([True, False], n),
        least=np.stack([np.zeros(n, dtype=np.int64), dur], axis=1).ravel(),
        tier=tier.ravel().astype(np.uint8),
        label=both(found["name"].to_physical().to_numpy()),
        category=np.full(2 * n, CATEGORIES.index(Category.COMMUNICATION), dtype=np.uint8),
        row=both(found["row"].to_numpy()),
        track=both(found["track"].to_numpy()),
        rank=np.full(2 * n, -1 if trace.rank is None else trace.rank, dtype=np.int32),
        ends=np.zeros(2 * n, dtype=bool),
    )


def dependencies(trace: Trace, found: pl.DataFrame, threads: Threads, base: int) -> tuple[Edges, np.ndarray]:
    """Edges from where they are asked for, and to the ends of waits for them; and those ends.

    A wait is a long segment of Python, or of an operator whose name says so, that ends shortly after a collective.
    """
    points = threads.points
    end = (found["ts"] + found["dur"]).to_numpy()
    k = np.arange(found.height)
    names = trace.events["name"].to_physical().to_numpy()
    says = [code for code, name in enumerate(words(trace.events["name"])) if _WAITING.search(name)]
    asked = threads.at(found["row"].to_numpy().astype(np.int64), threads.start)
    made = [edges(asked[asked >= 0], base + 2 * k[asked >= 0], Relation.LAUNCH)]
    waits = [k[:0]]
    for track in np.unique(points.track).tolist():
        mine = np.flatnonzero(points.track == track)
        time = points.time[mine]
        behind = np.minimum(np.searchsorted(time, end, side="left"), len(mine) - 1)
        at = mine[behind]
        since = points.time[at - 1]
        length = points.time[at] - since
        quiet = points.category[at] == CATEGORIES.index(Category.PYTHON)
        quiet |= (points.row[at] >= 0) & np.isin(names[points.row[at]], says)
        fits = (behind > 0) & quiet & (length >= LONGEST_DELAY_NS) & (end - since >= _MOST * length)
        fits &= (points.time[at] >= end) & (points.time[at] - end <= LONGEST_DELAY_NS)
        made.append(edges(base + 2 * k[fits] + 1, at[fits], Relation.SYNC))
        waits.append(at[fits])
    return join_edges(*made), np.concatenate(waits)


def identities(found: pl.DataFrame, base: int) -> dict[int, Identity]:
    """By the first point: type, and how many of it came before; the group is not recorded."""
    names = found["name"].cast(pl.String).to_list()
    return numbered((base + 2 * place, None, None, collective_of(name), None) for place, name in enumerate(names))
