"""How keys and values reach all ranks, and how their gradients come home.

Both ways hand out the same blocks in the same order and add gradients up in the same order, so their results are equal
to the last bit. Gradients are sent in the dtype in which the kernel returns them and added in at least float32.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Part: TypeAlias = tuple[int, Tensor | None]
"""A rank, and a gradient of the first of its keys and values: [2, B, G, S, K]. None if it has none."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One way of moving [2, B, G, T, K] keys and values between the ranks of a group."""

    keys_and_values: Callable[[Tensor, ProcessGroup, bool], Iterator[tuple[int, Tensor]]]
    """(own ones, group, overlap) -> rank and its keys and values: the own ones first, then those of the rank before."""
    gradients: Callable[[Iterable[Part], Callable[[int], int], Tensor, ProcessGroup, bool], Tensor]
    """(parts in that order, how many keys a rank returns gradients of, own keys and values, group, overlap) -> sum."""


def _swap(
    group: ProcessGroup, outgoing: Tensor | None, receiver: int, incoming: Tensor | None, sender: int
) -> list[dist.Work]:
    """Send to one rank and receive from one; all ranks of the group do so at the same time."""
    sends = [] if outgoing is None else [dist.P2POp(dist.isend, outgoing, group=group, group_peer=receiver)]
    receives = [] if incoming is None else [dist.P2POp(dist.irecv, incoming, group=group, group_peer=sender)]
    operations = sends + receives
    return dist.batch_isend_irecv(operations) if operations else []


def _wait(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()


def _ring(own: Tensor, group: ProcessGroup, overlap: bool) -> Iterator[tuple[int, Tensor]]:
    """Pass on what was just used; the next is on its way while the caller computes."""
    rank, size = group.rank(), group.size()
    held = own
    for step in range(size):
        works: list[Any] = []
        incoming = torch.empty_like(held) if step < size - 1 else None
        if incoming is not None:
            works = _swap(group, held, (rank + 1) % size, incoming, (rank - 1) % size)
        if not overlap:
            _wait(works)
            works = []
        yield (rank - step) % size, held
        _wait(works)
        held = held if incoming is None else incoming


def _ring_home(
    parts: Iterable[Part], num_keys: Callable[[int], int], own: Tensor, group: ProcessGroup, overlap: bool
) -> Tensor:
    """Send each gradient straight home while the next is computed."""
    rank, size = group.rank(), group.size()
    total = _zeros(own)
    works: list[Any] = []
    sent: Tensor | None = None
    incoming: Tensor | None = None
    for step, (home, part) in enumerate(parts):
        if step == 0:
            _add(total, part)
            continue
        _wait(works)
        _add(total, incoming)
        sender = (rank + step) % size
        expected = num_keys(sender)
        incoming = own.new_empty((*own.shape[:3], expected, own.shape[4])) if expected else None
        sent = None if part is None else part.contiguous()  # held until it has left
        works = _swap(group, sent, home, incoming, sender)
        if not overlap:
            _wait(works)
            works = []
    _wait(works)
    _add(total, incoming)
    return total


def _all_gather(own: Tensor, group: ProcessGroup, overlap: bool) -> Iterator[tuple[int, Tensor]]:
    """Everything with one collective."""
    rank, size = group.rank(), group.size()
    gathered = own.new_empty((size, *own.shape))
    # Torch 2.13 deprecates the name that torch 2.11 knows.
    gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor")  # noqa: B009
    gather(gathered.flatten(0, 1), own, group=group)
    for step in range(size):
        source = (rank - step) % size
        yield source, gathered[source]


def _all_to_all_home(
    parts: Iterable[Part], num_keys: Callable[[int], int], own: Tensor, group: ProcessGroup, overlap: bool
) -> Tensor:
    """One collective when all gradients are computed: a reduce-scatter whose sum is taken at home, in float32."""
    rank, size = group.rank(), group.size()
    total = _zeros(own)
    empty = own.new_empty(0)
    outgoing = [empty] * size
    for home, part in parts:
        if home == rank:
            _add(total, part)
        elif part is not None:
            outgoing[home] = part.flatten()
    one_key = own[..., 0, :].numel()
    sizes = [0 if sender == rank else num_keys(sender) * one_key for sender in range(size)]
    received = own.new_empty(sum(sizes))
    dist.all_to_all_single(received, torch.cat(outgoing), sizes, [each.numel() for each in outgoing], group=group)
    arrived = received.split(sizes)
    for step in range(1, size):
        sender = (rank + step) % size
        if arrived[sender].numel():
            _add(total, arrived[sender].view(*own.shape[:3], -1, own.shape[4]))
    return total


def _zeros(own: Tensor) -> Tensor:
    return torch.zeros_like(own, dtype=torch.promote_types(own.dtype, torch.float32))


def _add(total: Tensor, part: Tensor | None) -> None:
    """Add the gradient of the first few keys and values."""
    if part is not None:
        total[..., : part.shape[-2], :] += part


RING = Exchange(keys_and_values=_ring, gradients=_ring_home)
ALL_GATHER = Exchange(keys_and_values=_all_gather, gradients=_all_to_all_home)
EXCHANGES = {"ring": RING, "all_gather": ALL_GATHER}
