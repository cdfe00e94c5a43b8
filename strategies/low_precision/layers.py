"""Which linear layers are worth converting, and which can be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..facts import Facts, Slicing, regions_with_experts
from ..names import canonical

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer of the model, under its path there."""

    path: str
    in_features: int
    """Input features on this rank, when tensor parallelism has cut the layer."""
    out_features: int


def linear_layers(model: "nn.Module", facts: Facts, tp_degree: int) -> list[Layer]:
    """Every linear layer of a model, with the sizes that one rank will hold."""
    from torch import nn

    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return _sliced({path: (each.in_features, each.out_features) for path, each in linears.items()}, facts, tp_degree)


def planned_layers(facts: Facts, tp_degree: int) -> list[Layer]:
    """The same of a model that is not made yet; none if it does not say."""
    return _sliced(facts.linears, facts, tp_degree)


def _sliced(sizes: Mapping[str, tuple[int, int]], facts: Facts, tp_degree: int) -> list[Layer]:
    slicing: Mapping[str, Slicing] = {canonical(name): how for name, how in facts.slicing.items()}
    by_row, by_column = (Slicing.ROW,), (Slicing.COLUMN, Slicing.HEAD)
    return [
        Layer(
            path=path,
            in_features=in_features // (tp_degree if slicing.get(canonical(path)) in by_row else 1),
            out_features=out_features // (tp_degree if slicing.get(canonical(path)) in by_column else 1),
        )
        for path, (in_features, out_features) in sizes.items()
    ]


def chosen_layers(
    layers: Iterable[Layer], facts: Facts, *, tp_degree: int, multiple_of: int, min_features: int, skip: Iterable[str]
) -> list[Layer]:
    """The layers to convert.

    Left alone are those that the model wants precise, those whose name matches a pattern of `skip`, those that are
    never called, since sliced regions with experts compute past them, and those that the hardware cannot multiply: both
    sizes, as a rank holds them, must be multiples of `multiple_of`.
    """
    precise = {canonical(name) for name in facts.precise}
    bypassed = tuple(f"{canonical(name)}." for name in regions_with_experts(facts.slicing) if tp_degree > 1)
    patterns = tuple(skip)

    def is_wanted(layer: Layer) -> bool:
        name, sizes = canonical(layer.path), (layer.in_features, layer.out_features)
        return (
            name not in precise
            and not name.startswith(bypassed)
            and not any(fnmatchcase(name, pattern) for pattern in patterns)
            and all(size % multiple_of == 0 and size >= min_features for size in sizes)
        )

    return [layer for layer in layers if is_wanted(layer)]
