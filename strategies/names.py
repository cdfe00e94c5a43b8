"""Canonical parameter names: what a parameter is called before any wrapper puts itself in its path."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

STAGE = "_pipeline_stage_"
"""Begins the names of the modules in which a pipeline keeps a rank's stages."""
_WRAPPERS = frozenset({"_checkpoint_wrapped_module", "_orig_mod"})


def canonical(name: str) -> str:
    """The name without the path parts that activation checkpointing, torch.compile and a pipeline add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS and not part.startswith(STAGE))


def canonical_names(model: "nn.Module") -> list[str]:
    """Canonical names of all parameters in order, tied ones under each of their names.

    Also removes the `module.` that DistributedDataParallel puts in front, but only when it is the wrapper.
    """
    from torch.nn.parallel import DistributedDataParallel

    bare = model.module if isinstance(model, DistributedDataParallel) else model
    return [canonical(name) for name, _ in bare.named_parameters(remove_duplicate=False)]
