"""Distributed data parallel: every rank holds the whole model and sees its own part of the batch.

Problem: one device is too slow, and the model fits into its memory.
Mechanism: gradients are collected in buckets and all-reduced while backward still computes the earlier layers.
Saves: near-linear throughput; one all-reduce of the gradients a step, mostly hidden behind backward.
Costs: parameters, gradients and optimizer state on every rank (16 bytes a parameter with AdamW in float32).
When: the model with its optimizer state fits on one device; links between ranks are slower than NVLink.
When not: state does not fit; take fsdp2.
Measure: gradient_sync in the breakdown (exposed communication), tokens/s against one rank.
Source: Li et al. 2020, arXiv:2006.15704; torch.nn.parallel.DistributedDataParallel.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .base import Owns, Program, Run
from .limits import PositiveInt
from .materialise import materialise
from .mesh import AXES_OF, Joint
from .refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class DDP:
    """Replicates the model over `mesh.dp_replicate`."""

    bucket_mib: PositiveInt | None = None
    """Size of a gradient bucket (25): smaller starts earlier, larger uses the link better."""
    gradient_as_bucket_view: bool = True
    """Gradients live in the buckets: one copy and one gradient's memory less."""
    static_graph: bool = False
    """Promise that every step uses the same parameters in the same order; lets buckets follow the observed order."""
    find_unused_parameters: bool = False
    """Search the graph for parameters without gradient in each step; costs a traversal."""
    overlap: bool = True
    """Reduce while backward runs; false waits for the last gradient (for an A/B that shows what overlap wins)."""

    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="mesh.tp",
            why="DistributedDataParallel knows no sliced parameters",
            instead="use strategies.fsdp2 with mesh.dp_replicate, which replicates as well",
        ),
        Refusal(
            beside="mesh.pp",
            why="DistributedDataParallel would reduce each stage's buckets once a microbatch",
            instead="use strategies.fsdp2 with mesh.dp_replicate, which replicates as well",
        ),
        Refusal(
            beside="mesh.ep",
            why="it would sum the gradients of different experts",
            instead="use strategies.fsdp2, with mesh.dp_replicate for replicas",
        ),
        Refusal(
            beside="accumulation",
            setting="static_graph = true",
            holds=lambda ddp, run: ddp.static_graph,
            why="DistributedDataParallel fails when its first backward pass reduces nothing",
            instead="remove one of the two",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """The replicate axis, and the reduction over it (and over cp)."""
        return frozenset({Owns.DP_REPLICATE, Owns.GRADIENT_REDUCTION})

    def check(self, run: Run) -> Iterator[str]:
        """Refuse what DistributedDataParallel refuses later, or ignores."""
        if self.static_graph and self.find_unused_parameters:
            yield "find_unused_parameters = true: has no effect beside static_graph = true; keep one of the two"
        if self.bucket_mib is not None and not self.overlap:
            yield "bucket_mib: has no effect with overlap = false, which is one bucket; remove one of the two"

    def apply(self, program: Program, run: Run) -> Program:
        """Wrap the model; the weights must exist by now, for the ranks compare them."""
        from torch.nn.parallel import DistributedDataParallel

        assert run.mesh is not None, "ddp needs the device mesh"
        assert run.device is not None, "ddp needs the device"
        materialise(program, run)
        # One bucket larger than any model reduces after the last gradient: what overlap = false means.
        bucket_mib = (self.bucket_mib or 25) if self.overlap else 1 << 20
        model = DistributedDataParallel(
            program.model,
            device_ids=[run.device] if run.device_type == "cuda" else None,
            process_group=run.mesh[Joint.REDUCE].get_group(),
            bucket_cap_mb=bucket_mib,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            static_graph=self.static_graph,
            find_unused_parameters=self.find_unused_parameters,
        )

        def before_microbatch(is_last: bool) -> AbstractContextManager[Any]:
            return nullcontext() if is_last else model.no_sync()

        return replace(
            program,
            model=model,
            before_microbatch=before_microbatch,
            gradient_divisor=program.gradient_divisor * math.prod(run.degrees[axis] for axis in AXES_OF[Joint.REDUCE]),
        )
