"""Marks the phases of a step: for torch.profiler, for Nsight Systems (NVTX), for both, or for nobody at no cost."""

import gc
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from .spans import GARBAGE_COLLECTION

Marker = Callable[[str], AbstractContextManager[object]]
"""What the loop calls around each phase: `with mark(Span.FORWARD): ...`."""

_NOTHING = nullcontext()


def no_span(span: str) -> AbstractContextManager[object]:
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
    def both(span: str) -> Generator[None]:
        with torch.profiler.record_function(span), torch.cuda.nvtx.range(span):
            yield

    return both


@contextmanager
def collections_marked(mark: Marker) -> Generator[None]:
    """Mark each collection of garbage, whoever asked for it: the run, the program, or Python itself.

    Python never begins a collection inside another one, so there is one mark at most.
    """
    with ExitStack() as marked:

        def follow(phase: str, info: dict[str, Any]) -> None:
            if phase == "start":
                marked.enter_context(mark(GARBAGE_COLLECTION))
            else:
                marked.close()  # also when what began it had not been heard

        gc.callbacks.append(follow)
        try:
            yield
        finally:
            gc.callbacks.remove(follow)
