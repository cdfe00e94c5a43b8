"""What a collective is and how many bytes it moves: its type, its message, and how much of it must cross a link.

The bandwidths are those of nccl-tests (doc/PERFORMANCE.md). The message is the larger of what a rank puts in and gets
out. Algorithm bandwidth is message / time. Bus bandwidth is what each rank must send at least / time, so that it
compares with the link's peak whatever the number of ranks.
"""

import json
import re
from enum import StrEnum
from typing import Any, cast

from .dtypes import bytes_of


class Collective(StrEnum):
    """What ranks do together."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"
    REDUCE = "reduce"
    GATHER = "gather"
    SCATTER = "scatter"
    BARRIER = "barrier"
    SEND = "send"
    RECV = "recv"
    SEND_RECV = "send_recv"
    """Sends and receives in one kernel."""
    OTHER = "other"
    """A kernel that communicates; which way the trace does not say."""


SYMMETRIC = (Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL)
"""No rank can finish before the last has begun: their ends are almost simultaneous."""
PAIRWISE = (Collective.SEND, Collective.RECV, Collective.SEND_RECV)

_TYPES: tuple[tuple[re.Pattern[str], Collective], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        ("reducescatter", Collective.REDUCE_SCATTER),
        ("allgather", Collective.ALL_GATHER),
        ("alltoall|all2all|deepep.*(dispatch|combine)", Collective.ALL_TO_ALL),
        ("allreduce|crossdevicereduce", Collective.ALL_REDUCE),
        ("broadcast|bcast", Collective.BROADCAST),
        ("barrier", Collective.BARRIER),
        ("sendrecv|isendirecv|coalesced", Collective.SEND_RECV),
        ("send", Collective.SEND),
        ("recv|receive", Collective.RECV),
        ("gather", Collective.GATHER),
        ("scatter", Collective.SCATTER),
        ("reduce", Collective.REDUCE),
    )
)
# NCCL before 2.18 shows this name for most of what it runs, whatever it is.
_UNTOLD = re.compile(r"^ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t|nccl(Dev)?Kernel_Generic")


def collective_of(name: str) -> Collective:
    """By the name that PyTorch, Gloo or a kernel gives it."""
    if _UNTOLD.search(name):
        return Collective.OTHER
    lower = name.lower().replace("_", "")
    return next((kind for pattern, kind in _TYPES if pattern.search(lower)), Collective.OTHER)


def bus_factor(kind: str, size: int) -> float:
    """Bytes that each of `size` ranks must send for a byte of the message."""
    if kind in (Collective.BROADCAST, Collective.REDUCE, *PAIRWISE):
        return 1.0
    share = (size - 1) / size if size > 0 else 0.0
    return 2 * share if kind in (Collective.ALL_REDUCE, Collective.BARRIER) else share


def message_bytes(kind: str, put_in: int | None, got_out: int | None, size: int | None) -> int | None:
    """The larger end of a collective, from whichever ends are known; None if it cannot be known."""
    if put_in is not None and got_out is not None:
        return max(put_in, got_out)
    if kind in (Collective.ALL_GATHER, Collective.GATHER):
        if got_out is not None:
            return got_out
        return put_in * size if put_in is not None and size else None
    if kind in (Collective.REDUCE_SCATTER, Collective.SCATTER):
        if put_in is not None:
            return put_in
        return got_out * size if got_out is not None and size else None
    return put_in if put_in is not None else got_out


def bytes_of_inputs(dims: str | None, types: str | None, num: int | None = None) -> int | None:
    """Bytes of the (first `num`) tensors that an event lists as `Input Dims` and `Input type`."""
    try:
        shapes, dtypes = json.loads(dims or "null"), json.loads(types or "null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(shapes, list) or not isinstance(dtypes, list):
        return None
    total = 0
    for shape, dtype in zip(cast(list[Any], shapes)[:num], cast(list[Any], dtypes), strict=False):
        width = bytes_of(dtype) if isinstance(dtype, str) else None
        if width is None or not isinstance(shape, list):
            continue
        number = 1
        for length in cast(list[Any], shape):
            if not isinstance(length, int):
                return None
            number *= length
        total += number * width
    return total or None


def ranks_of(text: str | None) -> tuple[int, ...] | None:
    """Global ranks of a group as traces write them, `[0, 1]`; None if the list is missing or cut short."""
    found = re.fullmatch(r"\s*\[([\d\s,]*)\]\s*", text or "")
    numbers = tuple(int(part) for part in found[1].split(",") if part.strip()) if found else ()
    return numbers or None
