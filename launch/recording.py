"""What a session records beside its metrics, and when Python collects its garbage: things entered around the loop."""

import gc
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..profiling import capture
from ..profiling.record import collections_marked, marker
from ..trainer.loop import StepResult, Watcher
from ..trainer.metrics import Meter
from .profiler_config import ProfilerConfig

if TYPE_CHECKING:
    import torch


def _records(profiler: ProfilerConfig | None, rank: int) -> bool:
    """Whether this rank takes part."""
    return profiler is not None and (profiler.ranks is None or rank in profiler.ranks)


def _traces(folder: Path) -> Path:
    traces = folder / "traces"
    traces.mkdir(exist_ok=True)
    return traces


def remember_allocations(stack: ExitStack, profiler: ProfilerConfig | None, folder: Path, rank: int) -> None:
    """Enter the memory snapshot, if asked for: before the model is built, so that its own tensors are in it."""
    if profiler is not None and _records(profiler, rank) and profiler.memory_snapshot:
        stack.enter_context(capture.memory_snapshot(_traces(folder), rank=rank))


def profilers(
    stack: ExitStack, profiler: ProfilerConfig | None, folder: Path, rank: int, first_step: int
) -> Iterator[Watcher]:
    """Enter the Nsight window and torch.profiler, as far as asked for; yields who must be told of every step."""
    if profiler is None or not _records(profiler, rank):
        return
    schedule = profiler.schedule
    if profiler.cuda_window:
        first = schedule.skip_first + schedule.wait + schedule.warmup + 1
        window = capture.nsight_window(first=first, last=first + schedule.active - 1)
        yield _every_step(stack.enter_context(window))
    if profiler.trace or profiler.nvtx:
        stack.enter_context(collections_marked(marker(record=profiler.trace, nvtx=profiler.nvtx)))
    if profiler.trace:
        recorder = capture.torch_profiler(
            _traces(folder),
            schedule=schedule,
            rank=rank,
            first_step=first_step,
            record_shapes=profiler.record_shapes,
            with_stack=profiler.with_stack,
            profile_memory=profiler.profile_memory,
            with_flops=profiler.with_flops,
        )
        yield _every_step(stack.enter_context(recorder))


def _every_step(tick: capture.Tick) -> Watcher:
    def look(result: StepResult) -> None:
        tick()

    return Watcher(every=1, look=look)


@contextmanager
def collection_by_steps(every: int) -> Generator[Watcher]:
    """Collect on all ranks in the same steps, so that no rank waits for another one's collector."""

    def collect(result: StepResult) -> None:
        gc.collect(1)

    gc.disable()
    gc.freeze()  # what lives now lives to the end; later collections need not look at it
    try:
        yield Watcher(every=every, look=collect)
    finally:
        gc.enable()
        gc.unfreeze()


def paused(meter: Meter, device: "torch.device", look: Callable[[StepResult], None]) -> Callable[[StepResult], None]:
    """`look`, its duration left out of the interval that the meter measures."""
    import torch

    def look_aside(result: StepResult) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is still queued belongs to the training, not to the pause
        started_s = time.perf_counter()
        look(result)
        meter.skip_pause(started_s)

    return look_aside
