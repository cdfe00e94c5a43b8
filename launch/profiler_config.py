"""Recipe table of the profiler: which steps are captured, on which ranks, and what with."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..profiling.capture import Schedule
from ..strategies.limits import Count, PositiveInt


@dataclass(frozen=True, kw_only=True)
class ProfilerConfig:
    """torch.profiler by schedule; beside it, or instead of it, NVTX, Nsight, memory snapshots, the flight recorder."""

    skip_first: Count = 10
    """Steps before the first cycle."""
    wait: Count = 0
    """Steps of each cycle in which the profiler is off."""
    warmup: Count = 1
    """Steps of each cycle in which it runs and throws away, for its own start is slow."""
    active: PositiveInt = 3
    """Steps of each cycle that are recorded."""
    repeat: PositiveInt = 1
    """Cycles."""
    trace: bool = True
    """Write Kineto traces; false leaves only what else is switched on here."""
    ranks: tuple[int, ...] | None = None
    """Ranks that record; all of them if left out."""
    record_shapes: bool = False
    """Keep the shapes of operator inputs."""
    with_stack: bool = False
    """Keep Python stacks; expensive."""
    profile_memory: bool = False
    """Keep allocations."""
    with_flops: bool = False
    """Estimate FLOPs of matrix products and convolutions."""
    nvtx: bool = False
    """Mark spans as NVTX ranges for Nsight Systems (CUDA)."""
    cuda_window: bool = False
    """Open the cudaProfilerApi range around the recorded steps, for `nsys --capture-range=cudaProfilerApi` (CUDA)."""
    memory_snapshot: bool = False
    """Write the allocator's history at the end, also of a run that fails (CUDA)."""
    flight_recorder: bool = False
    """Keep the last collectives and write them when one times out."""

    @property
    def schedule(self) -> Schedule:
        """The steps as the profiler takes them."""
        return Schedule(
            skip_first=self.skip_first, wait=self.wait, warmup=self.warmup, active=self.active, repeat=self.repeat
        )

    def problems(self) -> Iterator[str]:
        """A table that records nothing."""
        others = (self.nvtx, self.cuda_window, self.memory_snapshot, self.flight_recorder)
        if not self.trace and not any(others):
            yield "trace = false: nothing is left to record; remove profiler or switch something on"
        if not self.trace:
            for key in ("record_shapes", "with_stack", "profile_memory", "with_flops"):
                if getattr(self, key):
                    yield f"{key} = true: has no effect with trace = false; remove it"
        if self.cuda_window and self.trace:
            yield "cuda_window = true: Nsight and torch.profiler cannot record at once; set trace = false"
        if self.cuda_window and self.repeat > 1:
            yield f"repeat = {self.repeat}: cuda_window opens once; use repeat = 1"
        if self.ranks is not None and not self.ranks:
            yield "ranks = []: nobody records; name ranks or leave it out"

    def run_problems(self, *, num_steps: int, num_ranks: int, device_type: str) -> Iterator[str]:
        """What does not fit this run."""
        last = self.schedule.last_step
        if (self.trace or self.cuda_window) and last > num_steps:
            yield (
                f"profiler: the last window ends with step {last}, but run.num_steps = {num_steps}; "
                f"skip or record fewer steps"
            )
        for rank in self.ranks or ():
            if not 0 <= rank < num_ranks:
                yield f"profiler.ranks = {list(self.ranks or ())}: there is no rank {rank} of {num_ranks}; remove it"
        if device_type != "cuda":
            for key in ("nvtx", "cuda_window", "memory_snapshot"):
                if getattr(self, key):
                    yield f"profiler.{key} = true: has no effect without a GPU; remove it"
