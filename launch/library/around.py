"""What goes around a loop of one's own, and what reads what it has left."""

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...profiling.record import no_span
from ...profiling.spans import Span
from ..errors import UsageError

if TYPE_CHECKING:
    from ...profiling.trace.analysis import Analysis


def span(name: str) -> AbstractContextManager[object]:
    """Mark a phase of the step for the analysis: `with stepladder.span("forward"): ...`; nothing while none profiles.

    name: `data_wait`, `host_to_device`, `forward`, `backward`, `gradient_sync`, `clip`, `optimizer`, `logging`,
    `checkpoint` or `evaluation`. Raises: UsageError for another one, which the analysis would not know.
    """
    known = {each.label: each for each in Span}
    if name not in known:
        raise UsageError(f"span = {name!r}: no phase that the analysis knows; use one of {', '.join(known)}")
    import torch

    autograd: Any = torch.autograd
    if not autograd._profiler_enabled():
        return no_span(known[name])
    return torch.profiler.record_function(known[name])


@contextmanager
def profile(
    folder: str | os.PathLike[str],
    *,
    skip_first: int = 10,
    warmup: int = 1,
    active: int = 3,
    record_shapes: bool = False,
    with_stack: bool = False,
    profile_memory: bool = False,
) -> Generator[Callable[[], None]]:
    """Record `active` steps of a loop and leave a trace of this rank in `folder`; yields what to call after each step.

    with stepladder.profile("traces") as step:
        for batch in loader:
            ...
            step()

    Raises: UsageError for a schedule that records nothing.
    """
    from ...profiling import capture

    for key, value, least in (("skip_first", skip_first, 0), ("warmup", warmup, 0), ("active", active, 1)):
        if value < least:
            raise UsageError(f"{key} = {value}: must be at least {least}")
    traces = Path(folder)
    traces.mkdir(parents=True, exist_ok=True)
    schedule = capture.Schedule(skip_first=skip_first, wait=0, warmup=warmup, active=active, repeat=1)
    with capture.torch_profiler(
        traces,
        schedule=schedule,
        rank=_rank(),
        record_shapes=record_shapes,
        with_stack=with_stack,
        profile_memory=profile_memory,
    ) as tick:
        yield tick


def _rank() -> int:
    """Of this process: as the process group numbers it, or else torchrun."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else int(os.environ.get("RANK", "0"))


def analyze(*paths: str | os.PathLike[str], detail: bool = True) -> "Analysis":
    """What the traces in some files and folders say: `analyze("traces").tables["steps"]` is a polars frame.

    detail: rooflines, memory, operators and the critical path as well. Raises: TraceError for what is no trace.
    """
    from ...profiling.trace import analysis
    from ...profiling.trace.job import Reading

    if not paths:
        raise UsageError("analyze(): nothing to read; give folders or files of traces")
    makers = analysis.chosen(detail=detail, drawing=False)
    reading = Reading(detail=detail, cache=False, num_processes=1)
    return analysis.analyse([Path(each) for each in paths], makers, reading=reading, with_path=detail)
