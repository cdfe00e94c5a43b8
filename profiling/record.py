"""Marks the phases of a step: for torch.profiler, for Nsight Systems (NVTX), for both, or for nobody at no cost."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from .spans import Span

Marker = Callable[[Span], AbstractContextManager[object]]
"""What the loop calls around each phase: `with mark(Span.FORWARD): ...`."""

_NOTHING = nullcontext()


def no_span(span: Span) -> AbstractContextManager[object]:
    """Mark nothing. Costs about 0.1 us, so a run without a profiler pays nothing for its spans."""
    return _NOTHING


def marker(*, record: bool, nvtx: bool) -> Marker:
    """Marker for the tools that listen: `record` for torch.profiler, `nvtx` for Nsight Systems."""
    if not record and not nvtx:
        return no_span
    import torch

    if not nvtx:
        return torch.profiler.record_function
    if not record:
        return torch.cuda.nvtx.range

    @contextmanager
    def both(span: Span) -> Generator[None]:
        with torch.profiler.record_function(span), torch.cuda.nvtx.range(span):
            yield

    return both
