"""A user's map-style dataset as a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...strategies.base import Batch
from ..own_file import FAILURES, OwnFileError, call, load, told
from .errors import DataError
from .module_config import ModuleData
from .wanted import Need

if TYPE_CHECKING:
    from collections.abc import Sequence


class ModuleSource:
    """What `data(split)` of a file returns, a batch at a time."""

    all_valid = False
    on_device = False

    def __init__(self, file: str, split: str) -> None:
        self.file = file
        try:
            self.dataset: Any = call(file, "data", split)
            self.num_samples = len(self.dataset)
        except OwnFileError as error:
            raise DataError(str(error)) from error
        except FAILURES as error:
            raise DataError(told(error) or self._no_length(split, error)) from error
        self.fingerprint = f"{Path(file).name}-{split}-{self.num_samples}"

    def _no_length(self, split: str, error: BaseException) -> str:
        """Why `len` failed outside the file: there is no length, or none that can be."""
        what = "no length" if isinstance(error, TypeError) else f"no usable length ({error})"
        return (
            f"{self.file}: data({split!r}) returns {type(self.dataset).__name__}, which has {what}; return a "
            f"map-style dataset, with __len__ and __getitem__"
        )

    def __len__(self) -> int:
        """Samples of the split."""
        return self.num_samples

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """The samples through `collate`, or torch's default. Raises: DataError with the file's line, or the samples."""
        chosen = cast("list[int]", torch.as_tensor(indices).tolist())
        try:
            several = getattr(self.dataset, "__getitems__", None)
            samples = several(chosen) if several else [self.dataset[i] for i in chosen]
            own = getattr(load(self.file), "collate", None)
            return _batch(own(samples) if own else torch.utils.data.default_collate(samples), len(chosen))
        except FAILURES as error:
            where = told(error) or f"{self.file}: {type(error).__name__}: {error}"
            raise DataError(
                f"{where} (samples {', '.join(map(str, chosen[:8]))}{' ...' * (len(chosen) > 8)})"
            ) from error


def _batch(made: Any, num_samples: int) -> Batch:
    """A pair is inputs and labels; all else is taken whole, and every sample counts one, unless it has labels."""
    if isinstance(made, Batch):
        return made
    if isinstance(made, tuple | list):
        pair = cast("Sequence[Any]", made)
        if len(pair) == 2 and isinstance(pair[1], Tensor):
            return Batch(pair[0], pair[1])
    labels: Any = cast("Mapping[str, Any]", made).get("labels") if isinstance(made, Mapping) else None
    return Batch(cast(Any, made), labels if isinstance(labels, Tensor) else torch.zeros(num_samples, dtype=torch.long))


def check(config: ModuleData, need: Need) -> None:
    """See that each split has what a run asks for. Raises: DataError."""
    for split, needed in (("train", 1), ("held_out", need.held_out_samples)):
        if needed and (found := len(ModuleSource(config.file, split))) < needed:
            raise DataError(f"{config.file}: data({split!r}) has {found} samples, not the {needed} that are needed")
