"""Weights from a folder of safetensors: names and shapes are looked at before a run, tensors read one at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def from_files(folder: Path) -> "Callable[[str, Tensor], None]":
    """Function that copies the tensor of a name into one of its shape; for one on the meta device it only looks.

    Raises (here and there): ModelError for a name that no file has, another shape, or a damaged file.
    """
    from safetensors import safe_open

    places = _places(folder)
    opened: dict[Path, Any] = {}

    def fill(name: str, weight: "Tensor") -> None:
        path = places.get(name)
        if path is None:
            raise ModelError(f"model.transformers.weights = {str(folder)!r}: no file has {name}; was it saved whole?")
        try:
            if path not in opened:
                opened[path] = safe_open(str(path), framework="pt").__enter__()
            shape = tuple(opened[path].get_slice(name).get_shape())
            if shape != tuple(weight.shape):
                expected = tuple(weight.shape)
                raise ModelError(f"{path}: {name} is {shape}, but its config.json asks for {expected}; mend that")
            if not weight.is_meta:
                weight.copy_(opened[path].get_tensor(name))
        except (OSError, RuntimeError, ValueError, *_their_errors()) as error:
            raise ModelError(f"{path}: cannot be read ({error}); fetch it again") from error

    return fill


def _their_errors() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (SafetensorError,)


def _places(folder: Path) -> dict[str, Path]:
    """The file that each tensor is in. Raises: ModelError."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    try:
        if index.is_file():
            listed = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
            for file in set(listed.values()):
                if folder / file not in files:  # elsewhere, or absent
                    raise ModelError(f"{index}: names {file!r}, which is no *.safetensors of this folder")
            return {name: folder / file for name, file in listed.items()}
        places: dict[str, Path] = {}
        for file in files:
            with safe_open(str(file), framework="pt") as tensors:
                places |= dict.fromkeys(tensors.keys(), file)
        return places
    except (OSError, ValueError, KeyError, AttributeError, TypeError, *_their_errors()) as error:
        raise ModelError(f"{folder}: its weights cannot be read ({error}); fetch them again") from error
