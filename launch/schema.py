"""The recipe: every table and key that a TOML file may have."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..strategies import Strategies
from ..strategies.limits import AtLeast, Below, PositiveInt
from ..strategies.mesh import MeshConfig
from ..trainer.checkpoint.config import CheckpointConfig
from ..trainer.data.config import BatchConfig, DataConfig, LoaderConfig
from ..trainer.evaluation import EvaluationConfig
from ..trainer.models import ModelConfig
from .profiler_config import ProfilerConfig
from .trackers import TrackersConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long to train, where, and what is the same every time."""

    num_steps: PositiveInt = 100
    """Optimizer steps."""
    log_every: PositiveInt = 10
    """Steps between log lines; the only steps in which the host waits for the device."""
    seed: Annotated[int, AtLeast(0), Below(2**32)] = 0
    """Seed of weights, data order and random operators."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPUs if there are any."""
    cpu_ranks: PositiveInt = 1
    """Ranks that `stepladder run` starts where there is no GPU; with GPUs it starts one on each."""
    threads_per_rank: Annotated[int, AtLeast(1), Below(4097)] | None = None
    """Host threads of each rank; left out, the cores are shared among the local ranks."""
    deterministic: bool = False
    """Only deterministic kernels: bitwise repeatable, and slower."""
    gc_every: PositiveInt = 100
    """Steps between Python garbage collections, on all ranks together; automatic collection is off meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. A table that is present is on."""

    name: str = "run"
    """Begins the name of the run folder."""
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    strategies: Any = field(default_factory=Strategies)
    """`Strategies`, or the same with installed third-party strategies in it."""
    evaluation: EvaluationConfig | None = None
    checkpoint: CheckpointConfig | None = None
    profiler: ProfilerConfig | None = None
    trackers: TrackersConfig | None = None

    def problems(self) -> Iterator[str]:
        """A name that is no name of a folder."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            yield (
                f"name = {self.name[:100]!r}: begins the run folder's name; use up to 100 letters, digits, "
                f"dots, dashes and underscores"
            )

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one rank in one step."""
        accumulation = self.strategies.accumulation
        return accumulation.num_microbatches if accumulation else 1

    def tokens_per_step(self, data_ranks: int) -> int:
        """Tokens of all ranks in one optimizer step."""
        return self.batch.microbatch_size * self.tokens_per_sample * self.num_microbatches * data_ranks

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of a sequence; an image, and a sample of a user's own model, counts as one."""
        return self.batch.sequence_length if self.model.chosen.takes == "tokens" else 1
