"""Transformer Engine's linear layers in the places of `nn.Linear`, and the context in which they compute in FP8.

Accelerate's `convert_model` is not used: it copies weights, so it needs a model that is not on the meta device; it
stops at the first layer whose sizes do not fit; and it takes no filter, so it would convert the output projection.

Source: Transformer Engine (transformer_engine.pytorch.Linear, autocast).
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup

RECIPES = {
    "delayed": "DelayedScaling",
    "current": "Float8CurrentScaling",
    "block": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
}
"""Our names of Transformer Engine's recipes."""


def swap_for_transformer_engine(
    model: "nn.Module", paths: Collection[str], *, recipe: str, parts: Collection[str], group: "ProcessGroup | None"
) -> None:
    """Replace the linear layers at `paths`, in place, and let each part's forward run in FP8.

    The parameters are the same ones, meta or not. `group` are the ranks that share one scale (delayed scaling).
    """
    kind = _stateless_linear()
    for path in paths:
        old: Any = model.get_submodule(path)
        has_bias = old.bias is not None
        new = kind(old.in_features, old.out_features, bias=has_bias, params_dtype=old.weight.dtype, device="meta")
        new.weight = old.weight
        if has_bias:
            new.bias = old.bias
        model.set_submodule(path, new)
    context = _context(recipe, group)
    for part in parts:
        _enter_around_forward(model.get_submodule(part), context)


def _stateless_linear() -> Any:
    """Transformer Engine's Linear without its extra state.

    That state is empty until the first forward pass and grows with the history of delayed scaling, so that a checkpoint
    could not be read into a new model. Without it, a resumed run starts a new history.
    """
    from torch import nn
    from transformer_engine.pytorch import Linear  # pyright: ignore[reportMissingImports]

    methods = {"get_extra_state": nn.Module.get_extra_state, "set_extra_state": nn.Module.set_extra_state}
    return type("StatelessLinear", (Linear,), methods)


def _context(recipe: str, group: "ProcessGroup | None") -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which Transformer Engine's layers compute in FP8."""
    import transformer_engine.pytorch as te  # pyright: ignore[reportMissingImports]
    from transformer_engine.common import recipe as recipes  # pyright: ignore[reportMissingImports]

    chosen = getattr(recipes, RECIPES[recipe])()
    autocast = getattr(te, "autocast", None)

    def in_fp8() -> AbstractContextManager[Any]:
        if autocast is None:  # before 2.9 it had another name
            return te.fp8_autocast(enabled=True, fp8_recipe=chosen, fp8_group=group)
        return autocast(enabled=True, recipe=chosen, amax_reduction_group=group)

    return in_fp8


def _enter_around_forward(part: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Wrap `forward` itself: amp and compile set contexts and hooks of their own, and neither loses this one."""
    forward = part.forward

    def in_fp8(*arguments: Any, **keywords: Any) -> Any:
        with context():
            return forward(*arguments, **keywords)

    part.forward = in_fp8
