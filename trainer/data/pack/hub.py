"""Datasets of Hugging Face: from a folder where one was saved, or by their name on the hub."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import DataError
from .documents import Reading


@lru_cache(maxsize=4)
def open_dataset(name: str, reading: Reading) -> Any:
    """A map-style dataset: rows by their number. Raises: DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("the `datasets` library is not installed; pip install 'stepladder[data]'") from error
    library: Any = datasets
    library.disable_progress_bars()
    try:
        if Path(name).is_dir():
            found = _from_folder(library, Path(name), reading)
        else:
            found = library.load_dataset(name, reading.config or None, split=reading.split)
    except DataError:
        raise
    except Exception as error:  # a folder that is none, no network, no such split: many kinds, one meaning
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name}: cannot be opened as a dataset ({first_line}); check name, config and split"
        ) from error
    return found


def _from_folder(library: Any, folder: Path, reading: Reading) -> Any:
    """What `save_to_disk` wrote, or a folder of Parquet or JSONL files."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return library.load_dataset(str(folder.resolve()), reading.config or None, split=reading.split)
    found = library.load_from_disk(str(folder))
    if not isinstance(found, dict):
        return found
    if reading.split not in found:
        raise DataError(f"{folder}: has the splits {', '.join(map(str, found))}, not {reading.split!r}; name one")
    return found[reading.split]
