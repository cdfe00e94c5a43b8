"""A trace file -> tables in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .assemble import Assembly
from .parse import Parser
from .piece import Piece
from .source import Limits, Source
from .tables import Trace, version_of

Progress = Callable[[Path, int], None]
"""Told the file and how many of its (packed) bytes are read."""


def read_trace(
    path: Path,
    *,
    detail: bool = False,
    limits: Limits | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Tables of one trace file, plain or gzip; memory grows with its events, not with its text.

    `detail` reads shapes, stacks, allocator events and occupancies too.
    Raises: TraceError if the file is missing, unreadable, not a trace, beyond the limits, or holds no event.
    """
    source = Source(path=path, limits=limits or Limits())
    parser = Parser(detail=detail)
    assembly = Assembly()
    num_threads = num_threads or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        for piece in _in_order(pool, parser.parse, source.pieces(), num_waiting=num_threads + 1):
            assembly.add(piece)
            if progress:
                progress(path, source.packed_bytes)
    if parser.num_unreadable:
        source.notes.append(f"{parser.num_unreadable} events cannot be read and were left out")
    if version_of(path) != source.version:
        source.notes.append("the file changed while it was read; look again when its writer is done")
    return assembly.trace(source, words=parser.words, detail=detail)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[bytes], Piece], pieces: Iterator[bytes], num_waiting: int
) -> Iterator[Piece]:
    """Results in the order of the pieces, of which no more than so many are held at a time."""
    waiting: deque[Future[Piece]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(work, piece))
        if len(waiting) >= num_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
