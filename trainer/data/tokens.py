"""Corpora as flat files of bytes, built once in a cache and memory-mapped from then on."""

import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .config import FilesCorpus, StdlibCorpus, matching
from .errors import DataError
from .wanted import Say, silent

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "held_out")
_SEPARATOR = b"\x00"  # between documents; text does not contain it


@dataclass(frozen=True)
class Document:
    """One document and the name by whose hash it is put into a split."""

    name: str
    text: bytes


def cache_folder() -> Path:
    """Where built corpora are kept: `STEPLADDER_CACHE`, else `stepladder` in the user's cache folder."""
    given = os.environ.get("STEPLADDER_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "stepladder"


def stdlib_root() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_names() -> Iterator[str]:
    """Every module of the standard library, in the order of its path; no site-packages, no caches."""
    root = stdlib_root()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if (
            not name.startswith(("site-packages/", "dist-packages/", "lib2to3/tests/data/"))
            and "/__pycache__/" not in name
        ):
            yield name


def stdlib_documents() -> Iterator[Document]:
    """Their text."""
    for name in stdlib_names():
        path = stdlib_root() / name
        try:
            yield Document(name, path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); repair the Python installation") from error


def files_documents(corpus: FilesCorpus) -> Iterator[Document]:
    """Documents of text, JSONL or Parquet files, through Hugging Face `datasets`. Raises: DataError."""
    import datasets

    paths = [str(path) for pattern in corpus.paths for path in matching(pattern)]
    builder = {"text": "text", "jsonl": "json", "parquet": "parquet"}[corpus.format]
    options: dict[str, Any] = {"sample_by": "document"} if corpus.format == "text" else {}
    loading: Any = datasets
    loading.disable_progress_bars()
    try:
        rows: Any = loading.load_dataset(builder, data_files=paths, split="train", streaming=True, **options)
        for number, row in enumerate(rows, start=1):
            text = cast(Mapping[str, Any], row).get(corpus.column)
            if not isinstance(text, str):
                columns = ", ".join(sorted(row))
                what = "holds no text" if corpus.column in row else "is not there"
                raise DataError(
                    f"data.files.column = {corpus.column!r}: row {number} has {columns}, but this {what}; "
                    f"name a column of strings"
                )
            raw = text.encode()
            yield Document(name_of_text(raw), raw)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds for a damaged file; each means the same to a user
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data.files.paths = {list(corpus.paths)}: not readable as {corpus.format} ({first_line})"
        ) from error


def name_of_text(text: str | bytes) -> str:
    """What a document without a name is called: a hash of its text."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def is_held_out(name: str, part: float) -> bool:
    """Whether a document belongs to the held-out part: a hash of its name, so the split never moves."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < part * 2**64


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A built corpus: a file of bytes for each split."""

    folder: Path
    fingerprint: str
    """Changes when the content changes; a checkpoint keeps it."""

    def tokens(self, split: str) -> "Tensor":
        """All tokens of a split, [N] uint8, memory-mapped."""
        import torch

        path = self.folder / f"{split}.u8"
        return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def open_corpus(config: StdlibCorpus | FilesCorpus, say: Say = silent) -> Corpus:
    """The corpus of a recipe, built now if the cache does not hold it.

    Raises: DataError if a source cannot be read, a split is empty, or the cache cannot be written.
    """
    if isinstance(config, StdlibCorpus):
        identity = f"stdlib {sys.version} {config!r}"
        documents = stdlib_documents
    else:
        paths = [path for pattern in config.paths for path in matching(pattern)]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        identity = f"files {stats!r} {config!r}"
        documents = partial(files_documents, config)
    fingerprint = hashlib.sha256(f"v2 {identity}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"corpus-{fingerprint}"
    if not _whole(folder):
        say(f"data        reading the corpus once, into {folder}")
        _build(folder, _told(documents(), say), config.held_out)
    return Corpus(folder=folder, fingerprint=fingerprint)


def _whole(folder: Path) -> bool:
    """Whether the cache holds a corpus with both of its parts as they were written; what is left of another goes."""
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        if all((folder / f"{split}.u8").stat().st_size == sizes[split] for split in SPLITS):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _told(documents: Iterable[Document], say: Say) -> Iterator[Document]:
    """The documents, with a line every ten seconds and one at the end."""
    count = num_bytes = 0
    told_s = time.monotonic()
    for document in documents:
        count, num_bytes = count + 1, num_bytes + len(document.text)
        if time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            say(f"data        {count:,} documents, {num_bytes / 1e6:,.1f} MB so far")
        yield document
    say(f"data        {count:,} documents, {num_bytes / 1e6:,.1f} MB")


def _build(folder: Path, documents: Iterable[Document], held_out: float) -> None:
    """Write both splits beside the target and rename: two ranks may build at once, and the first one wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            partial_folder = Path(beside) / folder.name
            partial_folder.mkdir()
            with (partial_folder / "train.u8").open("wb") as train, (partial_folder / "held_out.u8").open("wb") as held:
                _write(documents, train, held, held_out)
            _share_out(partial_folder / "train.u8", partial_folder / "held_out.u8", held_out)
            sizes = {split: (partial_folder / f"{split}.u8").stat().st_size for split in SPLITS}
            (partial_folder / "sizes.json").write_text(json.dumps(sizes))
            try:
                partial_folder.rename(folder)
            except OSError:
                if not folder.is_dir():  # another rank was faster; its content is the same
                    raise
    except OSError as error:
        raise DataError(
            f"{folder.parent}: the corpus cache cannot be written ({error.strerror}); "
            f"set STEPLADDER_CACHE to a folder that can"
        ) from error


def _share_out(train: Path, held: Path, part: float) -> None:
    """Where all documents fell into one split, a single file say, hold out its last bytes instead.

    Raises: DataError if there are none.
    """
    if not train.stat().st_size:
        held.replace(train)
        held.touch()
    if not held.stat().st_size:
        size = train.stat().st_size
        if size < 2:
            raise DataError("data: there is no text in it; give documents that are not empty")
        keep = min(max(1, int(size * (1 - part))), size - 1)
        with train.open("r+b") as file:
            file.seek(keep)
            held.write_bytes(file.read())
            file.truncate(keep)


def _write(documents: Iterable[Document], train: BinaryIO, held: BinaryIO, part: float) -> None:
    for document in documents:
        file = held if is_held_out(document.name, part) else train
        file.write(document.text)
        file.write(_SEPARATOR)
