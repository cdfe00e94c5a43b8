"""Tensor and sequence parallelism: ranks hold slices of every matrix and work on the same tokens.

Problem: one layer's weights or activations are too large or too slow for one device, or there are more devices than
samples to give them.
Mechanism: matrices are split by output features, then by input features, so that a pair needs one gather before it and
one reduce-scatter after it; between the pairs each rank has a part of the positions; the loss is taken of slices of the
logits.
Saves: parameters, optimizer state, activations and logits divided by the degree; time, where the links keep up.
Costs: four collectives of [B, T, D] a block in forward and backward each, none of which backward hides.
When: inside a node, on NVLink; when fsdp2 alone would need microbatches below one sample, or layers do not fit.
When not: across nodes, or for narrow models, whose slices are too thin to keep a device busy.
Measure: time in all_gather and reduce_scatter that nothing hides; tokens/s and peak memory against fsdp2 alone.
Source: Shoeybi et al. 2019, arXiv:1909.08053; Korthikanti et al. 2022, arXiv:2205.05198; torch.distributed.tensor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Batch, Owns, Program, Run
from .changes import Changes, MayChange
from .mesh import Axis
from .refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, kw_only=True)
class TensorParallel:
    """Slices the matrices over `mesh.tp`."""

    sequence_parallel: bool = True
    """Split the positions where they do not meet (norms, residual stream): activations divided by the degree, and a
    reduce-scatter with an all-gather in the place of each all-reduce, which is the same traffic."""
    loss_parallel: bool = True
    """Take the loss of the slices of the logits; false gathers the logits, [B, T, V], first."""
    async_tp: bool = False
    """Cut gathers and reduce-scatters into pieces that overlap with the multiplications beside them."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER)
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="device cpu",
            setting="async_tp = true",
            holds=lambda tp, run: tp.async_tp,
            why="it copies between the memories of GPUs",
            instead="remove async_tp",
        ),
        Refusal(
            beside="compile",
            setting="async_tp = true, with strategies.compile.backend = 'eager' or 'aot_eager'",
            holds=lambda tp, run: tp.async_tp and run.setting("compile", "backend") in ("eager", "aot_eager"),
            why="it is Inductor that cuts the collectives, so it has no effect",
            instead="use backend = 'inductor', or remove async_tp",
        ),
        Refusal(
            beside="chunked_loss",
            setting="loss_parallel = false",
            holds=lambda tp, run: not tp.loss_parallel,
            why="it never has whole logits to gather",
            instead="remove loss_parallel",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """The tp axis."""
        return frozenset({Owns.TP})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse models without a plan, sizes that cannot be divided, and settings that need others."""
        facts, degree = run.facts, run.degrees[Axis.TP]
        if not facts.slicing:
            yield "the model says nothing about how to slice it; use strategies.fsdp2"
        if facts.tied:
            yield "the output projection is the embedding, which is sliced another way; untie them"
        working = math.gcd(*facts.sliced_sizes.values()) if facts.sliced_sizes else 0
        for key, size in facts.sliced_sizes.items():
            if size % degree:
                yield f"{key} = {size}: not divisible by mesh.tp = {degree}; use mesh.tp = {_nearest(working, degree)}"
        if self.sequence_parallel and not facts.splits_positions:
            yield "sequence_parallel = true: the model asks its hidden states for their length; set it to false"
        pieces = degree * run.degrees[Axis.CP]
        length = facts.sequence_length
        if self.sequence_parallel and length % pieces:
            cp = f" x mesh.cp = {run.degrees[Axis.CP]}" if run.degrees[Axis.CP] > 1 else ""
            # What head-tail balancing asks for as well, so that one change satisfies both.
            of = math.lcm(pieces, 2 * run.degrees[Axis.CP]) if cp and run.setting("cp", "balance") != "none" else pieces
            yield (
                f"sequence_parallel = true: batch.sequence_length = {length} is not divisible by mesh.tp = {degree}"
                f"{cp}; use {_multiples(length, of)}, or sequence_parallel = false"
            )
        if self.async_tp and not self.sequence_parallel:
            yield "async_tp = true: has no effect with sequence_parallel = false; remove one of the two"
        if self.async_tp and "compile" not in run.active:
            yield "async_tp = true: it is the compiler that cuts the collectives; add strategies.compile = {}"

    def apply(self, program: Program, run: Run) -> Program:
        """Slice the modules that this rank has; weights may be on meta, and real ones must be equal on all ranks."""
        from torch.distributed.tensor import Replicate, Shard

        from .tensor_styles import Layout, settle_partial

        assert run.mesh is not None, "tp needs the device mesh"
        mesh = run.mesh[Axis.TP]
        chunked = "chunked_loss" in run.active
        layout = Layout(
            mesh=mesh,
            between=Shard(1) if self.sequence_parallel else Replicate(),
            logits=None if chunked else Shard(-1) if self.loss_parallel else Replicate(),
            spares_experts=run.degrees[Axis.EP] > 1,
        )
        layout.cut(program.model, program.facts.slicing)
        if self.async_tp:
            program = _overlap_collectives(program, mesh)
        return replace(
            program,
            loss=_loss_of_slices(mesh) if self.loss_parallel and not chunked else program.loss,
            after_backward=(*program.after_backward, settle_partial(program.model)),
            sequence_split=program.sequence_split * (mesh.size() if self.sequence_parallel else 1),
        )


def _loss_of_slices(mesh: "DeviceMesh") -> Any:
    """The loss of this rank's columns of the logits."""
    from .vocab_parallel import vocab_parallel_cross_entropy

    def sliced_loss(logits_BTV: "Tensor", batch: Batch) -> "Tensor":
        return vocab_parallel_cross_entropy(logits_BTV.flatten(0, -2), batch.labels.flatten(), mesh)

    return sliced_loss


def _overlap_collectives(program: Program, mesh: "DeviceMesh") -> Program:
    """Have Inductor fuse gathers and reduce-scatters with matrix products, through memory that the GPUs share."""
    import torch.distributed._symmetric_memory as symmetric_memory

    # Deprecated as needless, but Inductor's pass still asks whether it has been called (torch 2.11 to 2.13).
    enable: Any = symmetric_memory.enable_symm_mem_for_group  # pyright: ignore[reportDeprecated]
    enable(mesh.get_group().group_name)
    return replace(program, compiler_options={**program.compiler_options, "_micro_pipeline_tp": True})


def _nearest(size: int, degree: int) -> str:
    """Divisors of `size` next to `degree`."""
    below = max(each for each in range(1, degree + 1) if size % each == 0)
    above = min((each for each in range(degree + 1, size + 1) if size % each == 0), default=None)
    return f"{below}" if above is None else f"{below} or {above}"


def _multiples(length: int, of: int) -> str:
    """Multiples next to `length`, but not 0."""
    below = length // of * of
    return f"{below} or {below + of}" if below else f"{of}"
