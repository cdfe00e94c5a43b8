"""Which collective a communication kernel is, in words that all ranks have in common."""

import re

import numpy as np
import polars as pl

from ..kinds import Kind
from ..tables import Trace
from .device import Tasks

_TYPES = re.compile(r"all_?reduce|reduce_?scatter|all_?gather|all_?to_?all|broadcast|barrier|reduce", re.IGNORECASE)
_KEYS = ("Process Group Name", "Process Group Ranks", "Collective name", "Seq")


def kind_of_collective(name: str) -> str:
    """Its type in one word, however it is spelled; empty if the name says none."""
    match = _TYPES.search(name)
    return match[0].lower().replace("_", "") if match else ""


def identities(trace: Trace, tasks: Tasks, base: int) -> dict[int, tuple[str, ...]]:
    """By the kernel's first point: process group, its ranks, type, sequence number, and how many such came before.

    `base` is the number of the first task's first point. A send and receive of which
    nothing more is said has no identity: who takes part is not known.
    """
    which = np.flatnonzero((tasks.frame["kind"] == Kind.COMMUNICATION.value).to_numpy() & tasks.own)
    frame = tasks.frame[which].select("row", pl.col("name").cast(pl.String))
    for key in _KEYS:
        said = trace.argument(key).select("row", pl.col("value").cast(pl.String).alias(key))
        frame = frame.join(said.unique("row", keep="first"), on="row", how="left", maintain_order="left")
    found: dict[int, tuple[str, ...]] = {}
    counts: dict[tuple[str, ...], int] = {}
    for place, (name, group, ranks, kind, sequence) in zip(which.tolist(), frame.drop("row").rows(), strict=True):
        word = kind_of_collective(kind or "") or kind_of_collective(name)
        if not word:
            continue
        identity = (group or "", "".join((ranks or "").split()), word, sequence or "")
        counts[identity] = counts.get(identity, -1) + 1
        found[base + 2 * place] = (*identity, str(counts[identity]))
    return found
