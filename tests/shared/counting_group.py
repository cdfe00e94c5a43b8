"""A process group that moves nothing and remembers what it was asked for: who, which collective, how many bytes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future


@dataclass(frozen=True, kw_only=True)
class Call:
    """A collective as this rank issued it. Bytes are the whole tensor's: gathered, or before it is scattered."""

    kind: str
    ranks: tuple[int, ...]
    num_bytes: int
    peer: int | None = None


CALLS: list[Call] = []


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(_bytes(each) for each in tensors)


class _Done(dist.Work):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.future: Future[Any] = Future()
        self.future.set_result(result)

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> "Future[Any]":
        return self.future


class CountingGroup(dist.ProcessGroup):
    """Every collective returns at once and leaves its outputs as they are."""

    def __init__(self, rank: int, size: int, ranks: tuple[int, ...]) -> None:
        super().__init__(rank, size)
        self.own_ranks, self.own_size = ranks, size

    def _note(self, kind: str, num_bytes: int, result: Any, peer: int | None = None) -> dist.Work:
        to = None if peer is None else self.own_ranks[peer]
        CALLS.append(Call(kind=kind, ranks=self.own_ranks, num_bytes=num_bytes, peer=to))
        return _Done(result)

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:
        return self._note("all_reduce", _bytes(tensors), tensors)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> Any:
        return self._note("all_reduce", _bytes(tensors), tensors)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        for own, gathered in zip(inputs, outputs, strict=True):  # DDP compares what others have with its own
            for each in gathered:
                each.copy_(own)
        return self._note("all_gather", _bytes(outputs), outputs)

    def _allgather_base(self, output: Any, given: Any, opts: Any = None) -> Any:
        return self._note("all_gather", _bytes(output), output)

    def allgather_into_tensor_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        return self._note("all_gather", _bytes(outputs), outputs)

    def _reduce_scatter_base(self, output: Any, given: Any, opts: Any = None) -> Any:
        return self._note("reduce_scatter", _bytes(given), output)

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        return self._note("reduce_scatter", _bytes(inputs), outputs)

    def reduce_scatter_tensor_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        return self._note("reduce_scatter", _bytes(inputs), outputs)

    def alltoall_base(self, output: Any, given: Any, output_sizes: Any, input_sizes: Any, opts: Any = None) -> Any:
        if output.shape == given.shape:  # numbers of rows, which say how much is received next
            output.copy_(given)
        return self._note("all_to_all", _bytes(given), output)

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:
        return self._note("broadcast", _bytes(tensors), tensors)

    def barrier(self, opts: Any = None) -> Any:
        return self._note("barrier", 0, None)

    def send(self, tensors: Any, destination: int, tag: int = 0) -> Any:
        return self._note("send", _bytes(tensors), tensors, destination)

    def recv(self, tensors: Any, source: int, tag: int = 0) -> Any:
        return _Done(tensors)

    def getBackendName(self) -> str:  # noqa: N802
        return "counting"

    def size(self) -> int:
        return self.own_size

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    # what torch 2.13 calls them
    all_gather_single = _allgather_base
    all_gather_single_coalesced = allgather_into_tensor_coalesced
    reduce_scatter_single = _reduce_scatter_base
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced
    all_to_all_single = alltoall_base


def register() -> None:
    """Make "counting" a backend of `init_process_group`."""

    def make(options: Any, backend_options: Any = None) -> CountingGroup:
        ranks = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))
        return CountingGroup(options.group_rank, options.group_size, ranks)

    dist.Backend.register_backend("counting", make, extended_api=True, devices=["cpu"])


def totals() -> "Counter[tuple[str, tuple[int, ...]]]":
    """Bytes by kind and group."""
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for call in CALLS:
        found[call.kind, call.ranks] += call.num_bytes
    return found
