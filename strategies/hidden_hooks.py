"""Hooks that selective checkpointing does not see."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def hide_hooks(module: "torch.nn.Module") -> None:
    """Keep what FSDP2's hooks do from selective checkpointing, which expects a block to do the same in backward.

    Other modules are sharded around the checkpointed block, and only experts within it. In backward they may be there
    already, or be gathered where they were not in forward.
    """
    from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

    hidden: list[AbstractContextManager[Any]] = []

    def hide(*arguments: object) -> None:
        hidden.append(_disable_current_modes())
        hidden[-1].__enter__()

    def show(*arguments: object) -> None:
        hidden.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(hide, prepend=True)
    module.register_forward_pre_hook(show)
    module.register_forward_hook(hide, prepend=True)
    module.register_forward_hook(show)
