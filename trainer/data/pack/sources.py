"""Which sources there are, and into which pieces they are cut: by their content alone, whoever reads them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, get_args

from ..errors import DataError
from .documents import Format, Piece, Reading

_PIECE_BYTES = 1 << 20
"""Small enough that little is lost when a process is killed, large enough that starting on one costs nothing."""
_ROWS = 4096
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}


def pieces_of(
    sources: Sequence[str], reading: Reading, given: Format | None = None, piece_bytes: int = _PIECE_BYTES
) -> list[Piece]:
    """All pieces of all sources, in order. Raises: DataError if one is not there, or there is nothing in any."""
    found = [piece for source in sources for piece in _pieces(source, reading, given, piece_bytes)]
    if not found:
        raise DataError(f"{', '.join(sources) or 'no source'}: there is nothing in it; give files that hold documents")
    return found


def _pieces(source: str, reading: Reading, given: Format | None, piece_bytes: int) -> Iterator[Piece]:
    if source == "stdlib" or given == "stdlib":
        from ..tokens import stdlib_names, stdlib_root

        root, names = stdlib_root(), list(stdlib_names())
        yield from _groups("stdlib", [(name, (root / name).stat().st_size) for name in names], piece_bytes)
        return
    path = Path(source.removeprefix("hub:"))
    if given == "hub" or source.startswith("hub:") or (path.is_dir() and _is_saved_dataset(path)):
        yield from _of_dataset(source.removeprefix("hub:"), reading)
        return
    files = _files(source, given)
    texts = [(str(file), file.stat().st_size) for file, kind in files if kind == "text"]
    yield from _groups("text", texts, piece_bytes)
    for file, kind in files:
        if kind == "parquet":
            yield from _of_parquet(file, piece_bytes)
        elif kind in ("jsonl", "chat"):
            yield from _of_lines(file, kind, piece_bytes)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _files(source: str, given: Format | None) -> list[tuple[Path, Format]]:
    """The files of a path, a folder or a glob pattern, sorted, each with its format. Raises: DataError."""
    from ..config import matching

    path = Path(source)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else matching(source)
    if not files:
        raise DataError(f"{source}: no such file; check the path (it is relative to {Path.cwd()})")
    if given is not None:
        return [(file, given) for file in files]
    known: list[tuple[Path, Format]] = [(file, kind) for file in files if (kind := _SUFFIXES.get(_suffix(file)))]
    if not known:
        formats = ", ".join(get_args(Format))
        raise DataError(f"{source}: nothing here says by its name what it is; add --format, one of {formats}")
    return known


def _suffix(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _groups(kind: str, files: Sequence[tuple[str, int]], piece_bytes: int) -> Iterator[Piece]:
    """Consecutive files of about a piece's size."""
    group: list[str] = []
    size = 0
    for name, num_bytes in files:
        group.append(name)
        size += num_bytes
        if size >= piece_bytes:
            yield Piece(format=cast(Format, kind), paths=tuple(group), num_bytes=size)
            group, size = [], 0
    if group:
        yield Piece(format=cast(Format, kind), paths=tuple(group), num_bytes=size)


def _of_lines(file: Path, kind: Format, piece_bytes: int) -> Iterator[Piece]:
    size, name = file.stat().st_size, (str(file),)
    if file.suffix == ".gz":
        yield Piece(format=kind, paths=name, num_bytes=size)
        return
    for begin in range(0, size, piece_bytes):
        end = min(begin + piece_bytes, size)
        yield Piece(format=kind, paths=name, begin=begin, end=end, num_bytes=end - begin)


def _of_parquet(file: Path, piece_bytes: int) -> Iterator[Piece]:
    """Consecutive row groups of about a piece's size."""
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.read_metadata(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no Parquet file ({str(error).splitlines()[0]}); remove or replace it") from error
    begin = size = 0
    for i in range(metadata.num_row_groups):
        size += metadata.row_group(i).total_byte_size
        if size >= piece_bytes or i + 1 == metadata.num_row_groups:
            yield Piece(format="parquet", paths=(str(file),), begin=begin, end=i + 1, num_bytes=size)
            begin, size = i + 1, 0


def _of_dataset(name: str, reading: Reading) -> Iterator[Piece]:
    from .hub import open_dataset

    rows = open_dataset(name, reading)
    per_row = max(1, int(rows.data.nbytes / max(1, rows.num_rows)))
    for begin in range(0, rows.num_rows, _ROWS):
        end = min(begin + _ROWS, rows.num_rows)
        yield Piece(format="hub", paths=(name,), begin=begin, end=end, num_bytes=(end - begin) * per_row)
