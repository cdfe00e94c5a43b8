"""Fully sharded data parallel (FSDP2, HSDP): ranks share one copy of parameters, gradients and optimizer state.

Problem: the model with its optimizer state does not fit on one device.
Mechanism: each block's parameters are all-gathered just before use and freed after it; gradients are reduce-scattered.
With mesh.dp_replicate, groups of ranks hold a copy each (HSDP), and the shards' gradients are all-reduced between them.
In ZeRO's words, with accumulation: the optimizer state is always shared; reduce_every_microbatch shares the gradients
too (ZeRO-2, without it ZeRO-1), and reshard_after_forward the parameters (ZeRO-3).
Saves: memory, 16/N bytes a parameter on N ranks instead of 16 (AdamW, float32 state); BF16 compute and gathers.
Costs: an all-gather a block in forward, another in backward if resharded, a reduce-scatter a block: 1.5x DDP's bytes.
When: state does not fit, or BF16 gathers with float32 state are wanted; fast links between the ranks. HSDP: the shard
group inside a node, replicas between nodes.
When not: the model fits and the links are slow; take ddp.
Measure: FSDP::all_gather that nothing hides, peak memory, tokens/s.
Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054; fully_shard.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from .base import Owns, Program, Run
from .changes import Changes, MayChange, rules
from .hidden_hooks import hide_hooks
from .limits import Count
from .mesh import Axis, Joint, side_by_side
from .refusal import Refusal
from .wins import COMPUTE, Part, Try, Wins

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


@dataclass(frozen=True, kw_only=True)
class FSDP2:
    """Shards every block, and what lies outside the blocks, over `mesh.dp_shard`."""

    param_dtype: Literal["float32", "bf16"] = "float32"
    """In what parameters are gathered and computed with; the shards and the optimizer stay in float32."""
    reduce_dtype: Literal["float32", "bf16"] = "float32"
    """In what gradients are reduced."""
    reshard_after_forward: bool | None = None
    """True (ZeRO-3) frees a block's parameters after its forward pass and gathers them again for backward. False
    (ZeRO-2) keeps them in between: the whole model in `param_dtype` at the end of forward, for one all-gather in two.
    Left out: true, but false in a pipeline, where forward and backward of several microbatches take turns."""
    prefetch: Count = 1
    """How many blocks ahead are gathered while one computes; 0 leaves it to FSDP2's implicit order."""
    reduce_every_microbatch: bool = True
    """Reduce-scatter after each microbatch (ZeRO-2, ZeRO-3). False (ZeRO-1) keeps the whole model's gradient on every
    rank until the last one and reduces it once: for n microbatches an n-th of the reductions."""
    defer_all_reduce: bool = True
    """HSDP: all-reduce between the replicas with the last microbatch only; false does it with each."""
    cpu_offload: bool = False
    """Keep shards, gradients and optimizer state in host memory; the optimizer steps there."""
    overlap: bool = True
    """Gather and reduce while blocks compute; false does one after the other (for an A/B that shows what it wins)."""

    changes: ClassVar[MayChange] = MayChange(
        switch=Changes.REDUCTION_ORDER,
        keys=rules(Changes.PRECISION, "param_dtype", "reduce_dtype")
        | rules(Changes.NOTHING, "reshard_after_forward", "prefetch", "overlap"),
    )
    wins: ClassVar[Wins] = Wins(
        keys={
            "param_dtype": Try(values=("bf16",), parts=COMPUTE | {Part.COMMUNICATION}),
            "reshard_after_forward": Try(values=(False,), parts=frozenset({Part.COMMUNICATION})),
            "prefetch": Try(values=(1, 2), parts=frozenset({Part.COMMUNICATION})),
            "reduce_every_microbatch": Try(values=(False,), parts=frozenset({Part.COMMUNICATION})),
            "overlap": Try(values=(True,), parts=frozenset({Part.COMMUNICATION})),
        }
    )
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="device cpu",
            setting="overlap = false",
            holds=lambda fsdp2, run: not fsdp2.overlap,
            why="gloo's collectives wait where they stand, so there is nothing to switch off",
            instead="remove it",
        ),
        Refusal(
            beside="mesh.pp",
            setting="reduce_every_microbatch = false or defer_all_reduce = false",
            holds=lambda fsdp2, run: not (fsdp2.reduce_every_microbatch and fsdp2.defer_all_reduce),
            why="a pipeline reduces once, after its last microbatch, whatever they say",
            instead="remove them",
        ),
        Refusal(
            beside="pp",
            setting="reshard_after_forward = true",
            holds=lambda fsdp2, run: bool(fsdp2.reshard_after_forward) and Owns.SPLIT_BACKWARD in run.owners,
            why="the half of backward for the weights finds no gathered parameters, and leaves them without gradients",
            instead="remove it, or use a schedule that leaves backward whole: '1f1b' or 'interleaved_1f1b'",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """The shard axis, the reduction over it, and the compute dtype if it sets one."""
        dtype = frozenset({Owns.COMPUTE_DTYPE}) if self.param_dtype != "float32" else frozenset[Owns]()
        return frozenset({Owns.DP_SHARD, Owns.GRADIENT_REDUCTION}) | dtype

    @property
    def serves(self) -> frozenset[Owns]:
        """The replicate axis, unless somebody else keeps the replicas together."""
        return frozenset({Owns.DP_REPLICATE})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse what would have no effect, or no unit to shard."""
        if not run.facts.blocks:
            yield "the model names no blocks, so there is no unit to gather; use strategies.ddp"
        if self.prefetch >= max(len(run.facts.blocks), 1) and run.facts.blocks:
            yield f"prefetch = {self.prefetch}: the model has {len(run.facts.blocks)} blocks; use fewer"
        if "accumulation" not in run.active:
            if not self.reduce_every_microbatch:
                yield "reduce_every_microbatch = false: has no effect without strategies.accumulation; remove it"
            if not self.defer_all_reduce:
                yield "defer_all_reduce = false: has no effect without strategies.accumulation; remove it"
        if not self.defer_all_reduce and run.degrees[Axis.DP_REPLICATE] == 1:
            yield "defer_all_reduce = false: has no effect with mesh.dp_replicate = 1; remove it"
        elif not self.defer_all_reduce and run.owners.get(Owns.DP_REPLICATE, "fsdp2") != "fsdp2":
            other = run.owners[Owns.DP_REPLICATE]
            yield f"defer_all_reduce = false: has no effect beside strategies.{other}; remove it"
        if not self.defer_all_reduce and not self.reduce_every_microbatch:
            yield "defer_all_reduce = false: has no effect with reduce_every_microbatch = false; remove one of the two"
        if not self.overlap and self.prefetch != 1:
            yield f"prefetch = {self.prefetch}: has no effect with overlap = false; remove one of the two"

    def apply(self, program: Program, run: Run) -> Program:
        """Shard each part block by block, then the units outside, then the part itself; weights may be on meta."""
        from torch.distributed.fsdp import FSDPModule

        assert run.mesh is not None, "fsdp2 needs the device mesh"
        model, facts = program.model, program.facts
        layout = _Layout.of(self, run)
        for name in facts.experts.modules if facts.experts and run.degrees[Axis.EP] > 1 else ():
            layout.shard_experts(model.get_submodule(name))
        for part in facts.parts:
            blocks = [model.get_submodule(name) for name in facts.blocks if _within(name, part)]
            for block in blocks:
                layout.shard(block)
            units = [unit for unit in facts.units if _within(unit[0], part)]
            for unit in units:
                # The last unit is needed again as soon as backward begins: freeing it would only gather it twice.
                layout.shard([model.get_submodule(name) for name in unit], keep=unit == facts.units[-1])
            # What the root holds itself, a tied embedding, is needed from the first moment to the last.
            layout.shard(model.get_submodule(part), keep=True, root=True)
            _prefetch([_units_of(block) for block in blocks], self.prefetch if self.overlap else 0)
            first = [model.get_submodule(units[0][0])] if units and units[0] != facts.units[-1] else blocks[:1]
            for module in first:
                # Nothing comes before it in a microbatch. FSDP2 would go on to the one before, and gather the last
                # unit once more for nothing; whoever is gathered already needs no gathering.
                _sharded(module).set_modules_to_backward_prefetch([_sharded(module)])
        sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in sharded:
            # The loss is divided by the global number of tokens, so gradients are summed, not averaged; plain SUM,
            # because gloo has no PREMUL_SUM.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        if not self.overlap:
            _one_after_the_other(sharded, run)
        roots = [_sharded(model.get_submodule(part)) for part in facts.parts]

        def before_microbatch(is_last: bool) -> AbstractContextManager[Any]:
            for root in roots:
                root.set_is_last_backward(is_last)
                if not self.reduce_every_microbatch:
                    root.set_requires_gradient_sync(is_last)
                elif self.defer_all_reduce and layout.replicates:
                    root.set_requires_all_reduce(is_last)
            return nullcontext()

        def free_unsharded() -> None:
            for module in sharded:
                module.reshard()

        return replace(
            program,
            before_microbatch=before_microbatch,
            after_evaluation=free_unsharded,
            hidden_dtype=layout.policy.param_dtype,
        )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Meshes and policies with which modules are sharded."""

    dense: Any
    """Mesh of parameters that every rank computes with."""
    experts: Any
    """Mesh of parameters that the ranks along ep have different ones of."""
    options: dict[str, Any]
    policy: "MixedPrecisionPolicy"
    reshard: bool
    replicates: bool

    @staticmethod
    def of(fsdp: FSDP2, run: Run) -> "_Layout":
        """What the settings mean on the run's mesh."""
        import torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

        assert run.mesh is not None
        dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
        replicates = run.degrees[Axis.DP_REPLICATE] > 1 and run.owners.get(Owns.DP_REPLICATE) == "fsdp2"
        over = (Axis.DP_REPLICATE,) if replicates else ()
        offload = {"offload_policy": CPUOffloadPolicy(pin_memory=run.device_type == "cuda")} if fsdp.cpu_offload else {}
        in_pipeline = run.degrees[Axis.PP] > 1
        return _Layout(
            dense=side_by_side(run.mesh, *over, Joint.SHARD),
            experts=side_by_side(run.mesh, *over, Joint.EXPERT_SHARD),
            options=offload,
            policy=MixedPrecisionPolicy(param_dtype=dtypes[fsdp.param_dtype], reduce_dtype=dtypes[fsdp.reduce_dtype]),
            reshard=not in_pipeline if fsdp.reshard_after_forward is None else fsdp.reshard_after_forward,
            replicates=replicates,
        )

    def shard(self, modules: Any, *, keep: bool = False, root: bool = False) -> None:
        """Shard a module, or several as one unit; `keep` holds it after its forward pass."""
        from torch.distributed.fsdp import fully_shard

        # Only the root casts its inputs: a block must not round the float32 rotary angles that it is handed.
        policy = self.policy if root else replace(self.policy, cast_forward_inputs=False)
        reshard = self.reshard and not keep
        fully_shard(modules, mesh=self.dense, mp_policy=policy, reshard_after_forward=reshard, **self.options)

    def shard_experts(self, module: Any) -> None:
        """Shard the experts of this rank; by their rows, should there be fewer experts than ranks to share them."""
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard

        num_ranks = self.experts.size(-1)

        def placement(parameter: Any) -> Any:
            held = parameter.to_local().shape[0] if hasattr(parameter, "to_local") else parameter.shape[0]
            return Shard(0) if held >= num_ranks else Shard(1)

        fully_shard(
            module,
            mesh=self.experts,
            mp_policy=replace(self.policy, cast_forward_inputs=False),
            reshard_after_forward=self.reshard,
            shard_placement_fn=placement,
            **self.options,
        )
        hide_hooks(module)


def _within(name: str, part: str) -> bool:
    return not part or name.startswith(f"{part}.")


def _one_after_the_other(modules: "Sequence[FSDPModule]", run: Run) -> None:
    """Let the collectives run on the stream of the computation, where nothing can run beside them."""
    if run.device_type != "cuda":
        return
    import torch

    def share_the_stream(module: Any, arguments: object) -> None:
        stream = torch.cuda.current_stream()
        context = module._get_fsdp_state()._comm_ctx
        for name in ("all_gather_copy_in_stream", "all_gather_stream", "reduce_scatter_stream", "all_reduce_stream"):
            if hasattr(context, name):
                setattr(context, name, stream)

    for module in modules:
        cast("torch.nn.Module", module).register_forward_pre_hook(share_the_stream)


def _sharded(module: Any) -> "FSDPModule":
    """`fully_shard` has swapped the class of the module in place; this tells the type checker so."""
    return module


def _units_of(block: Any) -> "list[FSDPModule]":
    """What is gathered for a block: itself, and its experts where they are sharded on their own."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in block.modules() if isinstance(module, FSDPModule)]


def _prefetch(blocks: "list[list[FSDPModule]]", depth: int) -> None:
    """Explicit lists, because FSDP2's implicit prefetch stops working when a forward pass waits for the device."""
    for i, (block, *_) in enumerate(blocks):
        block.set_modules_to_forward_prefetch([unit for each in blocks[i + 1 : i + 1 + depth] for unit in each])
        before = blocks[max(0, i - depth) : i][::-1]
        block.set_modules_to_backward_prefetch([unit for each in before for unit in each])
