"""Fully sharded data parallel (FSDP2): the ranks share one copy of parameters, gradients and optimizer state.

Problem: the model with its optimizer state does not fit on one device.
Mechanism: each block's parameters are all-gathered just before use and freed after it; gradients are reduce-scattered.
Saves: memory, 16/N bytes a parameter on N ranks instead of 16 (AdamW, float32 state); BF16 compute and gathers.
Costs: an all-gather a block in forward, another in backward if resharded, a reduce-scatter a block: 1.5x DDP's bytes.
When: state does not fit, or BF16 gathers with float32 state are wanted; fast links between the ranks.
When not: the model fits and the links are slow; take ddp.
Measure: FSDP::all_gather that nothing hides, peak memory, tokens/s.
Source: Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .base import Owns, Program, Run
from .limits import Count
from .mesh import Axis

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True, kw_only=True)
class FSDP2:
    """Shards every block, and what lies outside the blocks, over `mesh.dp_shard`."""

    param_dtype: Literal["float32", "bf16"] = "float32"
    """In what parameters are gathered and computed with; the shards and the optimizer stay in float32."""
    reduce_dtype: Literal["float32", "bf16"] = "float32"
    """In what gradients are reduced."""
    reshard_after_forward: bool = True
    """Free a block's parameters after its forward pass (ZeRO-3). False keeps them until backward (ZeRO-2): more
    memory, one all-gather less."""
    prefetch: Count = 1
    """How many blocks ahead are gathered while one computes; 0 leaves it to FSDP2's implicit order."""
    reduce_every_microbatch: bool = True
    """Reduce-scatter after each microbatch. False accumulates whole gradients and reduces once: less communication,
    one unsharded gradient of the model more in memory."""

    conflicts: ClassVar[Mapping[str, str]] = {}

    @property
    def owns(self) -> frozenset[Owns]:
        """The shard axis, the reduction over it, and the compute dtype if it sets one."""
        dtype = frozenset({Owns.COMPUTE_DTYPE}) if self.param_dtype != "float32" else frozenset[Owns]()
        return frozenset({Owns.DP_SHARD, Owns.GRADIENT_REDUCTION}) | dtype

    def check(self, run: Run) -> Iterator[str]:
        """Refuse what would have no effect, or no unit to shard."""
        if not run.facts.blocks:
            yield "the model names no blocks, so there is no unit to gather; use strategies.ddp"
        if self.prefetch >= max(len(run.facts.blocks), 1) and run.facts.blocks:
            yield f"prefetch = {self.prefetch}: the model has {len(run.facts.blocks)} blocks; use fewer"

        if not self.reduce_every_microbatch and "accumulation" not in run.active:
            yield "reduce_every_microbatch = false: has no effect without strategies.accumulation; remove it"

    def apply(self, program: Program, run: Run) -> Program:
        """Shard block by block, then the units outside, then the root; the weights may still be on meta."""
        import torch
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        assert run.mesh is not None, "fsdp2 needs the device mesh"
        mesh = run.mesh[Axis.DP_SHARD]
        dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
        # Only the root casts its inputs: a block must not round the float32 rotary angles that it is handed.
        root_policy = MixedPrecisionPolicy(param_dtype=dtypes[self.param_dtype], reduce_dtype=dtypes[self.reduce_dtype])
        policy = replace(root_policy, cast_forward_inputs=False)
        model = program.model
        blocks = [model.get_submodule(name) for name in program.facts.blocks]
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard_after_forward)
        for unit in program.facts.units:
            modules = [model.get_submodule(name) for name in unit]
            # The last unit is needed again as soon as backward begins: freeing it would only gather it twice.
            reshard = self.reshard_after_forward and unit != program.facts.units[-1]
            fully_shard(modules, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
        # What the root holds itself, a tied embedding, is needed from the first moment to the last.
        fully_shard(model, mesh=mesh, mp_policy=root_policy, reshard_after_forward=False)
        _prefetch([_sharded(block) for block in blocks], self.prefetch)
        root = _sharded(model)
        sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in sharded:
            # The loss is divided by the global number of tokens, so gradients are summed, not averaged; plain SUM,
            # because gloo has no PREMUL_SUM.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        reduce_always = self.reduce_every_microbatch

        def before_microbatch(is_last: bool) -> AbstractContextManager[Any]:
            root.set_is_last_backward(is_last)
            if not reduce_always:
                root.set_requires_gradient_sync(is_last)
            return nullcontext()

        def free_unsharded() -> None:
            for module in sharded:
                module.reshard()

        return replace(program, before_microbatch=before_microbatch, after_evaluation=free_unsharded)


def _sharded(module: Any) -> "FSDPModule":
    """`fully_shard` has swapped the class of the module in place; this tells the type checker so."""
    return module


def _prefetch(blocks: "list[FSDPModule]", depth: int) -> None:
    """Explicit lists, because FSDP2's implicit prefetch stops working when a forward pass waits for the device."""
    for i, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + depth])
        block.set_modules_to_backward_prefetch(blocks[max(0, i - depth) : i][::-1])
