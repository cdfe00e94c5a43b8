"""The whole analysis of jobs whose answer is known: ranks are aligned, and what is compared among them is true."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic_job import Begin, Collective, End, Job, Launch, Program, Wait, Work, simulate
from synthetic_trace import Recording

from stepladder.profiling.trace import analysis, text
from stepladder.profiling.trace.analysis import Analysis, analyse, chosen, of_attribution
from stepladder.profiling.trace.job import Reading
from stepladder.profiling.trace.page import content_of

DATA = Path(__file__).parent / "data"
QUICK = Reading(detail=False, cache=False, num_processes=1)
LATE, WRONG_CLOCKS = (
    (0, 300_000, 100_000),
    (1_700_000_000_000_000_000, 1_700_000_000_005_000_000, 1_699_999_999_997_000_000),
)


def program(rank: int, num_steps: int) -> Program:
    """Steps of which rank 1 computes the longest; without steps once, unmarked."""
    body: list[Begin | End | Work | Launch | Collective | Wait] = [
        Work(20_000, "aten::linear"),
        Launch(300_000 + LATE[rank]),
        Launch(50_000, "relu"),
        Launch(500_000, "dgemm"),
        Collective(200_000, (0, 1, 2)),
        Wait(20),
    ]
    steps = [[Begin(f"ProfilerStep#{step}"), *body, End()] for step in range(num_steps)]
    return [action for step in steps for action in step] or body


def job(num_steps: int, clocks: Sequence[int] = WRONG_CLOCKS) -> Job:
    return simulate([program(rank, num_steps) for rank in range(3)], clock_ns=clocks)


def looked_at(paths: Sequence[Path]) -> Analysis:
    reading = Reading(detail=True, cache=False, num_processes=1)
    return analyse(paths, chosen(detail=True, drawing=True), reading=reading, with_path=True)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """A job of three steps whose ranks' clocks are wrong."""
    return looked_at(job(3).write(tmp_path_factory.mktemp("job")))


def test_the_path_through_all_ranks_is_the_one_that_the_job_took(tmp_path: Path) -> None:
    made = job(0)
    found = looked_at(made.write(tmp_path)).tables
    path = found["path_across"]
    assert path["time_ns"].sum() == made.makespan_ns
    kernels = {"gemm", "relu", "dgemm"}
    truth = [(node.rank, node.name, node.end - node.start) for node in made.critical_path() if node.name in kernels]
    assert sorted(path.filter(pl.col("name").is_in(kernels)).select("rank", "name", "time_ns").rows()) == sorted(truth)
    assert {rank for rank, _, _ in truth} == {1}
    assert found["critical_across"]["dur_ns"].sum() == made.makespan_ns
    gains = dict(found["what_if_across"].filter(pl.col("name").is_null()).select("change", "gain_ns").rows())
    assert gains["nothing"] == 0
    assert gains["communication overlapped"] == 200_000
    assert gains["no waiting for ranks"] == 0  # the last rank waits for nobody
    free = found["what_if_across"].filter(pl.col("name") == "dgemm")["gain_ns"].to_list()
    assert free == [500_000]


def test_what_waiting_for_ranks_costs_is_said_of_the_job_alone(tmp_path: Path) -> None:
    """Each of two ranks is late once, by 300 us: a job of ranks that wait for nobody is late once."""
    meet: list[Begin | End | Work | Launch | Collective | Wait] = [Collective(200_000, (0, 1)), Wait(20)]
    ranks = [[Launch(one), *meet, Launch(other), *meet] for one, other in ((400_000, 100_000), (100_000, 400_000))]
    found = looked_at(simulate(ranks).write(tmp_path)).tables
    gains = dict(found["what_if_across"].filter(pl.col("name").is_null()).select("change", "gain_ns").rows())
    assert gains["no waiting for ranks"] == 300_000
    assert gains["communication overlapped"] == 300_000 + 2 * 200_000
    assert "no waiting for ranks" not in found["what_if"]["change"].to_list()  # a rank alone cannot tell


def test_the_paths_of_the_ranks_are_of_one_step_and_the_late_rank_is_the_straggler(stepped: Analysis) -> None:
    found = stepped.tables
    assert set(found["path"]["step"]) == set(found["path_across"]["step"]) == {1}
    sums = found["path"].group_by("rank").agg(pl.col("time_ns").sum())
    assert sums["time_ns"].n_unique() == 1  # all leave the exchange together
    late = found["stragglers"]
    assert late["rank"].to_list()[0] == 1
    assert late["num_late"].to_list() == [3, 0, 0]
    assert late.filter(pl.col("rank") == 1)["mean_late_ns"].item() == 300_000


def test_ranks_are_aligned_by_their_clocks_in_what_is_drawn(stepped: Analysis) -> None:
    found = stepped
    raw, drawn = found.tables["timeline"], content_of(found, title="job").timeline
    assert drawn is not None
    for frame, apart in ((raw, 8_000_000), (drawn, 0)):
        ends = frame.filter(pl.col("name").str.starts_with("ncclDevKernel"))
        ends = ends.select(end=pl.col("start_ns") + pl.col("dur_ns"))["end"]
        assert ends.max() - ends.min() == apart  # pyright: ignore
    critical = content_of(found, title="job").critical
    assert critical is not None
    assert critical["start_ns"].max() - critical["start_ns"].min() < 2_000_000  # pyright: ignore
    assert any("rank 1 was 5000.0 us ahead of that of rank 0 (give or take 0.0)" in note for note in found.notes)
    said = "\n".join(text.summary(found))
    assert "the critical path of step 1 through all ranks" in said
    assert "of it on rank 1" in said


def test_right_clocks_are_left_as_they_are_and_nothing_is_said(tmp_path: Path) -> None:
    found = looked_at(job(3, clocks=(10**18,) * 3).write(tmp_path))
    assert found.notes == []
    drawn = content_of(found, title="job").timeline
    assert drawn is not None
    assert drawn.equals(found.tables["timeline"])


def test_ranks_of_other_steps_are_left_out_of_the_path(tmp_path: Path) -> None:
    job(3).write(tmp_path)
    other = tmp_path / "rank-2.json.gz"
    other.unlink()
    shifted = simulate([program(rank, 9) for rank in range(3)]).recordings[2]
    shifted.write(other)
    found = looked_at([tmp_path])
    assert any("leaves out rank 2" in note for note in found.notes)
    assert set(found.tables["path_across"]["rank"]) <= {0, 1}


def test_a_missing_rank_is_told_and_nobody_is_blamed_for_it(tmp_path: Path) -> None:
    """Rank 1 is late by 300 us; without its trace that is neither transfer nor the fault of rank 2."""
    paths = job(3).write(tmp_path)
    whole = analyse(paths, reading=QUICK)
    assert not any("were read" in note for note in whole.notes)
    assert whole.tables["collective_waits"]["last_rank"].to_list() == [1] * 3
    assert whole.tables["collective_waits"]["transfer_ns"].to_list() == [200_000] * 3
    found = analyse([paths[0], paths[2]], reading=QUICK)
    assert any("2 of 3 ranks were read (missing 1)" in note for note in found.notes)
    waits = found.tables["collective_waits"]
    assert waits.select("transfer_ns", "last_rank", "cost_ns").rows() == [(None,) * 3] * 3
    assert "comes late" not in "\n".join(text.summary(found))
    assert analyse(paths[:1], reading=QUICK).notes == []  # of one rank nothing is compared


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[Path]:
    """The job of three steps, each trace changed."""
    paths = job(3).write(folder, ".json")
    for path in paths:
        trace = json.loads(path.read_text())
        change(trace)
        path.write_text(json.dumps(trace))
    return paths


def test_the_path_goes_through_kernels_of_which_only_the_operator_tells_the_collective(tmp_path: Path) -> None:
    """As RCCL writes them: one name for all, the arguments at the operator around the launch."""

    def as_rccl(trace: dict[str, Any]) -> None:
        calls = {each["args"].get("correlation"): each for each in trace["traceEvents"] if "runtime" in each["cat"]}
        for kernel in [each for each in trace["traceEvents"] if "Collective name" in each["args"]]:
            own = {key: kernel["args"][key] for key in ("stream", "device", "correlation")}
            call = calls[own["correlation"]]
            said = {key: value for key, value in kernel["args"].items() if key not in own}
            trace["traceEvents"].append(call | {"cat": "cpu_op", "name": "record_param_comms", "args": said})
            kernel |= {"name": "ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", "args": own}

    (tmp_path / "named").mkdir()
    named = looked_at(job(3).write(tmp_path / "named")).tables["path_across"]
    found = looked_at(rewritten(tmp_path, as_rccl)).tables
    assert len(found["collective_waits"]) == 3
    assert found["path_across"]["rank"].to_list() == named["rank"].to_list()
    assert found["path_across"]["time_ns"].to_list() == named["time_ns"].to_list()
    assert 1 in named["rank"].to_list()


def test_ranks_that_never_meet_have_no_common_path_and_it_is_said(tmp_path: Path) -> None:
    def alone(trace: dict[str, Any]) -> None:
        kept = [each for each in trace["traceEvents"] if "Collective name" not in each["args"]]
        trace["traceEvents"] = kept

    found = looked_at(rewritten(tmp_path, alone))
    assert found.tables["path_across"].height == 0
    assert any("no critical path through all ranks: no collective of step 1" in note for note in found.notes)


def test_files_that_say_nothing_of_their_job_are_looked_at_in_the_same_step(tmp_path: Path) -> None:
    """Another step of each rank is of median length."""

    def nameless(trace: dict[str, Any]) -> None:
        rank = trace.pop("distributedInfo")["rank"]
        for each in trace["traceEvents"]:
            if each["name"].startswith("ProfilerStep#"):
                each["dur"] -= [0, 1, 2][(int(each["name"][-1]) + rank) % 3]

    found = looked_at(rewritten(tmp_path, nameless))
    assert set(found.tables["path"]["step"]) == set(found.tables["path_across"]["step"]) == {1}
    assert found.tables["timeline"].group_by("rank").len().height == 3
    assert not any("leaves out" in note for note in found.notes)


@pytest.mark.parametrize("name", ["cpu_only", "amd_mi250_minitoy", "vllm_decode_graph", "h100_qwen_18k"])
def test_every_dialect_has_every_table_and_a_page(name: str) -> None:
    found = looked_at([DATA / name / "rank-0.json.gz"])
    for table in ("operators", "operations", "sequences", "counters", "stragglers", "memory", "memory_peaks", "path"):
        assert found.tables[table].columns[0] == "rank"
    assert found.tables["path_across"].height == 0
    assert list(text.summary(found))
    content_of(found, title=name)
    path = found.tables["path"]
    assert path["time_ns"].sum() == found.tables["critical"]["dur_ns"].sum()


def test_a_quick_look_has_neither_and_a_look_without_a_page_nothing_that_is_only_drawn(tmp_path: Path) -> None:
    paths = job(1).write(tmp_path)
    reading = Reading(detail=False, cache=False, num_processes=1)
    quick = analyse(paths, chosen(detail=False, drawing=False), reading=reading)
    assert not {"path", "operators", "memory", "roofline"} & set(quick.tables)
    whole = analyse(paths, chosen(detail=True, drawing=False), reading=reading, with_path=True)
    assert not set(analysis.DRAWN) & set(whole.tables)
    assert whole.tables["path_across"].height


def test_a_host_that_marks_nothing_is_attributed_too() -> None:
    made = Recording()
    made.operator("aten::mm", 0, 5000)
    table = of_attribution(made.trace())["attribution"]
    assert table["owned_ns"].sum() == 5000
