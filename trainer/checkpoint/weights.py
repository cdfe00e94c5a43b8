"""The weights of a checkpoint alone, read into a model that somebody else has made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...strategies.names import canonical
from .errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn


def load_weights(model: "nn.Module", path: Path) -> None:
    """Read the parameters and buffers of a checkpoint into a model, each rank its shards; every rank calls it.

    Raises: CheckpointError if they are damaged, or those of another model.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    from .safe_dcp import SafePlanner, SafeReader

    reader = SafeReader(path)
    known: Any = reader.read_metadata().state_dict_metadata
    held: dict[str, Any] = get_model_state_dict(model)
    places = {canonical(name): tensor for name, tensor in held.items()}
    for name, tensor in places.items():
        found = known.get(f"model.{name}")
        if found is None or tuple(found.size) != tuple(tensor.shape):
            has = "nothing of that name" if found is None else f"a tensor of {tuple(found.size)}"
            raise CheckpointError(f"{path}: {name} is {tuple(tensor.shape)} in the model, and {has} in the checkpoint")
    try:
        dcp.load({"model": places}, storage_reader=reader, planner=SafePlanner(), no_dist=not dist.is_initialized())
    except CheckpointError:
        raise
    except CheckpointException as error:
        raise CheckpointError(f"{path}: its weights are damaged; use another checkpoint") from error
