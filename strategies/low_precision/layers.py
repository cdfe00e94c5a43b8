"""Which linear layers are worth converting, and which can be."""

from collections.abc import Iterable, Iterator, Mapping
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


def linear_layers(model: "nn.Module", facts: Facts, tp_degree: int) -> Iterator[Layer]:
    """Every linear layer, with the sizes that one rank will hold."""
    from torch import nn

    slicing: Mapping[str, Slicing] = {canonical(name): how for name, how in facts.slicing.items()}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            how = slicing.get(canonical(path))
            yield Layer(
                path=path,
                in_features=module.in_features // (tp_degree if how is Slicing.ROW else 1),
                out_features=module.out_features // (tp_degree if how in (Slicing.COLUMN, Slicing.HEAD) else 1),
            )


def chosen_layers(
    model: "nn.Module", facts: Facts, *, tp_degree: int, multiple_of: int, min_features: int, skip: Iterable[str]
) -> tuple[list[Layer], int]:
    """The layers to convert, and how many linear layers stay as they are.

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

    layers = list(linear_layers(model, facts, tp_degree))
    chosen = [layer for layer in layers if is_wanted(layer)]
    return chosen, len(layers) - len(chosen)
