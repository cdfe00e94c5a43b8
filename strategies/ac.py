"""Activation checkpointing: keep less of the forward pass and compute it again in backward.

Problem: activations fill the memory, so the microbatch must be small.
Mechanism: a checkpointed block saves its inputs (full) or the results of chosen operators (selective), and recomputes.
Saves: memory; with `full`, a block's activations shrink to its input (about 34 to 2 bytes a token and width, BF16).
Costs: full: one more forward pass, about a third more compute; selective: the cheap operators only, a few percent.
When: out of memory, or when a larger microbatch pays for the recomputation.
When not: memory is to spare; it only adds work.
Measure: peak memory and ms/step with and without; then tokens/s at the microbatch that the memory now allows.
Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198 (selective).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from .base import Owns, Program, Run
from .errors import StrategyError
from .limits import PositiveInt
from .refusal import Refusal

# The expensive operators: matrix products and attention. Recomputing the rest costs memory bandwidth only.
_DEFAULT_SAVE = (
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
)


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """Checkpoints the blocks that the model names."""

    mode: Literal["full", "selective"] = "full"
    """`full` keeps a block's input only; `selective` also keeps the results of the operators in `save`."""
    every: PositiveInt = 1
    """Checkpoint every n-th block: 1 all of them, 2 every other."""
    save: tuple[str, ...] | None = None
    """Operators whose results `selective` keeps, as `aten.mm`. Default: matrix products and attention."""
    preserve_rng_state: bool = True
    """Replay the random numbers in the recomputation; false is faster for a model without dropout."""

    conflicts: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing: it changes when tensors are computed, not which."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse settings that touch no block or name no operator."""
        num_blocks = len(run.facts.blocks)
        if num_blocks == 0:
            yield "the model names no blocks, so there is nothing to checkpoint; remove strategies.ac"
        elif self.every > num_blocks:
            yield f"every = {self.every}: the model has {num_blocks} blocks, so none would be checkpointed; use fewer"
        if self.save is not None and self.mode == "full":
            yield "save: has no effect with mode = 'full'; set mode = 'selective' or remove it"
        if self.save is not None and not self.save:
            yield "save = []: keeps nothing, which is mode = 'full'; name operators or use that"
        for name in self.save or ():
            if len(name.split(".")) not in (2, 3):
                yield f"save = {name!r}: not an operator; write namespace.name, as aten.mm"

    def apply(self, program: Program, run: Run) -> Program:
        """Wrap every n-th block in place; parameter names keep their canonical form."""
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        # early_stop would end the recomputation at the last tensor that backward needs; collectives inside a block
        # must run on every rank or on none.
        options: dict[str, Any] = {"preserve_rng_state": self.preserve_rng_state, "early_stop": False}
        if self.mode == "selective":
            options["context_fn"] = _selective(self.save or _DEFAULT_SAVE)
        for name in program.facts.blocks[self.every - 1 :: self.every]:
            block = program.model.get_submodule(name)
            program.model.set_submodule(name, checkpoint_wrapper(block, **options))
        return program


def _selective(names: tuple[str, ...]) -> Any:
    """Context function that keeps the results of the named operators. Raises: StrategyError for an unknown one."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    operators = [operator for name in names for operator in _overloads(name)]
    return partial(create_selective_checkpoint_contexts, operators)


def _overloads(name: str) -> list[Any]:
    """All overloads of an operator written `namespace.name`, or the one written `namespace.name.overload`."""
    import torch

    namespace, operator, *overload = name.split(".")
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    found = [getattr(packet, each, None) for each in (overload or (packet.overloads() if packet else ()))]
    if not found or None in found:
        raise StrategyError(
            f"strategies.ac.save = {name!r}: torch {torch.__version__} has no such operator; write it as aten.mm"
        )
    return found
