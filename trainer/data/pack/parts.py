"""What a process of a packing does: one piece after the other, each into a part of its own."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from .assemble import MOST_SAID, Part, empty_part
from .chat import Template
from .documents import Bad, Document, Format, Piece, Reading, read_piece
from .folder import SPLITS, id_type
from .tokenizer import Tokenizer, one_thread, open_tokenizer

_BATCH_BYTES = 1 << 20
"""Of text in one call of the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What is to be packed, and how."""

    sources: tuple[str, ...]
    tokenizer: str = "bytes"
    """`bytes`, a tokenizer.json, or train:VOCAB."""
    end_token: str | None = None
    format: Format | None = None
    """Left out: by the names of the files."""
    reading: Reading = field(default_factory=Reading)
    template: Template = field(default_factory=Template)
    """Of chats."""
    held_out: float = 0.05
    on_error: Literal["stop", "skip"] = "stop"
    error_budget: int = 100
    """Documents that may be skipped."""


BEARABLE = {"on_error": "", "error_budget": 0}
"""Settings in which two packings may differ and still be the same: no part is kept that one of them would refuse."""

Made = tuple[int, int, int, tuple[str, ...]]
"""Number of a piece, its tokens, what was skipped, and why."""


def alone() -> None:
    """How a process of a packing begins: with one thread, and a Ctrl-C is not for it but for who started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread()


def make_part(folder: str, number: int) -> Made:
    """Tokenise one piece and leave its part."""
    parts = Path(folder)
    packing, pieces, tokenizer, width = _job(parts, (parts / "job.json").stat().st_mtime_ns)
    made = _tokenised(pieces[number], packing, tokenizer, width)
    if packing.on_error == "skip" or not made.num_skipped:
        made.write(part_path(parts, number))
    return number, sum(map(len, made.tokens.values())), made.num_skipped, made.first_skipped


@lru_cache(maxsize=2)
def _job(parts: Path, written_ns: int) -> tuple[Packing, list[Piece], Tokenizer, int]:
    """What a process needs, read once."""
    job: dict[str, Any] = json.loads((parts / "job.json").read_text())
    settings: dict[str, Any] = job["packing"]
    settings["sources"] = tuple(settings["sources"])
    settings["reading"], settings["template"] = Reading(**settings["reading"]), Template(**settings["template"])
    packing = Packing(**settings)
    pieces = [Piece(**each | {"paths": tuple(each["paths"])}) for each in job["pieces"]]
    return packing, pieces, open_tokenizer(packing.tokenizer, packing.end_token), job["width"]


def _tokenised(piece: Piece, packing: Packing, tokenizer: Tokenizer, width: int) -> Part:
    """The part of a piece."""
    import numpy as np

    from ..tokens import is_held_out, name_of_text

    part = empty_part(width)
    skipped: list[str] = []
    kept: dict[str, list[Any]] = {split: [] for split in SPLITS}
    counted: dict[str, list[Any]] = {split: [] for split in SPLITS}
    end = np.array([tokenizer.end_id], dtype=np.uint32)

    def keep(document: Document, ids: Any, counts: Any) -> None:
        name = document.name or name_of_text(_text(document))
        split = "held_out" if packing.held_out and is_held_out(name, packing.held_out) else "train"
        kept[split].append(np.concatenate([ids, end]))
        if counts is not None:
            counted[split].append(np.concatenate([counts, np.zeros(1, np.uint8)]))

    for some in _batches(piece, packing, skipped, part):
        if piece.format == "chat":
            for document in some:
                keep(document, *packing.template.encode(document, tokenizer))
        else:
            for document, ids in zip(some, tokenizer.encode([each.text for each in some]), strict=True):
                keep(document, ids, None)
    for split in SPLITS:
        part.lengths[split] = np.array([len(ids) for ids in kept[split]], dtype=np.uint64)
        if kept[split]:
            part.tokens[split] = np.concatenate(kept[split]).astype(id_type(width))
        if piece.format == "chat":
            part.counts[split] = np.concatenate([np.empty(0, np.uint8), *counted[split]])
    part.num_skipped, part.first_skipped = len(skipped), tuple(skipped[:MOST_SAID])
    return part


def _batches(piece: Piece, packing: Packing, skipped: list[str], part: Part) -> Iterator[list[Document]]:
    """Documents with text, about a megabyte at a time; what is left out is noted."""
    some: list[Document] = []
    size = 0
    for document in read_piece(piece, packing.reading):
        if isinstance(document, Bad):
            skipped.append(document.said)
        elif not document.text and not document.messages:
            part.num_empty += 1
        else:
            some.append(document)
            size += len(document.text)
            if size >= _BATCH_BYTES or len(some) >= 4096:
                yield some
                some, size = [], 0
    if some:
        yield some


def _text(document: Document) -> str | bytes:
    return document.text or json.dumps(document.messages)


def part_path(parts: Path, number: int) -> Path:
    """Where the part of a piece is kept."""
    return parts / f"{number:07d}.npz"
