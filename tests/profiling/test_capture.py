"""Windows of the profiler: which steps they hold, what their files are called, and that none is half written."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.profiling import capture
from stepladder.profiling.capture import Schedule, publish, torch_profiler, trace_name
from stepladder.profiling.trace.load import read_trace


def read_events(path: Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def windows(schedule: Schedule, num_steps: int) -> dict[int, list[int]]:
    """Brute force over the docstring: last step of each complete window (from 1) -> its steps as torch numbers them."""
    found: dict[int, list[int]] = {}
    cycle = schedule.wait + schedule.warmup + schedule.active
    for repeat in range(schedule.repeat):
        first = schedule.skip_first + repeat * cycle + schedule.wait + schedule.warmup
        if first + schedule.active <= num_steps:
            found[first + schedule.active] = list(range(first, first + schedule.active))
    return found


SCHEDULES = [
    Schedule(skip_first=0, wait=0, warmup=0, active=1, repeat=1),
    Schedule(skip_first=2, wait=0, warmup=1, active=3, repeat=1),
    Schedule(skip_first=1, wait=1, warmup=1, active=2, repeat=2),
]


@pytest.mark.parametrize("first_step", [0, 100])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_window_is_a_file_named_by_its_last_step(schedule: Schedule, first_step: int, tmp_path: Path) -> None:
    num_steps = schedule.last_step + 1
    with torch_profiler(tmp_path, schedule=schedule, rank=7, first_step=first_step) as tick:
        for _ in range(num_steps):
            torch.ones(4).add_(1)
            tick()
    expected = windows(schedule, num_steps)
    assert len(expected) == schedule.repeat
    assert max(expected) == schedule.last_step
    names = {trace_name(7, first_step + step): steps for step, steps in expected.items()}
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for name, steps in names.items():
        events = read_events(tmp_path / name)
        marks = {e["name"] for e in events if re.fullmatch(r"ProfilerStep#\d+", str(e.get("name")))}
        assert marks == {f"ProfilerStep#{step}" for step in steps}
        assert any(e.get("name") == "aten::add_" for e in events)
        assert read_trace(tmp_path / name).steps.height == schedule.active


def test_a_run_that_ends_within_a_window_leaves_a_whole_file(tmp_path: Path) -> None:
    schedule = Schedule(skip_first=0, wait=0, warmup=1, active=5, repeat=1)
    with pytest.raises(KeyError), torch_profiler(tmp_path, schedule=schedule, rank=0) as tick:  # noqa: PT012
        for _ in range(3):
            torch.ones(4).add_(1)
            tick()
        raise KeyError("the run fails here")
    (path,) = tmp_path.iterdir()
    assert path.name == trace_name(0, 3)
    assert read_trace(path).steps.height >= 2


def test_options_reach_the_trace(tmp_path: Path) -> None:
    schedule = Schedule(skip_first=0, wait=0, warmup=0, active=1, repeat=1)
    found: dict[str, str] = {}
    for name in ("none", "record_shapes", "with_stack", "profile_memory", "with_flops"):
        folder = tmp_path / name
        folder.mkdir()
        options: dict[str, Any] = {} if name == "none" else {name: True}
        with torch_profiler(folder, schedule=schedule, rank=0, **options) as tick:
            torch.ones(3, 5) @ torch.ones(5, 7)
            tick()
        found[name] = json.dumps(read_events(next(folder.iterdir())))
    assert "Input Dims" in found["record_shapes"]
    assert "Input Dims" not in found["none"]
    assert "test_capture.py" in found["with_stack"]
    assert "test_capture.py" not in found["none"]
    assert '"[memory]"' in found["profile_memory"]
    assert '"[memory]"' not in found["none"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result"

    def half(partial: Path) -> None:
        partial.write_text("half")
        assert not path.exists()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(path, half)
    assert list(tmp_path.iterdir()) == []
    publish(path, lambda partial: partial.write_text("whole") and None)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("before")
    link.symlink_to(target)
    publish(link, lambda partial: partial.write_text("through the link"))
    assert link.is_symlink()
    assert target.read_text() == "through the link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        publish(pipe, lambda partial: partial.write_text("through the pipe"))
        assert os.read(reader, 100) == b"through the pipe"
        assert pipe.is_fifo()
    finally:
        os.close(reader)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link", "pipe"}


class FakeCudart:
    """Writes down after how many steps the window was opened and closed."""

    def __init__(self) -> None:
        self.done = 0
        self.calls: list[tuple[str, int]] = []

    def cudaProfilerStart(self) -> None:  # noqa: N802
        self.calls.append(("start", self.done))

    def cudaProfilerStop(self) -> None:  # noqa: N802
        self.calls.append(("stop", self.done))


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 4), (3, 3), (2, 5)])
def test_the_nsight_window_opens_before_its_first_step_and_closes_after_its_last(
    first: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeCudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with capture.nsight_window(first=first, last=last) as tick:
        for _ in range(6):
            runtime.done += 1
            tick()
    assert runtime.calls == [("start", first - 1), ("stop", last)]


def failing_run(folder: str) -> None:
    from stepladder.profiling.capture import collectives_of_a_failure

    rank = torch.distributed.get_rank()
    with pytest.raises(KeyError), collectives_of_a_failure(Path(folder), rank=rank):  # noqa: PT012
        torch.distributed.all_reduce(torch.ones(3))
        raise KeyError("the run fails here")


def test_a_failing_run_leaves_its_last_collectives(
    tmp_path: Path, run_ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "100")
    run_ranks(failing_run, 2, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {f"rank-{rank}.json" for rank in (0, 1)}
    entries = json.loads((tmp_path / "rank-1.json").read_text())["entries"]
    assert "all_reduce" in entries[-1]["profiling_name"]


def test_the_memory_history_is_written_even_if_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording: list[Any] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(
        memory, "_record_memory_history", lambda enabled="all", max_entries=0: recording.append(enabled)
    )
    monkeypatch.setattr(memory, "_dump_snapshot", lambda name: Path(name).write_bytes(b"snapshot"))
    with pytest.raises(MemoryError), capture.memory_snapshot(tmp_path, rank=2):
        raise MemoryError
    assert (tmp_path / "rank-2.memory.pickle").read_bytes() == b"snapshot"
    assert recording == ["all", None]
