"""From a source to the device: the loader, and the copies that run ahead of the step."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...profiling.record import Marker
from ...profiling.spans import Span
from ...strategies.base import Batch
from ..loop import StepData
from .config import LoaderConfig
from .copies import CopyClock
from .loader_meter import LoaderMeter
from .order import Share
from .source import Source
from .stages import Made, make
from .workers import by_processes, by_threads, received

if TYPE_CHECKING:
    from torch import Tensor


def _pinned(tensor: "Tensor") -> "Tensor":
    return tensor.pin_memory()


def host_batches(
    source: Source,
    share: Share,
    loader: LoaderConfig,
    *,
    first_step: int,
    pin: bool,
    meter: LoaderMeter | None = None,
) -> Iterator[Batch]:
    """The rank's microbatches on the host, from `first_step` on, without end; `meter` is told how each was made.

    Without workers the source is read in this process; with workers by them, in the same order.
    Raises: DataError for a sample that cannot be had.
    """
    if stream := getattr(source, "stream", None):
        batches = _told(stream(share, first_step), meter)
        return (batch.map(_pinned) for batch in batches) if pin else batches
    order = share.microbatches(first_step)
    if loader.num_workers and loader.worker_kind == "process":
        made = iter(by_processes(source, _Indices(share, first_step), loader, seed=share.seed, pin=pin))
        return _told(received(made), meter)
    if loader.num_workers:
        batches = _told(by_threads(source, (indices.tolist() for indices in order), loader), meter)
    else:
        batches = map(source.__getitems__, order)
        if meter is not None:
            batches = _told(map(partial(make, source), order), meter, ahead=False)
    return (batch.map(_pinned) for batch in batches) if pin else batches


def _told(made: Iterator[Made], meter: LoaderMeter | None, *, ahead: bool = True) -> Iterator[Batch]:
    """The microbatches, the meter told of each; they may lie ready if they are made `ahead`."""
    meter = meter or LoaderMeter()
    while True:
        if ahead:
            meter.asked()
        each = next(made, None)
        if each is None:
            return
        meter.received(each.making)
        yield each.batch


@dataclass(frozen=True)
class _Indices:
    """What the DataLoader draws from: lists of sample indices, one for each microbatch.

    Lists, because a slice of a tensor would take the whole epoch's order with it into the worker.
    """

    share: Share
    first_step: int

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in self.share.microbatches(self.first_step))


class _Ahead(NamedTuple):
    """A step's microbatches whose copies were started."""

    copies: Sequence[Batch]
    num_tokens: "float | Tensor"
    ready: "torch.cuda.Event"


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
    finish: "Callable[[Batch], Batch] | None" = None
    """What the source has left to do where the model is."""
    waited_s: float = 0.0
    """Time blocked in `wait` since the beginning, seconds."""
    copies: CopyClock = field(default_factory=CopyClock)
    began_s: float | None = field(default=None, init=False)
    """When the second step's data was asked for: the first also waits for the workers to start."""
    first_wait_s: float = field(default=0.0, init=False)
    _stays: bool = field(default=False, init=False)
    _ahead: "_Ahead | None" = field(default=None, init=False)
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
            return self._finished(microbatches, self.count_tokens(microbatches))
        if self._stream is None:
            start = self.copies.start()
            copied = [self._copy(batch) for batch in microbatches]
            self.copies.used(self.copies.stop(start), ahead=False)
            return self._finished(copied, self.count_tokens(microbatches))
        ahead = self._ahead or self._start_copies(microbatches)
        stream = torch.cuda.current_stream(self.device)
        self.copies.used(ahead.ready, ahead=self._ahead is not None)
        stream.wait_event(ahead.ready)
        for batch in ahead.copies:
            batch.map(lambda tensor: _used_on(stream, tensor))  # made on the copy stream, used on this one
        self._ahead = None
        return self._finished(ahead.copies, ahead.num_tokens)

    def _finished(self, microbatches: Sequence[Batch], num_tokens: "float | Tensor") -> StepData:
        return StepData([self.finish(batch) for batch in microbatches] if self.finish else microbatches, num_tokens)

    def run_ahead(self, mark: Marker) -> None:
        """Fetch the next step's batch and start its copies; called when this step's kernels are queued."""
        if self._stream is not None and self._ahead is None:
            with mark(Span.DATA_WAIT):
                microbatches = self._next()
            with mark(Span.HOST_TO_DEVICE):
                self._ahead = self._start_copies(microbatches)

    def _next(self) -> Sequence[Batch]:
        start = time.perf_counter()
        if self.began_s is None and self.waited_s:
            self.began_s, self.first_wait_s = start, self.waited_s
        microbatches = list(islice(self.batches, self.num_microbatches))
        self.waited_s += time.perf_counter() - start
        return microbatches

    def _copy(self, batch: Batch) -> Batch:
        return batch.map(lambda tensor: tensor.to(self.device, non_blocking=self.non_blocking))

    def _start_copies(self, microbatches: Sequence[Batch]) -> "_Ahead":
        num_tokens = self.count_tokens(microbatches)
        with torch.cuda.stream(self._stream):
            start = self.copies.start()
            copies = [self._copy(batch) for batch in microbatches]
            ready = self.copies.stop(start)
        return _Ahead(copies, num_tokens, ready)


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


def finisher(source: Source) -> "Callable[[Batch], Batch] | None":
    """What a source leaves to be done where the model is, if anything: numbers from bytes, say."""
    return getattr(source, "finish", None)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def held_out_batches(
    source: Source, share: Share, loader: LoaderConfig, device: torch.device
) -> Callable[[], Iterator[Batch]]:
    """Function that starts over: this rank's microbatches of the first step of `share`, on the device."""
    order = [indices.tolist() for indices in islice(share.microbatches(0), share.num_microbatches)]
    processes = loader.num_workers and loader.worker_kind == "process"
    batches = by_processes(source, order, loader, seed=share.seed, pin=False) if processes else None
    finish = finisher(source) or _as_it_is

    def to_device(tensor: "Tensor") -> "Tensor":
        return tensor.to(device)

    def start() -> Iterator[Batch]:
        if batches is not None:
            host = _told(received(iter(batches)), None)
        elif loader.num_workers:
            host = _told(by_threads(source, order, loader), None)
        else:
            host = map(source.__getitems__, order)
        for batch in host:
            yield finish(batch.map(to_device))

    return start
