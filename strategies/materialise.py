"""When and how weights come into being.

[Note: weights are a function of seed and name]
A model is built on the meta device, so that 70B parameters cost nothing until each rank knows its part. Then every
parameter is filled whole from a generator seeded by (seed, name), and a rank keeps its shard. So one process, DDP and
FSDP2 start from the same weights on the same kind of device without a seed checkpoint, and no rank ever holds more than
its shards and one whole parameter.
"""

import hashlib
from typing import TYPE_CHECKING, Any

from .base import Program, Run
from .names import canonical

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, name: str) -> int:
    """Seed of the parameter (or whatever else is called) `name` in a run seeded with `seed`: 63 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def materialise(program: Program, run: Run) -> None:
    """Give every parameter that is still on the meta device storage and its first value; in place.

    A model that was made whole is brought to the device, but for what is sharded, which is where it belongs.
    Raises: ValueError if there are meta buffers or no initialiser.
    """
    import torch

    model = program.model
    assert run.device is not None, "weights need a device"
    if not any(parameter.is_meta for parameter in model.parameters()):
        _bring(model, run.device)
        return
    if program.facts.initialise is None:
        raise ValueError("the model is on the meta device, but its Facts name no initialiser")
    fill_buffer = program.facts.fill_buffer
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty and fill_buffer is None:
        raise ValueError("the model keeps buffers on the meta device, which nobody fills; compute them in forward")
    _give_storage(model, run.device)
    generator = torch.Generator(device=run.device)
    with torch.no_grad():
        if fill_buffer is not None:
            for name in empty:
                fill_buffer(canonical(name), model.get_buffer(name))
        for name, parameter in model.named_parameters():  # a tied tensor comes once, under its first name
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=run.device)
            program.facts.initialise(canonical(name), whole, generator.manual_seed(seed_of(run.seed, canonical(name))))
            _keep(parameter, whole)


def _bring(model: "torch.nn.Module", device: "torch.device") -> None:
    """Move what lies elsewhere to the device, in place, so that tied tensors stay tied."""
    from torch.distributed.tensor import DTensor

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != device.type and not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def _give_storage(model: "torch.nn.Module", device: "torch.device") -> None:
    """`to_empty` that neither forgets the values of buffers nor turns a tied tensor into two."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first_name: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (first := first_name.setdefault(id(parameter), name)) != name:
            ties[name] = first
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        if not buffers[name].is_meta:
            buffer.copy_(buffers[name])
    for name, first in ties.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def _keep(parameter: "torch.Tensor", whole: "torch.Tensor") -> None:
    """Copy a whole tensor into a parameter, or this rank's part of it into a sharded one, without communication."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        parameter.copy_(
            distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None),
        )
    else:
        parameter.copy_(whole)


def build_on_meta(make: Any) -> Any:
    """What `make()` builds, with every tensor on the meta device."""
    import torch

    with torch.device("meta"):
        return make()


def build_whole(make: Any, seed: int) -> Any:
    """What `make()` builds, with weights on the host that depend on the seed alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "model"))
        return make()
