"""Distributed data parallel: every rank holds the whole model and sees its own part of the batch.

Problem: one device is too slow, and the model fits into its memory.
Mechanism: gradients are collected in buckets and all-reduced while backward still computes the earlier layers.
A bucket may be compressed on its way: as BF16 or FP16, or as the product of two thin matrices (PowerSGD).
Saves: near-linear throughput; one all-reduce of the gradients a step, mostly hidden behind backward. Compression saves
half of its bytes (bf16, fp16), or all but rank x (rows + columns) numbers of each matrix (powersgd).
Costs: parameters, gradients and optimizer state on every rank (16 bytes a parameter with AdamW in float32). PowerSGD:
another gradient's memory for what was not sent yet, which a resumed run starts without.
When: the model with its optimizer state fits on one device; links between ranks are slower than NVLink. Compression:
gradient_sync shows in the breakdown and the network is what limits it.
When not: state does not fit; take fsdp2.
Measure: gradient_sync in the breakdown (exposed communication), tokens/s against one rank; with compression the loss
at equal steps.
Source: Li et al. 2020, arXiv:2006.15704; torch.nn.parallel.DistributedDataParallel; PowerSGD: Vogels et al. 2019,
arXiv:1905.13727.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, Depends, MayChange, rules
from .limits import AtLeast, PositiveInt
from .materialise import materialise
from .mesh import AXES_OF, Joint
from .refusal import Refusal
from .wins import WAITING, Part, Try, Wins

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.nn.parallel import DistributedDataParallel

_START_STEP = 1000
"""Of PowerSGD, if the recipe says nothing: torch's own."""


_SYNC_BUFFERS = "forward_sync_buffers"
_BUCKETS = Depends(
    usually=Changes.NOTHING,
    sometimes=Changes.REDUCTION_ORDER,
    when="of more than two ranks",  # a ring begins the sum of a number where it lies in the bucket
    holds=lambda ddp, run: math.prod(run.degrees[axis] for axis in AXES_OF[Joint.REDUCE]) > 2,
)


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

    compression: Literal["none", "bf16", "fp16", "powersgd"] = "none"
    """How gradients travel. `bf16` keeps their range and 8 bits, `fp16` 11 bits but nothing below 6e-8; `powersgd`
    sends an approximation of low rank and adds what it left out to the next step's gradient."""
    powersgd_rank: PositiveInt | None = None
    """PowerSGD: columns of the two thin matrices (1). A matrix that would not shrink to half is sent whole."""
    powersgd_start_step: Annotated[int, AtLeast(2)] | None = None
    """PowerSGD: steps after the start, or a resume, that send whole gradients, for they change fast at first (1000)."""

    changes: ClassVar[MayChange] = MayChange(
        switch=Changes.REDUCTION_ORDER,
        keys={
            **rules(_BUCKETS, "bucket_mib", "static_graph", "overlap"),
            **rules(Changes.NOTHING, "gradient_as_bucket_view", "find_unused_parameters"),
            "compression": Depends(
                usually=Changes.PRECISION,
                sometimes=Changes.LOW_PRECISION,
                when="with 'powersgd'",
                holds=lambda ddp, run: ddp.compression == "powersgd",
            ),
            **rules(Changes.LOW_PRECISION, "powersgd_rank", "powersgd_start_step"),
        },
    )
    wins: ClassVar[Wins] = Wins(
        keys={
            "bucket_mib": Try(values=(5, 100), parts=frozenset({Part.COMMUNICATION})),
            "static_graph": Try(values=(True,), parts=WAITING | {Part.COMMUNICATION}),
            "overlap": Try(values=(True,), parts=frozenset({Part.COMMUNICATION})),
            "gradient_as_bucket_view": Try(values=(True,), parts=frozenset({Part.COPIES, Part.POINTWISE})),
            "find_unused_parameters": Try(values=(False,), parts=WAITING),
            "compression": Try(values=("bf16",), parts=frozenset({Part.COMMUNICATION})),
        }
    )
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
            beside="chunked_loss",
            setting="find_unused_parameters = true",
            holds=lambda ddp, run: ddp.find_unused_parameters,
            why="it takes the output projection, which the loss uses, for unused",
            instead="remove find_unused_parameters",
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
        """The replicate axis, and the reduction over it (and over cp); PowerSGD keeps parts of gradients for later."""
        scale = frozenset({Owns.GRADIENT_SCALE}) if self.compression == "powersgd" else frozenset[Owns]()
        return frozenset({Owns.DP_REPLICATE, Owns.GRADIENT_REDUCTION}) | scale

    def check(self, run: Run) -> Iterator[str]:
        """Refuse what DistributedDataParallel refuses later, or ignores."""
        if self.static_graph and self.find_unused_parameters:
            yield "find_unused_parameters = true: has no effect beside static_graph = true; keep one of the two"
        if self.bucket_mib is not None and not self.overlap:
            yield "bucket_mib: has no effect with overlap = false, which is one bucket; remove one of the two"
        if self.compression != "powersgd":
            for key in ("powersgd_rank", "powersgd_start_step"):
                if getattr(self, key) is not None:
                    yield f"{key}: has no effect with compression = {self.compression!r}; remove it or use 'powersgd'"
        elif (self.powersgd_start_step or _START_STEP) >= run.num_steps:
            first = self.powersgd_start_step or _START_STEP
            yield f"powersgd_start_step = {first}: is never reached in {run.num_steps} steps; choose an earlier one"

    def apply(self, program: Program, run: Run) -> Program:
        """Wrap the model; the weights must exist by now, for the ranks compare them."""
        from torch.nn.parallel import DistributedDataParallel

        assert run.mesh is not None, "ddp needs the device mesh"
        group = run.mesh[Joint.REDUCE].get_group()
        assert run.device is not None, "ddp needs the device"
        materialise(program, run)
        # One bucket larger than any model reduces after the last gradient: what overlap = false means.
        bucket_mib = (self.bucket_mib or 25) if self.overlap else 1 << 20
        # Buffers begin equal, and what a rank counts in them is its own. torch 2.13 gave the option another name.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers: dict[str, Any] = {_SYNC_BUFFERS if _SYNC_BUFFERS in known else "broadcast_buffers": False}
        model = DistributedDataParallel(
            program.model,
            device_ids=[run.device] if run.device_type == "cuda" else None,
            process_group=group,
            bucket_cap_mb=bucket_mib,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            **buffers,
            static_graph=self.static_graph,
            find_unused_parameters=self.find_unused_parameters,
        )
        self._compress(model, group, run.seed)

        def before_microbatch(is_last: bool) -> AbstractContextManager[Any]:
            return nullcontext() if is_last else model.no_sync()

        return replace(
            program,
            model=model,
            before_microbatch=before_microbatch,
            gradient_divisor=program.gradient_divisor * math.prod(run.degrees[axis] for axis in AXES_OF[Joint.REDUCE]),
        )

    def _compress(self, model: "DistributedDataParallel", group: "ProcessGroup", seed: int) -> None:
        """Have buckets reduced by a hook. Torch's hooks divide by the number of ranks, as DDP does without one."""
        if self.compression == "none":
            return
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        if self.compression == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                group,
                matrix_approximation_rank=self.powersgd_rank or 1,
                start_powerSGD_iter=self.powersgd_start_step or _START_STEP,
                random_seed=seed % 2**32,
            )
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        else:
            narrow = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}
            hook = narrow[self.compression]
            # Under another name, because DDP refuses the one for BF16 without NCCL; gloo can do it. Unannotated,
            # because DDP compares annotations, which here would be strings.
            model.register_comm_hook(group, lambda state, bucket: hook(state, bucket))  # pyright: ignore[reportUnknownLambdaType]
