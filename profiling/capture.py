"""Captures a window of training: torch.profiler schedule, Nsight window, memory snapshot, flight recorder.

The pieces are context managers that yield a `tick`, called once after every step.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which steps a profiler records: skip, then `repeat` times (wait, warm up, record). Units: optimizer steps."""

    skip_first: int
    wait: int
    warmup: int
    active: int
    repeat: int

    @property
    def last_step(self) -> int:
        """The number of steps after which the last window is complete."""
        return self.skip_first + (self.wait + self.warmup + self.active) * self.repeat


def trace_name(rank: int, step: int) -> str:
    """File name of a rank's trace whose window ended with `step`."""
    return f"rank-{rank}.step-{step}.pt.trace.json.gz"


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it, so that nobody ever sees half of it.

    A link stays one: its target is replaced. A pipe or a device is written to as it is.
    """
    if path.exists() and not path.is_file():
        write(path)
        return
    if path.is_symlink():
        path = path.resolve()
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def torch_profiler(
    folder: Path,
    *,
    schedule: Schedule,
    rank: int,
    first_step: int = 0,
    record_shapes: bool = False,
    with_stack: bool = False,
    profile_memory: bool = False,
    with_flops: bool = False,
) -> Generator[Tick]:
    """Record the scheduled steps and write one `rank-<r>.step-<n>.pt.trace.json.gz` for each window.

    `first_step` is the number of steps already done before this process (a resumed run), so that names stay true.
    """
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def save(profile: "torch.profiler.profile") -> None:
        # `step_num` counts the ticks so far, and the window closes in the tick of its last step.
        path = folder / trace_name(rank, first_step + profile.step_num)
        publish(path, lambda partial: profile.export_chrome_trace(str(partial)))

    with torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(
            skip_first=schedule.skip_first,
            wait=schedule.wait,
            warmup=schedule.warmup,
            active=schedule.active,
            repeat=schedule.repeat,
        ),
        on_trace_ready=save,
        record_shapes=record_shapes,
        with_stack=with_stack,
        profile_memory=profile_memory,
        with_flops=with_flops,
    ) as profile:
        yield profile.step


@contextmanager
def nsight_window(*, first: int, last: int) -> Generator[Tick]:
    """Open the `cudaProfilerApi` range around steps `first`..`last` (counted from 1, both included).

    For `nsys profile --capture-range=cudaProfilerApi`.
    """
    import torch

    runtime: Any = torch.cuda.cudart()
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done == first - 1:
            torch.cuda.synchronize()  # or the window would begin with kernels of the steps before
            runtime.cudaProfilerStart()
        if done == last:
            torch.cuda.synchronize()
            runtime.cudaProfilerStop()

    if first == 1:
        runtime.cudaProfilerStart()
    try:
        yield tick
    finally:
        if first - 1 <= done < last:  # the run has ended inside the window
            runtime.cudaProfilerStop()


@contextmanager
def memory_snapshot(folder: Path, *, rank: int, max_entries: int = 100_000) -> Generator[None]:
    """Record the CUDA allocator's history and write `rank-<r>.memory.pickle`, also when the run fails (out of memory).

    For https://pytorch.org/memory_viz. The file is torch's own format; stepladder never reads it back.
    """
    import torch

    memory: Any = torch.cuda.memory
    memory._record_memory_history(max_entries=max_entries)  # the documented entry point, underscore and all
    try:
        yield
    finally:
        publish(folder / f"rank-{rank}.memory.pickle", lambda partial: memory._dump_snapshot(str(partial)))
        memory._record_memory_history(enabled=None)


def keep_collectives(folder: Path) -> None:
    """Switch on the flight recorder of the last 2000 collectives; before the process group exists.

    NCCL writes `rank_<r>` into the folder by itself when a collective times out; `torchfrtrace` reads them.
    """
    os.environ.update(
        {
            "TORCH_FR_BUFFER_SIZE": "2000",
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_FR_DUMP_TEMP_FILE": f"{folder}{os.sep}rank_",
        }
    )


@contextmanager
def collectives_of_a_failure(folder: Path, *, rank: int, nccl: bool = False) -> Generator[None]:
    """Leave the kept collectives of a rank that fails as `rank-<r>.json`; gloo has no watchdog that would do it."""
    import torch

    folder.mkdir(exist_ok=True)
    try:
        yield
    except Exception:
        c10d: Any = torch._C._distributed_c10d  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        # NCCL keeps a recorder of its own.
        dump = c10d._dump_nccl_trace_json if nccl else c10d._dump_fr_trace_json
        record = dump(includeCollectives=True, onlyActive=False)
        publish(folder / f"rank-{rank}.json", lambda partial: partial.write_bytes(record))
        raise
