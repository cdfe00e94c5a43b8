"""The length of a gradient that is spread over ranks in several ways at once.

[Note: norms on a mesh]
Dense parameters are sharded over one part of the mesh, experts over another, and a pipeline's ranks hold different
parameters altogether. Each group of tensors with one layout has a norm of its own, which DTensor reduces over that
layout without counting a replica twice; the norms of the groups, and then of the stages, are combined by the norm.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

Held = TypeVar("Held")


def total_norm(
    gradients: "Sequence[Tensor]", norm_type: float, group: "ProcessGroup | None", device: "torch.device | None" = None
) -> "Tensor":
    """Norm over all gradients of all ranks, a plain scalar on the device.

    `group` are the ranks that hold other parameters; `device` is where the result lies if this rank has no gradient.
    """
    import torch
    from torch.nn.utils import get_total_norm

    norms = [whole_norm(get_total_norm(each, norm_type)) for each in by_layout(gradients, lambda each: each)]
    if len(norms) == 1 and group is None:
        return norms[0]
    norm = torch.linalg.vector_norm(torch.stack(norms), norm_type) if norms else torch.zeros((), device=device)
    if group is None:
        return norm
    import torch.distributed as dist

    if norm_type == float("inf"):
        dist.all_reduce(norm, dist.ReduceOp.MAX, group=group)
        return norm
    powers = norm**norm_type
    dist.all_reduce(powers, group=group)
    return powers ** (1 / norm_type)


def by_layout(held: "Sequence[Held]", gradient_of: "Callable[[Held], Tensor | None]") -> "list[list[Held]]":
    """Gradients, or what holds them, grouped by the mesh on which they lie: one fused operation serves each group."""
    groups: dict[object, list[Held]] = {}
    for each in held:
        groups.setdefault(getattr(gradient_of(each), "device_mesh", None), []).append(each)
    return list(groups.values())


def whole_norm(norm: "Tensor") -> "Tensor":
    """The norm of sharded gradients is spread over the ranks itself; that of offloaded ones travels by the device."""
    sharded: Any = norm
    if not hasattr(sharded, "full_tensor"):  # asked this way, because importing DTensor takes half a second
        return norm
    return sharded.to(sharded.device_mesh.device_type).full_tensor()
