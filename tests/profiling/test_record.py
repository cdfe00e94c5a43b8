"""Each marker reaches the tools that listen, and no others."""

import gc
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stepladder.profiling.record import collections_marked, marker, no_span
from stepladder.profiling.spans import GARBAGE_COLLECTION, Span


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("nvtx", [False, True])
def test_a_span_is_seen_by_those_who_listen(record: bool, nvtx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[str] = []

    @contextmanager
    def nvtx_range(message: str) -> Generator[None]:
        ranges.append(f"begin {message}")
        yield
        ranges.append(f"end {message}")

    monkeypatch.setattr(torch.cuda.nvtx, "range", nvtx_range)
    mark = marker(record=record, nvtx=nvtx)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, mark(Span.CLIP):
        torch.ones(2).add_(1)
    assert (Span.CLIP.value in {event.key for event in profiler.key_averages()}) == record
    assert ranges == ([f"begin {Span.CLIP.value}", f"end {Span.CLIP.value}"] if nvtx else [])
    assert (mark is no_span) == (not record and not nvtx)


def test_no_span_can_be_nested() -> None:
    with no_span(Span.FORWARD), no_span(Span.BACKWARD), no_span(Span.FORWARD):
        pass


def test_collections_of_garbage_are_marked_while_somebody_listens() -> None:
    mark = marker(record=True, nvtx=False)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, collections_marked(mark), mark(Span.FORWARD):
        gc.collect()
    events = list(profiler.events() or ())
    forward = next(event for event in events if event.name == Span.FORWARD.value).time_range
    collections = [event.time_range for event in events if event.name == GARBAGE_COLLECTION]
    assert any(forward.start <= each.start <= each.end <= forward.end for each in collections)


def test_nothing_is_left_in_the_collector_when_marking_ends() -> None:
    before = list(gc.callbacks)
    with collections_marked(no_span):
        assert len(gc.callbacks) == len(before) + 1
    assert gc.callbacks == before
