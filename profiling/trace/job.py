"""The traces of a job: work done on each of them in processes of its own."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import TraceError
from .cache import load_cached, save_cached
from .heap import give_back
from .load import Progress, read_trace
from .source import Limits
from .tables import Trace, job_of, rank_of

T = TypeVar("T")
Told = Callable[[int, int], None]
"""Told how many bytes of all files are read, packed as they are, of how many."""

_ASK_EVERY_S = 0.1
_ENDED = 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How traces are read."""

    detail: bool = False
    """Shapes, stacks, allocator events and occupancies too."""
    cache: bool = True
    """Look for tables beside the trace, and leave them there."""
    limits: Limits = field(default_factory=Limits)
    num_processes: int = 0
    """Traces that are read at once; 0 for the number of cores."""


@dataclass(frozen=True, kw_only=True)
class Done(Generic[T]):
    """What became of one file."""

    path: Path
    rank: int
    is_named: bool
    """Whether the rank is that of the file's name, because the file itself says none."""
    world_size: int | None
    notes: tuple[str, ...]
    num_bytes: int
    result: T


def open_trace(
    path: Path, reading: Reading, *, num_threads: int | None = None, progress: Progress | None = None
) -> Trace:
    """The tables of a file, from its cache if there is one. Raises: TraceError."""
    if reading.cache and (kept := load_cached(path, detail=reading.detail)):
        return kept
    trace = read_trace(path, detail=reading.detail, limits=reading.limits, num_threads=num_threads, progress=progress)
    give_back()
    return save_cached(trace) if reading.cache else trace


def for_each(
    files: Sequence[Path],
    work: Callable[[Trace], T],
    reading: Reading | None = None,
    *,
    progress: Told | None = None,
) -> tuple[list[Done[T]], list[str]]:
    """Results by rank, and what could not be read, a sentence each; `work` must be a function of a module.

    One trace is in memory for each process, however many there are. Raises: TraceError if no file can be read.
    """
    reading = reading or Reading()
    problems: list[str] = []
    made: list[Done[T]] = []
    num_processes = min(len(files), reading.num_processes or os.cpu_count() or 1)
    if num_processes <= 1:
        _in_this_process(files, work, reading, made, problems, progress)
    else:
        _in_processes(files, work, reading, num_processes, made, problems, progress)
    if not made:
        raise TraceError("; ".join(problems))
    return _with_ranks(made, files, problems), problems


def _collect(get: Callable[[], Done[T]], made: list[Done[T]], problems: list[str]) -> None:
    try:
        made.append(get())
    except TraceError as error:
        problems.append(str(error))


def _in_this_process(
    files: Sequence[Path],
    work: Callable[[Trace], T],
    reading: Reading,
    made: list[Done[T]],
    problems: list[str],
    progress: Told | None,
) -> None:
    sizes = [_size(path) for path in files]
    for place, path in enumerate(files):
        before = sum(sizes[:place])

        def tell(_: Path, num_bytes: int, before: int = before) -> None:
            if progress:
                progress(before + num_bytes, sum(sizes))

        _collect(lambda path=path, tell=tell: _one(path, work, reading, None, tell), made, problems)
        tell(path, sizes[place])


def _in_processes(
    files: Sequence[Path],
    work: Callable[[Trace], T],
    reading: Reading,
    num_processes: int,
    made: list[Done[T]],
    problems: list[str],
    progress: Told | None,
) -> None:
    context = multiprocessing.get_context("spawn")  # polars has threads, which a fork would not have
    sizes = [_size(path) for path in files]
    board = _board(len(files)) if progress else nullcontext((None, memoryview(b"")))
    waiting: dict[Future[Done[T]], tuple[int, Path]] = {}
    with (
        board as (name, slots),
        ProcessPoolExecutor(num_processes, mp_context=context, initializer=_end_tidily) as pool,
        _ended_with_us(),
    ):
        with _without_interrupts():
            for place, path in enumerate(files):
                waiting[pool.submit(_one_told, path, work, reading, name, place)] = place, path
        while waiting:
            # An interrupt that the system gives to another thread does not wake this one.
            ended, _ = wait(waiting, _ASK_EVERY_S, FIRST_COMPLETED)
            for future in ended:
                place, path = waiting.pop(future)
                try:
                    _collect(future.result, made, problems)
                except BrokenProcessPool:
                    problems.append(f"{path}: the process that read it was killed, perhaps for want of memory")
                if progress:
                    slots[place] = sizes[place]
            if progress:
                progress(min(sum(slots[: len(files)]), sum(sizes)), sum(sizes))


@contextmanager
def _without_interrupts() -> Generator[None]:
    """Processes that begin here take no Ctrl-C, which a terminal sends to all: each would print where it was."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ended_with_us() -> Generator[None]:
    """Where an interrupt ends the processes that were begun here; their pool then gives up what still waits."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise


def _end_tidily() -> None:
    """In a process of its own: leave no half of a cache behind when told to end."""

    def end(number: int, frame: object) -> None:
        sys.exit(_ENDED)

    signal.signal(signal.SIGTERM, end)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is gone, which reading it will say
        return 0


@contextmanager
def _board(num_slots: int, name: str | None = None) -> Generator[tuple[str, memoryview]]:
    """Whole numbers, 0 at first, that processes write and this one reads; a new board, or that of a name.

    Each has one writer, so that there is no lock.
    """
    board = SharedMemory(name, create=name is None, size=8 * num_slots)
    try:
        assert board.buf is not None  # it is open
        with board.buf.cast("q") as slots:
            yield board.name, slots
    finally:
        board.close()
        if name is None:
            board.unlink()


def _one_told(path: Path, work: Callable[[Trace], T], reading: Reading, board: str | None, place: int) -> Done[T]:
    """In a process of its own, which writes on a board how far it is."""
    try:
        if board is None:
            return _one(path, work, reading, 1, None)
        with _board(0, board) as (_, slots):

            def tell(_: Path, num_bytes: int) -> None:
                slots[place] = num_bytes

            return _one(path, work, reading, 1, tell)
    except SystemExit:  # a pool would send it as a result, and go on with the next file
        os._exit(_ENDED)


def _one(
    path: Path, work: Callable[[Trace], T], reading: Reading, num_threads: int | None, tell: Progress | None
) -> Done[T]:
    trace = open_trace(path, reading, num_threads=num_threads, progress=tell)
    if tell:
        tell(path, _size(path))  # all of it, if it was not read because there is a cache
    size = job_of(trace.header).get("world_size")
    return Done(
        path=path,
        rank=-1 if trace.rank is None else trace.rank,
        is_named=rank_of(trace.header) is None,
        world_size=size if isinstance(size, int) else None,
        notes=trace.notes,
        num_bytes=trace.num_bytes,
        result=work(trace),
    )


def _with_ranks(made: list[Done[T]], files: Sequence[Path], problems: list[str]) -> list[Done[T]]:
    """By rank; files that do not say theirs get the free ones in order, and of two with the same the first stays."""
    order = {path: place for place, path in enumerate(files)}
    made = sorted(made, key=lambda each: order[each.path])
    taken: dict[int, Done[T]] = {}
    for each in (each for each in made if each.rank >= 0):
        if each.rank in taken:
            problems.append(
                f"{each.path}: {'is named' if each.is_named else 'says that it is'} rank {each.rank}, as is"
                f" {taken[each.rank].path}, and was left out; give the traces of one job, one file a rank"
            )
        else:
            taken[each.rank] = each
    free = (rank for rank in range(len(files) + len(taken)) if rank not in taken)
    nameless = [each for each in made if each.rank < 0]
    ranked = list(taken.values()) + [replace(each, rank=next(free)) for each in nameless]
    sizes = {each.world_size for each in ranked if each.world_size is not None}
    if len(sizes) > 1:
        problems.append(
            f"the traces are of jobs of different sizes ({', '.join(map(str, sorted(sizes)))} ranks), so what is said "
            "about ranks together may mean nothing; give the traces of one job"
        )
    return sorted(ranked, key=lambda each: each.rank)
