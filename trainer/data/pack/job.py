"""The packing itself: pieces to parts in several processes, each part kept, so that a killed packing goes on.

[Note: the same bytes]
Pieces follow from the sources, a part from its piece and the tokenizer, and parts are put together in the order of the
pieces. So neither the number of processes nor a restart changes a byte.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ....profiling.capture import publish
from ..errors import DataError
from .assemble import assemble, fingerprint_of
from .documents import Document, Piece, read_piece
from .folder import INDEX, TOKENIZER, Index, read_index, width_of
from .parts import BEARABLE, Made, Packing, alone, make_part, part_path
from .sources import pieces_of
from .tokenizer import Tokenizer, open_tokenizer, train, vocabulary_to_train

_TRAINING_BYTES = 32 << 20
"""Of text to learn a tokenizer from; more changes it little."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a packing is."""

    done_bytes: int
    of_bytes: int
    num_tokens: int
    """Of the parts made now; those of an earlier start are not counted."""
    made_bytes: int
    seconds: float


Look = Callable[[Progress], None]


def pack(packing: Packing, out: Path, *, workers: int = 1, look: Look = lambda progress: None) -> Index:
    """Fill the folder `out`, or go on filling it.

    Raises: DataError if a source or the tokenizer cannot be used, or `out` holds something else.
    """
    pieces = pieces_of(packing.sources, packing.reading, packing.format)
    wanted = fingerprint_of([asdict(packing) | BEARABLE, _identity(pieces, packing)])
    try:
        if (index := _finished(out, wanted)) is None:
            out.mkdir(parents=True, exist_ok=True)
            with _alone(out):
                index = _finished(out, wanted) or _filled(packing, pieces, wanted, out, workers, look)
    except OSError as error:
        raise DataError(
            f"--out {out}: cannot be written ({error.strerror or error}); free space or change it"
        ) from error
    return index


def _finished(out: Path, wanted: str) -> Index | None:
    """What a folder holds already; None if it is not finished. Raises: DataError if that is something else."""
    if not (out / INDEX).is_file():
        return None
    index = read_index(out)
    if index.made_from.get("packing") == wanted:
        return index
    raise DataError(f"--out {out}: holds tokens that were packed from something else; choose another folder")


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """Hold the folder itself, which leaves no file behind and ends with the process. Raises: DataError if it is held.

    A file system that cannot lock a folder lets everyone in.
    """
    held = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise DataError(
            f"--out {out}: another packing is at work there; wait until it is done, or choose another folder"
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(held)


def _filled(packing: Packing, pieces: list[Piece], wanted: str, out: Path, workers: int, look: Look) -> Index:
    """Raises: DataError, OSError."""
    parts = out / ".parts"
    _begin(out, parts, wanted)
    tokenizer = _tokenizer(packing, pieces, out)
    width = width_of(tokenizer.num_ids)
    job: dict[str, Any] = {
        "packing": asdict(packing) | {"tokenizer": str(out / TOKENIZER) if tokenizer.name != "bytes" else "bytes"},
        "pieces": [asdict(piece) for piece in pieces],
        "width": width,
    }
    publish(parts / "job.json", lambda partial: partial.write_text(json.dumps(job)))
    _make_parts(parts, pieces, packing, workers, look)
    paths = [part_path(parts, i) for i in range(len(pieces))]
    made = assemble(out, paths, width=width, held_out=packing.held_out)
    _within_budget(packing, made.num_skipped, made.first_skipped)
    index = Index(
        width=width,
        num_ids=tokenizer.num_ids,
        end_id=tokenizer.end_id,
        tokenizer=tokenizer.fingerprint,
        made_from={"packing": wanted, "sources": list(packing.sources), "tokenizer": packing.tokenizer},
        num_empty=made.num_empty,
        num_skipped=made.num_skipped,
        first_skipped=made.first_skipped,
        splits=made.splits,
    )
    index.write(out)
    shutil.rmtree(parts, ignore_errors=True)
    return index


def _identity(pieces: list[Piece], packing: Packing) -> list[Any]:
    """What tells whether the sources are those of an earlier start: sizes and times, not the content."""
    stats: list[Any] = []
    named = packing.tokenizer
    paths = sorted({path for piece in pieces if piece.format != "stdlib" for path in piece.paths})
    for name in [*paths, *([named] if Path(named).exists() else [])]:
        path = Path(name)
        at = path.stat() if path.exists() else None
        stats.append([str(path.resolve()), at and at.st_size, at and at.st_mtime_ns])
    return [stats, [[*map(str, vars(piece).values())] for piece in pieces]]


def _begin(out: Path, parts: Path, wanted: str) -> None:
    """Parts of an earlier start stay if they are of the same packing. Raises: DataError if the folder is another's."""
    stamp = parts / "packing"
    if stamp.is_file():
        if stamp.read_text() == wanted:
            return
        raise DataError(
            f"--out {out}: an unfinished packing of something else is in it (sources or settings have changed); "
            f"remove the folder or choose another one"
        )
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"--out {out}: is not empty; choose a new folder")
    parts.mkdir(parents=True, exist_ok=True)
    publish(stamp, lambda partial: partial.write_text(wanted))


def _tokenizer(packing: Packing, pieces: list[Piece], out: Path) -> Tokenizer:
    """The tokenizer, a copy of which goes into the folder; one that is to be trained is, unless that was done."""
    own = out / TOKENIZER
    if num_ids := vocabulary_to_train(packing.tokenizer):
        if not own.is_file():
            train(_texts_to_learn(pieces, packing), num_ids, own)
        return open_tokenizer(str(own), packing.end_token)
    tokenizer = open_tokenizer(packing.tokenizer, packing.end_token)
    _ = tokenizer.end_id  # one without is refused here
    if tokenizer.name != "bytes":
        shutil.copyfile(tokenizer.name, own)
    return tokenizer


def _texts_to_learn(pieces: list[Piece], packing: Packing) -> Iterator[str]:
    """Texts of pieces from all over the sources, about as much as is enough."""
    total = sum(piece.num_bytes for piece in pieces)
    every = max(1, total // _TRAINING_BYTES)
    for piece in pieces[::every]:
        for document in read_piece(piece, packing.reading):
            if isinstance(document, Document):
                text = document.text
                yield text if isinstance(text, str) else text.decode(errors="replace")
                yield from (content for _, content in document.messages)


def _make_parts(parts: Path, pieces: list[Piece], packing: Packing, workers: int, look: Look) -> None:
    """Every part that is not there yet."""
    missing = [i for i in range(len(pieces)) if not part_path(parts, i).is_file()]
    of_bytes = sum(piece.num_bytes for piece in pieces)
    before = of_bytes - sum(pieces[i].num_bytes for i in missing)
    began_s = time.monotonic()
    made_bytes = num_tokens = num_skipped = 0
    made = _in_processes(parts, missing, workers) if workers > 1 and len(missing) > 1 else _here(parts, missing)
    with closing(made):
        for i, tokens, skipped, said in made:
            made_bytes, num_tokens = made_bytes + pieces[i].num_bytes, num_tokens + tokens
            num_skipped += skipped
            _within_budget(packing, num_skipped, said)
            look(
                Progress(
                    done_bytes=before + made_bytes,
                    of_bytes=of_bytes,
                    num_tokens=num_tokens,
                    made_bytes=made_bytes,
                    seconds=time.monotonic() - began_s,
                )
            )


def _within_budget(packing: Packing, num_skipped: int, said: tuple[str, ...]) -> None:
    if num_skipped and packing.on_error == "stop":
        raise DataError(f"{said[0]}; repair it, or skip such documents with --on-error skip")
    if num_skipped > packing.error_budget:
        raise DataError(
            f"{said[0] if said else 'documents'}: one of more than {packing.error_budget} documents that cannot be "
            f"read; repair them, or raise --error-budget"
        )


def _here(parts: Path, missing: list[int]) -> Generator[Made]:
    yield from (make_part(str(parts), i) for i in missing)


def _in_processes(parts: Path, missing: list[int], workers: int) -> Generator[Made]:
    """As they are finished; a few more are handed out than are worked on. Raises: DataError if a process dies."""
    import multiprocessing

    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=alone)
    try:
        waiting = iter(missing)
        running: set[Future[Made]] = set()
        while True:
            some = islice(waiting, 2 * workers - len(running))
            running |= {pool.submit(make_part, str(parts), i) for i in some}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process of the packing was killed, for want of memory perhaps; the same command goes on from where it "
            "is, with fewer --workers if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """A process for each core that this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
