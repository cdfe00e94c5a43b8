"""torchao's float8 and MXFP8 linear layers in the places of `nn.Linear`.

Source: torchao.float8 (convert_to_float8_training); Rouhani et al. 2023, arXiv:2310.10537 (MX formats).
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..base import Batch, Program

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...profiling.record import Marker


def swap_for_torchao(
    model: "nn.Module", paths: Collection[str], *, recipe: str, emulate: bool, fsdp_all_gather: bool
) -> None:
    """Replace the linear layers at `paths`, in place; their parameters are the same ones, meta or not."""
    if recipe == "mxfp8":
        _swap_for_mxfp8(model, paths, emulate=emulate)
        return
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config: Any = Float8LinearConfig.from_recipe_name(recipe)
    config = replace(config, emulate=emulate, enable_fsdp_float8_all_gather=fsdp_all_gather)
    wanted = set(paths)
    convert_to_float8_training(model, module_filter_fn=lambda module, path: path in wanted, config=config)
    if emulate:
        for path in wanted:
            model.get_submodule(path).register_forward_pre_hook(_cast_to_autocast_dtype)


def _cast_to_autocast_dtype(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What Float8Linear does under autocast on a GPU, and does not on a CPU."""
    import torch

    first, *rest = arguments
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return arguments
    return (first.to(torch.get_autocast_dtype(kind)), *rest)


def _swap_for_mxfp8(model: "nn.Module", paths: Collection[str], *, emulate: bool) -> None:
    """Blocks of 32 values share a scale, a power of two. torchao calls this module a prototype."""
    import torch
    from torchao.prototype.moe_training.mxfp8_linear import MXFP8Linear
    from torchao.quantization.quantize_.common import KernelPreference

    preference = KernelPreference.EMULATED if emulate else KernelPreference.AUTO
    for path in paths:
        old: Any = model.get_submodule(path)
        with torch.device("meta"):
            new = MXFP8Linear(
                old.in_features, old.out_features, bias=old.bias is not None, kernel_preference=preference
            )
        new.weight, new.bias = old.weight, old.bias
        model.set_submodule(path, new)


def gather_in_float8(program: Program) -> Program:
    """Compute the scales of all FP8 weights together before the forward passes that need them.

    FSDP2 then gathers values that are FP8 already. The scales come first in a step rather than last in the one before:
    so they are right after a checkpoint was read, and whatever else may have moved the weights in between.
    """
    model, forward_backward, forward_only = program.model, program.forward_backward, program.forward_only

    def scaled_forward_backward(
        program: Program, microbatches: Sequence[Batch], scale: "float | Tensor", mark: "Marker"
    ) -> "Tensor":
        _compute_scales(model)
        return forward_backward(program, microbatches, scale, mark)

    def scaled_forward_only(program: Program, microbatches: Sequence[Batch]) -> "Tensor":
        _compute_scales(model)
        return forward_only(program, microbatches)

    return replace(program, forward_backward=scaled_forward_backward, forward_only=scaled_forward_only)


def _compute_scales(model: "nn.Module") -> None:
    from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

    precompute_float8_dynamic_scale_for_fsdp(model)
