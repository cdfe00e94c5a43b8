"""The arguments of an operator as a trace writes them: `Input Dims`, `Input type`, `Concrete Inputs`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from .dtypes import bytes_of, plain

Dims = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor among the arguments."""

    dims: Dims
    dtype: str
    """In one spelling; empty if a trace does not say, as for members of a list."""

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.dims)

    @property
    def width(self) -> int | None:
        """Bytes of an element."""
        return bytes_of(self.dtype)

    @property
    def num_bytes(self) -> int | None:
        """Bytes of all of it."""
        return self.numel * self.width if self.width is not None else None


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator with its arguments by position."""

    name: str
    arguments: tuple[Tensor | tuple[Tensor, ...] | None, ...]
    """A tensor, a list of tensors, or None for anything else. A list that the trace left out is empty."""
    concrete: tuple[str, ...]
    """Values of the others as text; empty texts, or no texts, where the trace has none."""

    def tensor(self, place: int) -> Tensor | None:
        """The tensor at a position; None if there is none."""
        found = self.arguments[place] if place < len(self.arguments) else None
        return found if isinstance(found, Tensor) else None

    def tensors(self, place: int) -> tuple[Tensor, ...]:
        """The list of tensors at a position; empty if there is none."""
        found = self.arguments[place] if place < len(self.arguments) else None
        return found if isinstance(found, tuple) else ()

    @property
    def all_tensors(self) -> list[Tensor]:
        """Those that are arguments themselves, not in lists."""
        return [each for each in self.arguments if isinstance(each, Tensor)]

    def flag(self, place: int) -> bool | None:
        """A truth value, or a number that is not 0; None if the trace does not say."""
        text = self.concrete[place] if place < len(self.concrete) else ""
        return {"True": True, "False": False, "0": False}.get(text, True) if text else None

    def flags(self, place: int) -> list[bool]:
        """A list of truth values; empty if the trace does not say."""
        text = self.concrete[place] if place < len(self.concrete) else ""
        return [part.strip() == "True" for part in text.strip("[]").split(",")] if text else []

    def numbers(self, place: int) -> list[int] | None:
        """A whole number or a list of them; None if the trace does not say."""
        text = self.concrete[place] if place < len(self.concrete) else ""
        try:
            return [int(part) for part in text.strip("[]").split(",") if part.strip()] if text else None
        except ValueError:
            return None


def call_of(
    name: str, dims: str | None, types: str | None, concrete: str | None, dtype_in_kernel: str | None = None
) -> Call | None:
    """The call that these texts describe; None if they do not. `dtype_in_kernel` is the type of members of lists."""
    shapes, kinds, values = (_listed(text) for text in (dims, types, concrete))
    if shapes is None or kinds is None or len(shapes) != len(kinds):
        return None
    arguments: list[Tensor | tuple[Tensor, ...] | None] = []
    for shape, kind in zip(shapes, kinds, strict=True):
        if kind == "TensorList":
            members = [_dims(each) for each in cast(list[Any], shape)] if isinstance(shape, list) else []
            known_members = [each for each in members if each is not None]
            arguments.append(tuple(Tensor(dims=each, dtype=dtype_in_kernel or "") for each in known_members))
        else:
            dtype = plain(kind) if isinstance(kind, str) else ""
            known = _dims(shape) if bytes_of(dtype) is not None else None
            arguments.append(Tensor(dims=known, dtype=dtype) if known is not None else None)
    return Call(name=name, arguments=tuple(arguments), concrete=tuple(str(value) for value in values or ()))


def _listed(text: str | None) -> Sequence[Any] | None:
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return cast(list[Any], found) if isinstance(found, list) else None


def _dims(shape: object) -> Dims | None:
    """Lengths; None if these are not some."""
    if not isinstance(shape, list):
        return None
    lengths = cast(list[Any], shape)
    if not all(isinstance(length, int) and 0 <= length < 1 << 48 for length in lengths):
        return None
    return tuple(lengths)
