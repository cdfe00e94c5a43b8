"""From a source to the device: the loader, and the copies that run ahead of the step."""

import gc
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch

from ...profiling.record import Marker
from ...profiling.spans import Span
from ...strategies.base import Batch
from ..loop import StepData
from .config import LoaderConfig
from .order import Share
from .source import Source

if TYPE_CHECKING:
    from torch import Tensor


def _as_is(batch: Any) -> Any:
    return batch


def _pinned(tensor: "Tensor") -> "Tensor":
    return tensor.pin_memory()


def _as_a_worker(worker: int) -> None:
    """Undo what a forked worker has from its rank: the rank stops after a whole step, a worker when it is told to.

    The loaders' `generator` has the same reason: drawing a seed from torch's own would move the rank's random state.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.enable()


class _Batches(torch.utils.data.Dataset[Batch]):
    """A source whose items are whole microbatches: an index is the list of sample indices."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        return self.source.__getitems__(indices)


def host_batches(source: Source, share: Share, loader: LoaderConfig, *, first_step: int, pin: bool) -> Iterator[Batch]:
    """The rank's microbatches on the host, from `first_step` on, without end.

    Without workers the source is read in this process; with workers through torch's DataLoader, in the same order.
    """
    if loader.num_workers == 0:
        batches = map(source.__getitems__, share.microbatches(first_step))
        return (batch.map(_pinned) for batch in batches) if pin else batches
    return iter(_with_workers(source, _Indices(share, first_step), loader, seed=share.seed, pin=pin))


def _with_workers(source: Source, order: Iterable[list[int]], loader: LoaderConfig, *, seed: int, pin: bool) -> Any:
    """A DataLoader over the microbatches that `order` lists."""
    return torch.utils.data.DataLoader(
        _Batches(source),
        batch_size=None,
        sampler=cast(Any, order),
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor or 2,
        persistent_workers=loader.persistent_workers is not False,
        pin_memory=pin,
        collate_fn=_as_is,
        worker_init_fn=_as_a_worker,
        generator=torch.Generator().manual_seed(seed),
    )


@dataclass(frozen=True)
class _Indices:
    """What the DataLoader draws from: lists of sample indices, one for each microbatch.

    Lists, because a slice of a tensor would take the whole epoch's order with it into the worker.
    """

    share: Share
    first_step: int

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in self.share.microbatches(self.first_step))


@dataclass(kw_only=True)
class DeviceFeed:
    """Feeds the loop: waits for host batches, brings them to the device, and counts their valid tokens.

    With `prefetch` on CUDA the next step's copies are started on a stream of their own when this step's kernels are
    queued, so the data wait and the copies of the next step overlap this one's compute.
    """

    batches: Iterator[Batch]
    num_microbatches: int
    device: torch.device
    count_tokens: "Callable[[Sequence[Batch]], float | Tensor]"
    """Valid tokens of a step on all ranks, from this rank's microbatches."""
    on_device: bool = False
    non_blocking: bool = True
    prefetch: bool = False
    waited_s: float = 0.0
    """Time blocked in `wait` since the beginning, seconds."""
    _stays: bool = field(default=False, init=False)
    _ahead: "tuple[Sequence[Batch], float | Tensor, torch.cuda.Event] | None" = field(default=None, init=False)
    _stream: "torch.cuda.Stream | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Find out whether batches move at all, and make the copy stream only where it serves."""
        self._stays = self.on_device or self.device.type == "cpu"
        if self.prefetch and not self._stays:
            self._stream = torch.cuda.Stream(self.device)

    def wait(self) -> Sequence[Batch]:
        """The step's microbatches; empty if their copies were started in the step before."""
        if self._ahead is not None:
            return ()
        return self._next()

    def to_device(self, microbatches: Sequence[Batch]) -> StepData:
        """Copies of the microbatches on the device; waits for copies that were started earlier."""
        if self._stays:
            return StepData(microbatches, self.count_tokens(microbatches))
        if self._stream is None:
            return StepData([self._copy(batch) for batch in microbatches], self.count_tokens(microbatches))
        copies, num_tokens, ready = self._ahead or self._start_copies(microbatches)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(ready)
        for batch in copies:
            batch.map(lambda tensor: _used_on(stream, tensor))  # made on the copy stream, used on this one
        self._ahead = None
        return StepData(copies, num_tokens)

    def run_ahead(self, mark: Marker) -> None:
        """Fetch the next step's batch and start its copies; called when this step's kernels are queued."""
        if self._stream is not None and self._ahead is None:
            with mark(Span.DATA_WAIT):
                microbatches = self._next()
            with mark(Span.HOST_TO_DEVICE):
                self._ahead = self._start_copies(microbatches)

    def _next(self) -> Sequence[Batch]:
        start = time.perf_counter()
        microbatches = list(islice(self.batches, self.num_microbatches))
        self.waited_s += time.perf_counter() - start
        return microbatches

    def _copy(self, batch: Batch) -> Batch:
        return batch.map(lambda tensor: tensor.to(self.device, non_blocking=self.non_blocking))

    def _start_copies(
        self, microbatches: Sequence[Batch]
    ) -> "tuple[Sequence[Batch], float | Tensor, torch.cuda.Event]":
        num_tokens = self.count_tokens(microbatches)
        with torch.cuda.stream(self._stream):
            copies = [self._copy(batch) for batch in microbatches]
            ready = torch.cuda.Event()
            ready.record()
        return copies, num_tokens, ready


def _used_on(stream: "torch.cuda.Stream", tensor: "Tensor") -> "Tensor":
    """Tell the allocator that a tensor of another stream is used on this one."""
    tensor.record_stream(stream)
    return tensor


def token_counter(
    source: Source, tokens_per_step: int, reduce: "Callable[[Tensor], Tensor]", device: torch.device
) -> "Callable[[Sequence[Batch]], float | Tensor]":
    """Function that counts a step's valid tokens on all ranks.

    Where every label of the source counts, the number is known and nobody has to be asked; else the ranks add up.
    """
    if source.all_valid:
        return lambda microbatches: float(tokens_per_step)

    def count(microbatches: Sequence[Batch]) -> "Tensor":
        own = torch.stack([(batch.labels != -100).sum() for batch in microbatches]).sum()
        return reduce(own.to(device=device, dtype=torch.float32))

    return count


def held_out_batches(
    source: Source, share: Share, loader: LoaderConfig, device: torch.device
) -> Callable[[], Iterator[Batch]]:
    """Function that starts over: this rank's microbatches of the first step of `share`, on the device."""
    order = [indices.tolist() for indices in islice(share.microbatches(0), share.num_microbatches)]
    batches = _with_workers(source, order, loader, seed=share.seed, pin=False) if loader.num_workers else None

    def to_device(tensor: "Tensor") -> "Tensor":
        return tensor.to(device)

    def start() -> Iterator[Batch]:
        host = map(source.__getitems__, order) if batches is None else iter(batches)
        for batch in host:
            yield batch.map(to_device)

    return start
