"""Every optimization that a recipe can name: one file each, a frozen config with `check` and `apply`.

`Strategies` is the TOML schema, the registry and the order of application in one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from .ac import ActivationCheckpointing
from .accumulation import Accumulation
from .adamw import AdamW
from .amp import Amp
from .base import Strategy
from .chunked_loss import ChunkedLoss
from .clip import Clip
from .compile import Compile
from .cp import ContextParallel
from .cuda_graph import CudaGraph
from .ddp import DDP
from .distill import Distillation
from .ep import ExpertParallel
from .fp8 import FP8
from .fsdp2 import FSDP2
from .local_sgd import LocalSGD
from .matmul_precision import MatmulPrecision
from .nccl import NCCL
from .optimizer_in_backward import OptimizerInBackward
from .pp import PipelineParallel
from .qat import QuantizationAware
from .schedule import Schedule
from .tp import TensorParallel

__all__ = ["Strategies", "active"]


@dataclass(frozen=True, kw_only=True)
class Strategies:
    """Every strategy a recipe can name. Field order is application order; torch.compile sees what ac has wrapped."""

    matmul_precision: MatmulPrecision | None = None
    nccl: NCCL | None = None
    pp: PipelineParallel | None = None  # first: what follows sees only the stages of this rank
    fp8: FP8 | None = None  # before anything slices, shards or wraps the layers
    qat: QuantizationAware | None = None  # as fp8
    tp: TensorParallel | None = None
    chunked_loss: ChunkedLoss | None = None  # after tp: the head's weight may be sliced
    cp: ContextParallel | None = None
    ep: ExpertParallel | None = None  # after tp: what it slices, ep spreads
    ac: ActivationCheckpointing | None = None
    compile: Compile | None = None  # after ac: Inductor then sees the recomputation too (pytorch #161889)
    ddp: DDP | None = None
    fsdp2: FSDP2 | None = None  # after compile: its hooks stay outside the compiled blocks
    local_sgd: LocalSGD | None = None  # after fsdp2: it averages shards
    distill: Distillation | None = None  # after fsdp2, which shards the teacher too
    adamw: AdamW | None = None  # made when the sharded weights exist
    optimizer_in_backward: OptimizerInBackward | None = None
    amp: Amp | None = None
    accumulation: Accumulation | None = None
    clip: Clip | None = None
    schedule: Schedule | None = None
    cuda_graph: CudaGraph | None = None  # last: it captures what the others have decided


def active(strategies: Any) -> Iterator[tuple[str, Strategy]]:
    """Name and value of each strategy that is on, in order of application."""
    for each in fields(strategies):
        if (value := getattr(strategies, each.name)) is not None:
            yield each.name, value
