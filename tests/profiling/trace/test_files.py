"""Which files are a job's traces, and whether they belong together: what does not is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.profiling.errors import TraceError
from stepladder.profiling.trace.analysis import Analysis, analyse, of_steps
from stepladder.profiling.trace.job import Reading
from stepladder.profiling.trace.one_job import Recorded, doubts

SECOND = 10**9


def trace(path: Path, rank: int | None, *, step: int = 3, ts: float = 0) -> None:
    events: list[dict[str, Any]] = [
        {"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{step}", "pid": 1, "tid": 1, "ts": ts, "dur": 9},
        {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": ts + 1, "dur": 5, "args": {"stream": 7}},
    ]
    job = {} if rank is None else {"distributedInfo": {"rank": rank, "world_size": 2}}
    path.write_text(json.dumps(job | {"traceEvents": events}))


def analysed(paths: Any) -> Analysis:
    return analyse(paths, (of_steps,), reading=Reading(cache=False, num_processes=1))


def notes(folder: Path) -> list[str]:
    return list(analysed([folder]).notes)


def test_files_that_are_left_out_of_a_folder_are_named(tmp_path: Path) -> None:
    for rank in (0, 1):
        trace(tmp_path / f"rank-{rank}.step-5.pt.trace.json", rank)
    trace(tmp_path / "rank-0.step-2.pt.trace.json", 0)  # an older window, which nobody expects to be read
    assert notes(tmp_path) == []
    for name in ("other.json", "myhost_1234.pt.trace.json"):
        trace(tmp_path / name, 0)
    (note,) = notes(tmp_path)
    assert "2 of its files" in note
    assert "myhost_1234.pt.trace.json, other.json;" in note
    assert "step-2" not in note


def test_windows_of_different_steps_and_times_are_said_to_be(tmp_path: Path) -> None:
    trace(tmp_path / "rank-0.step-100.pt.trace.json", 0, step=100)
    trace(tmp_path / "rank-1.step-50.pt.trace.json", 1, step=50)
    (note,) = notes(tmp_path)
    assert "rank 1 was recorded in other steps (50) than rank 0 (100)" in note
    trace(tmp_path / "rank-1.step-100.pt.trace.json", 1, step=100, ts=5e6)
    (note,) = notes(tmp_path)
    assert "the trace of rank 1 begins 5.0 s after that of rank 0 ends" in note


def test_a_path_without_a_trace_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    trace(tmp_path / "rank-0.json", 0)
    paths = [tmp_path / "empty", tmp_path / "nowhere.json", tmp_path / "rank-0.json"]
    found = analysed(paths)
    assert (found.ranks, found.files) == ([0], paths[2:])
    empty, nowhere = found.notes
    assert "no trace in this folder" in empty
    assert "nowhere.json: no such file or folder" in nowhere
    with pytest.raises(TraceError, match=r"no trace in this folder.*no such file or folder"):
        analysed(paths[:2])


def test_the_rank_of_a_name_is_its_last_and_not_that_of_a_lora(tmp_path: Path) -> None:
    for rank in (0, 1):
        trace(tmp_path / f"lora-rank16-rank-{rank}.json", None)
    found = analysed(tmp_path)
    assert (found.ranks, found.notes) == ([0, 1], [])
    trace(tmp_path / "run2_rank1.json", None)
    (note,) = notes(tmp_path)
    assert "run2_rank1.json: is named rank 1, as is" in note
    trace(tmp_path / "run2_rank1.json", 1)
    (note,) = notes(tmp_path)
    assert "run2_rank1.json: says that it is rank 1, as is" in note


def test_one_path_need_not_be_in_a_list_nor_be_a_path_and_none_is_said_to_be_missing(tmp_path: Path) -> None:
    trace(tmp_path / "rank-1.json", 1)
    for paths in (tmp_path, str(tmp_path), [str(tmp_path / "rank-1.json")], (tmp_path,)):
        assert analysed(paths).ranks == [1]
    with pytest.raises(TraceError, match="no path was given"):
        analysed([])


def test_ranks_of_one_job_raise_no_doubts_and_those_of_several_do() -> None:
    def one(rank: int, *, first: int = 10, begin: float = 0, **said: str) -> Recorded:
        start_ns = int((begin + 0.1 * rank) * SECOND)
        return Recorded(steps=(first, first + 2, 3), start_ns=start_ns, end_ns=start_ns + SECOND, said=said)

    job = {rank: one(rank, backend="nccl", nccl_version="2.20.5") for rank in range(16)}
    assert doubts(job) == []
    assert doubts({0: one(0), 1: one(1, begin=1.9)}) == []  # a second apart, as clocks can be
    assert len(doubts({0: one(0), 1: one(1, begin=2.1)})) == 1
    (note,) = doubts(job | {3: one(3, backend="nccl", nccl_version="2.18.1")})
    assert "nccl_version (2.18.1, 2.20.5)" in note
    (note,) = doubts(job | {rank: one(rank, first=20) for rank in range(4, 16)})
    assert "ranks 4, 5, 6, 7, 8, 9, 10, 11, ... were recorded in other steps (20 to 22) than rank 0 (10 to 12)" in note
    sampled = {rank: replace(each, world_size=20) for rank, each in job.items() if rank not in (3, 4, 6)}
    (note,) = doubts(sampled)
    assert note.startswith("13 of 20 ranks were read (missing 3 to 4, 6, 16 to 19)")
    assert doubts({0: sampled[0]}) == []  # of one nothing is compared
    (note,) = doubts({0: one(0), 1: one(1)}, largest_group=4)
    assert note.startswith("a collective is of 4 ranks, and 2 ranks were read")
    unmarked = Recorded(steps=None, start_ns=0, end_ns=SECOND, said={})
    assert doubts({0: unmarked, 1: one(1)}) == []
