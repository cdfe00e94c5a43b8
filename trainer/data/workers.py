"""Who makes microbatches: threads of this process, or processes beside it; always in the order they are asked for."""

import gc
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch

from .config import LoaderConfig
from .errors import LOST_WORKER, DataError, lost_worker
from .source import Source
from .stages import Made, make

_SIGNAL_S = 0.2  # in which the death of a child comes to be known


class _Refusal(NamedTuple):
    """A `DataError` on its way out of a worker process, which would else arrive as a traceback."""

    said: str


def _as_is(batch: Any) -> Any:
    return batch


def _as_a_worker(worker: int) -> None:
    """Undo what a forked worker has from its rank: the rank stops after a whole step, a worker when it is told to.

    The loaders' `generator` has the same reason: drawing a seed from torch's own would move the rank's random state.
    One thread each: workers are as many as shall compute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    gc.enable()


class _Batches(torch.utils.data.Dataset["Made | _Refusal"]):
    """A source whose items are whole microbatches: an index is the list of sample indices."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, indices: Sequence[int]) -> "Made | _Refusal":
        try:
            return make(self.source, indices)
        except DataError as error:
            return _Refusal(str(error))
        except Exception as error:
            raise RuntimeError(f"samples {list(indices)} could not be made: {error!r}") from error


def by_processes(source: Source, order: Iterable[list[int]], loader: LoaderConfig, *, seed: int, pin: bool) -> Any:
    """A DataLoader over the microbatches that `order` lists; give its iterators to `received`."""
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


def received(answers: "Iterator[Made | _Refusal]") -> Iterator[Made]:
    """What worker processes have made. Raises: DataError if one could not, or has died."""
    while True:
        try:
            answer = next(answers, None)
        except RuntimeError as error:
            if (said := lost_worker(error)) is None:
                raise
            raise DataError(said) from error
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # the tensors of a worker go with it
            with suppress(RuntimeError):
                time.sleep(_SIGNAL_S)
            raise DataError(LOST_WORKER.format("", "has died")) from error
        if answer is None:
            return
        if isinstance(answer, _Refusal):
            raise DataError(answer.said)
        yield answer


def by_threads(source: Source, order: Iterable[Sequence[int]], loader: LoaderConfig) -> Iterator[Made]:
    """The same by threads: nothing crosses a pipe, and decoders work outside of Python's lock."""
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(loader.num_workers, thread_name_prefix="loader")
    try:
        for indices in order:
            waiting.append(pool.submit(make, source, indices))
            if len(waiting) >= loader.num_workers * (loader.prefetch_factor or 2):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
