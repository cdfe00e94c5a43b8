"""Reads torch.distributed.checkpoint folders without running code that they bring.

torch unpickles `.metadata` and non-tensor items without restriction, and follows any path that the metadata names.
Here `.metadata` may only name the classes that describe shards, items are read with `weights_only=True`, and every file
must be a plain file inside the folder.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from .errors import CheckpointError

# Every global that the metadata of a checkpoint of ours names on torch 2.13, plus the other dtypes and path classes.
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    _METADATA: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"} | {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},  # where Python 3.13 pickles them to
}


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles the description of a checkpoint and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise CheckpointError(
                f"the metadata names {module}.{name}, which no checkpoint needs; the file is damaged or hostile"
            )
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """A reader that trusts neither the metadata nor the paths in it. Raises: CheckpointError."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the checkpoint, every file in it checked."""
        folder = Path(self.path)
        try:
            metadata: Any = _MetadataUnpickler(io.BytesIO((folder / ".metadata").read_bytes())).load()
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        except Exception as error:
            raise CheckpointError(f"{folder}: .metadata cannot be read ({error}); use another checkpoint") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{folder}: .metadata describes no checkpoint; use another one")
        storage: Any = metadata.storage_data
        for info in (storage or {}).values():
            relative = Path(str(info.relative_path))
            path = folder / relative
            if len(relative.parts) != 1 or path.is_symlink() or not path.is_file():
                raise CheckpointError(f"{folder}: names the file {relative}, which is not a plain file of its own")
        storage_meta = metadata.storage_meta or StorageMeta()
        storage_meta.load_id = self.load_id
        metadata.storage_meta = storage_meta
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """A planner that reads non-tensor items with `weights_only=True`."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a non-tensor item into its place. Raises: CheckpointError if it would run code."""
        name = read_item.dest_index.fqn
        try:
            loaded = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"the item {name} holds more than plain values; refused") from error
        if self.flatten_state_dict:
            _set_nested(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded


def _set_nested(target: Any, path: Any, value: Any) -> None:
    """`target[path[0]][path[1]]... = value`."""
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
