"""Activations in host memory: what backward needs of a block goes out in forward and comes back in backward.

[Note: what stays on the device]
Parameters are saved for backward too. They are on the device anyway, and those of FSDP2 are views of memory that is
freed and filled again behind autograd's back; so whatever shares storage with a parameter stays. A tensor that several
operators save is copied once: it is known by its storage, its place in it and its version.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class _OnHost:
    """A tensor's copy in host memory, and what it takes to make the tensor again."""

    copy: "Tensor"
    device: "torch.device"
    wrap: "Callable[[Tensor], Tensor]"

    def back(self) -> "Tensor":
        """The tensor on its device; the copy is queued behind the computation that is there already."""
        return self.wrap(self.copy.to(self.device, non_blocking=True))


def offloading(*, min_bytes: int, pin: bool, inner: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A `checkpoint_fn` for `checkpoint_wrapper`: what the module saves for backward goes to host memory.

    `inner(module, *arguments)` is called in the place of the module, if given. Tensors below `min_bytes` stay.
    """

    def call(module: "nn.Module", *args: Any, **kwargs: Any) -> Any:
        from torch.autograd.graph import saved_tensors_hooks

        with saved_tensors_hooks(_packing(module.parameters(), min_bytes, pin), _unpack):
            return module(*args, **kwargs) if inner is None else inner(module, *args, **kwargs)

    return call


def _packing(parameters: "Iterable[nn.Parameter]", min_bytes: int, pin: bool) -> "Callable[[Tensor], Any]":
    """What one forward pass of a module does with each tensor that an operator saves."""
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    kept = {StorageWeakRef(_local(parameter).untyped_storage()) for parameter in parameters}
    # A weak reference holds no memory, but keeps the identity of the storage from being given to another.
    gone: dict[tuple[Any, ...], _OnHost] = {}

    def pack(tensor: "Tensor") -> "_OnHost | Tensor":
        local = _local(tensor)
        # Detached, for an operator that saves its own result would hold itself. Other subclasses hold what they like.
        if type(local) is not torch.Tensor or local.numel() * local.element_size() < min_bytes:
            return tensor.detach()
        storage = StorageWeakRef(local.untyped_storage())
        if storage in kept:
            return tensor.detach()
        key = (storage, local.storage_offset(), local.shape, local.stride(), local.dtype, local._version, type(tensor))
        if key not in gone:
            copy = torch.empty_like(local, device="cpu", pin_memory=pin).copy_(local, non_blocking=pin)
            gone[key] = _OnHost(copy=copy, device=local.device, wrap=_wrapper(tensor))
        return gone[key]

    return pack


def _unpack(packed: "_OnHost | Tensor") -> "Tensor":
    return packed.back() if isinstance(packed, _OnHost) else packed


def _local(tensor: "Tensor") -> "Tensor":
    """The local part of a DTensor, without a node in the graph; any other tensor itself."""
    return getattr(tensor, "_local_tensor", tensor)


def _wrapper(tensor: Any) -> "Callable[[Tensor], Tensor]":
    """Makes the like of `tensor` from its local part."""
    if _local(tensor) is tensor:
        return lambda local: local
    from torch.distributed.tensor import DTensor

    mesh, placements, shape, stride = tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()
    return lambda local: DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
