"""Advice: a planted fault is the first thing named, its clean twin gets none, and no bound exceeds what was seen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic_job import Begin, Collective, End, Launch, Wait, Work, simulate
from synthetic_trace import Recording

from stepladder.profiling.spans import Span
from stepladder.profiling.trace.advice import Fault, Finding, advise, exchanges, kernels, nothing_found, of_advice
from stepladder.profiling.trace.advice.facts import Facts
from stepladder.profiling.trace.analysis import STANDARD, Analysis, analyse, of_shapes
from stepladder.profiling.trace.job import Reading
from stepladder.profiling.trace.report.content import Content
from stepladder.profiling.trace.text import summary

US, MS = 1_000, 1_000_000
NUM_STEPS = 3
DATA = Path(__file__).parent / "data"
GLOO = 3
"""The thread of the backend."""
H100 = [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "warpSize": 32}]


def look_at(folder: Path) -> Analysis:
    reading = Reading(detail=True, cache=False, num_processes=1)
    return analyse([folder], [*STANDARD, of_shapes, of_advice], reading=reading)


@cache
def real(name: str) -> Analysis:
    return look_at(DATA / name)


@dataclass
class Host:
    """A rank without a device, step by step."""

    recording: Recording
    now: int = 0

    def operators(self, name: str, num: int, ns: int, gap_ns: int = 2 * US) -> None:
        for _ in range(num):
            self.recording.operator(name, self.now, ns)
            self.now += ns + gap_ns

    def phase(self, span: str, inside: Callable[[], None]) -> None:
        place, start = len(self.recording.events), self.now
        inside()
        self.recording.mark(str(span), start, self.now - start)
        self.recording.events.insert(place, self.recording.events.pop())

    def wait(self, ns: int) -> None:
        self.now += ns

    def exchange(self, start: int, ns: int, num_elements: int | None = None) -> None:
        said: dict[str, Any] = {}
        if num_elements is not None:
            said = {"Collective name": "allreduce", "dtype": "Float", "In msg nelems": num_elements, "Group size": 2}
            said["Out msg nelems"] = num_elements
        self.recording.add("user_annotation", "gloo:all_reduce", start, ns, 100, GLOO, **said)


@dataclass(kw_only=True)
class Plan:
    """What each rank without a device does in a step; the values are those of a good run."""

    num_ranks: int = 2
    data_wait_ns: Sequence[int] = (500 * US, 500 * US)
    forward_ns: Sequence[int] = (40 * MS, 40 * MS)
    steps_apart: int = NUM_STEPS
    """From the first on; in the others all ranks take the forward time of rank 0."""
    forward_operators: int = 10
    optimizer: tuple[str, int, int] = ("aten::_fused_adamw_", 1, 2 * MS)
    num_microbatches: int = 1
    reduces_each: bool = False
    num_exchanges: int = 1
    exchange_ns: int = 1 * MS
    num_elements: int | None = None
    more: dict[str, int] = field(default_factory=dict[str, int])
    """Marks in the forward pass, and how long each takes."""
    reads: int = 0


def write_host(folder: Path, plan: Plan) -> Analysis:
    """Ranks that meet in their exchanges, as gloo's would."""
    hosts = [Host(Recording(rank, plan.num_ranks)) for rank in range(plan.num_ranks)]
    for number in range(NUM_STEPS):
        starts, places = [host.now for host in hosts], [len(host.recording.events) for host in hosts]
        for rank, host in enumerate(hosts):
            host.phase(Span.DATA_WAIT, lambda host=host, rank=rank: host.wait(plan.data_wait_ns[rank]))
        for microbatch in range(plan.num_microbatches):
            for rank, host in enumerate(hosts):
                host.phase(Span.FORWARD, lambda host=host, rank=rank, number=number: forward(host, plan, rank, number))
            begun = [(len(host.recording.events), host.now) for host in hosts]
            for host in hosts:
                host.operators("MmBackward0", 10, 5 * MS // plan.num_microbatches)
            if plan.reduces_each or microbatch == plan.num_microbatches - 1:
                meet(hosts, plan)
            for host, (place, start) in zip(hosts, begun, strict=True):
                host.recording.mark(Span.BACKWARD, start, host.now - start)
                host.recording.events.insert(place, host.recording.events.pop())
        for host, start, place in zip(hosts, starts, places, strict=True):
            name, num, ns = plan.optimizer
            host.phase(
                Span.OPTIMIZER,
                lambda host=host, name=name, num=num, ns=ns: host.phase(
                    "Optimizer.step#AdamW.step", lambda: host.operators(name, num, ns)
                ),
            )
            host.recording.mark(f"ProfilerStep#{number}", start, host.now - start)
            host.recording.events.insert(place, host.recording.events.pop())
    for host in hosts:
        host.recording.write(folder / f"rank-{host.recording.rank}.json")
    return look_at(folder)


def forward(host: Host, plan: Plan, rank: int, number: int) -> None:
    num = plan.forward_operators
    forward_ns = plan.forward_ns[rank if number < plan.steps_apart else 0]
    host.operators("aten::mm", num, forward_ns // num // plan.num_microbatches)
    for name, ns in plan.more.items():
        host.recording.python(name, host.now, ns) if "collect" in name else host.recording.mark(name, host.now, ns)
        host.now += ns
    host.operators("aten::_local_scalar_dense", plan.reads, 1 * US)


def meet(hosts: list[Host], plan: Plan) -> None:
    """Exchanges that begin on each rank when it is there, and end on all together."""
    for each in range(plan.num_exchanges):
        end = max(host.now for host in hosts) + plan.exchange_ns
        for host in hosts:
            host.exchange(host.now, end - host.now - each, plan.num_elements)
            host.now = end


FAULTS_OF_A_HOST = {
    "The loader is too slow": Plan(num_ranks=1, data_wait_ns=(40 * MS,)),
    "The loader is too slow ": Plan(data_wait_ns=(500 * US, 40 * MS)),  # on one rank, for which the other then waits
    "Rank 1 is late": Plan(forward_ns=(40 * MS, 70 * MS)),
    "The optimizer is not fused": Plan(num_ranks=1, optimizer=("aten::addcdiv_", 100, 100 * US)),
    "Many tiny operators": Plan(num_ranks=1, forward_ns=(35 * MS,), forward_operators=7000),
    "Many small all-reduces": Plan(num_exchanges=20, num_elements=10_000),
    "Many small all-reduces ": Plan(num_exchanges=20),  # of a trace without shapes
    "Gradients are reduced in every microbatch": Plan(num_microbatches=4, reduces_each=True, exchange_ns=4 * MS),
    "Large exchanges are far below": Plan(exchange_ns=60 * MS, num_elements=10_000_000),
    "Exchanges do not overlap": Plan(exchange_ns=60 * MS),
    "Exchanges do not overlap ": Plan(num_exchanges=10, exchange_ns=6 * MS),  # many, but none of them short
    "The model is compiled again": Plan(num_ranks=1, more={"entire_frame_compile": 30 * MS}),
    "Garbage collections": Plan(num_ranks=1, more={"<built-in function collect>": 10 * MS}),
    "A number is read": Plan(num_ranks=1, reads=1),
}


@pytest.mark.parametrize("title", FAULTS_OF_A_HOST)
def test_faults_of_a_run_without_a_device_are_named_first(tmp_path: Path, title: str) -> None:
    found = advise(write_host(tmp_path, FAULTS_OF_A_HOST[title]))
    assert [each.title[: len(title.strip())] for each in found] == [title.strip()]


@pytest.mark.parametrize("plan", [Plan(), Plan(num_microbatches=4, num_exchanges=4, num_elements=1_000_000)])
def test_good_runs_without_a_device_get_none(tmp_path: Path, plan: Plan) -> None:
    analysis = write_host(tmp_path, plan)
    assert advise(analysis) == []
    assert nothing_found(analysis).startswith("Nothing to advise")


def test_on_a_host_exchange_and_waits_are_called_what_they_are(tmp_path: Path) -> None:
    """The table of steps has exposed and overlapped exchange; what it costs on a host is both."""
    analysis = write_host(tmp_path, Plan(data_wait_ns=(40 * MS, 40 * MS), exchange_ns=60 * MS))
    facts = Facts(analysis)
    (finding,) = exchanges.dominating(facts, exchanges._rows(facts))  # pyright: ignore[reportPrivateUsage]
    assert "is exchange, exposed or overlapped" in finding.evidence[0]
    said = "\n".join(summary(analysis))
    assert "the host waits (the traces have no device)" in said
    assert "waits for a device" not in said


def test_products_are_no_evidence_for_chains_that_only_move_memory() -> None:
    rows = [("attention", "flash_fwd_kernel", 900), ("pointwise", "mul_kernel", 100)]
    same = {"rank": 0, "bound": "memory", "byte_s": 1e12, "efficiency": 0.5}
    table = pl.DataFrame([same | {"family": family, "name": name, "dur_ns": ns} for family, name, ns in rows])
    facts = Facts(Analysis(tables={"roofline": table}, ranks=[0], notes=[], num_bytes=0))
    (said,) = kernels._rates(facts, 0)  # pyright: ignore[reportPrivateUsage]
    assert "mul_kernel" in said


def test_tiny_operators_stay_tiny_where_some_were_interrupted(tmp_path: Path) -> None:
    host = Host(Recording())
    for number in range(NUM_STEPS):
        start = host.now
        for each in range(4000):
            host.operators("aten::add", 1, 1 * MS if each % 50 == 0 else 5 * US)
        host.recording.mark(f"ProfilerStep#{number}", start, host.now - start)
    host.recording.write(tmp_path / "rank-0.json")
    (found,) = advise(look_at(tmp_path))
    assert found.fault is Fault.TINY_OPERATORS
    assert found.wins_at_most_ns == 80 * MS + 3920 * 5 * US


def test_long_calls_of_an_operator_are_work_where_they_are_many(tmp_path: Path) -> None:
    host = Host(Recording())
    for number in range(NUM_STEPS):
        start = host.now
        for each in range(1000):
            host.operators("aten::add", 1, 1 * MS if each % 10 == 0 else 5 * US)
        host.recording.mark(f"ProfilerStep#{number}", start, host.now - start)
    host.recording.write(tmp_path / "rank-0.json")
    assert advise(look_at(tmp_path)) == []


def test_bounds_are_what_was_planted(tmp_path: Path) -> None:
    (loader,) = advise(write_host(tmp_path, Plan(num_ranks=1, data_wait_ns=(40 * MS,))))
    assert loader.wins_at_most_ns == 40 * MS
    assert "rank 0" in loader.evidence[0]
    assert "data_wait" in loader.evidence[1]
    assert "loader.num_workers" in loader.remedy


def test_the_late_rank_is_told_with_what_it_spends_more_on(tmp_path: Path) -> None:
    (late,) = advise(write_host(tmp_path, Plan(forward_ns=(40 * MS, 70 * MS))))
    assert late.wins_at_most_ns == pytest.approx(30 * MS, rel=0.01)
    assert any("forward" in each for each in late.evidence)


@pytest.mark.parametrize("steps_apart", [1, 2])
def test_a_rank_that_is_late_in_some_steps_is_late_by_chance(tmp_path: Path, steps_apart: int) -> None:
    assert advise(write_host(tmp_path, Plan(forward_ns=(40 * MS, 200 * MS), steps_apart=steps_apart))) == []


def test_uneven_stages_of_a_pipeline_are_told_with_the_time_of_each(tmp_path: Path) -> None:
    for rank, busy_ns in enumerate((80 * MS, 30 * MS)):
        host = Host(Recording(rank, 2))
        for number in range(NUM_STEPS):
            place, start = len(host.recording.events), host.now
            host.phase(
                Span.PIPELINE, lambda host=host, busy_ns=busy_ns, end=start + 100 * MS: stage(host, busy_ns, end)
            )
            host.recording.mark(f"ProfilerStep#{number}", start, host.now - start)
            host.recording.events.insert(place, host.recording.events.pop())
        host.recording.write(tmp_path / f"rank-{rank}.json")
    (found,) = advise(look_at(tmp_path))
    assert found.title == "The stages of the pipeline are uneven"
    assert found.wins_at_most_ns == 25 * MS
    assert "rank 0: 80 ms, rank 1: 30 ms" in found.evidence[0]


def stage(host: Host, busy_ns: int, end: int) -> None:
    host.operators("aten::mm", 10, busy_ns // 10, gap_ns=0)
    host.now = end


RANKS = (0, 1)


def device_steps(forward: list[Any], backward: list[Any], optimizer: list[Any], num: int = NUM_STEPS) -> list[Any]:
    """A program of some equal steps."""
    program: list[Any] = []
    for number in range(num):
        program += [Begin(f"ProfilerStep#{number}"), Begin(Span.FORWARD), *forward, End()]
        program += [Begin(Span.BACKWARD), *backward, End()]
        program += [Begin(Span.OPTIMIZER), *optimizer, End()]
        program += [Wait(stream=20, call="cudaEventSynchronize"), Wait(call="cudaDeviceSynchronize"), End()]
    return program


GEMMS = [Launch(400 * US)] * 20
FUSED = [Work(10 * US, "aten::_fused_adamw_"), Launch(100 * US, "multi_tensor_apply_kernel")]
REDUCE = [Launch(400 * US), Collective(2 * MS, RANKS, 4_000_000), *GEMMS, Wait(stream=20, call="cudaStreamWaitEvent")]


def rank_of_one(forward: list[Any], backward: list[Any] = GEMMS, optimizer: list[Any] = FUSED) -> list[list[Any]]:
    return [device_steps(forward, backward, optimizer)]


def both(backward: list[Any], late: Sequence[Any] = ()) -> list[list[Any]]:
    return [device_steps([*extra, *GEMMS], backward, FUSED) for extra in ([], list(late))]


GOOD_ON_DEVICES = {"one rank": rank_of_one(GEMMS), "two ranks": both(REDUCE)}
ITEM = [*GEMMS, Wait(operator="aten::_local_scalar_dense"), Work(2 * MS), *GEMMS]
NEXT = [Launch(400 * US, after=(20,)), End(), Begin(Span.BACKWARD)]
MICROBATCHES = [Collective(400 * US, RANKS, 4_000_000), *NEXT] * 3
UNFUSED = [each for _ in range(60) for each in (Work(20 * US, "aten::mul_"), Launch(50 * US, "mul_kernel"))]
FAULTS_OF_DEVICES = {
    "The host waits for the device": rank_of_one(ITEM),
    "The step is bound by launches": rank_of_one([Launch(1 * US)] * 400, [Launch(1 * US)] * 400),
    "Many small kernels only move memory": rank_of_one([Launch(50 * US, "elementwise_kernel")] * 100),
    "The optimizer is not fused": rank_of_one(GEMMS, optimizer=UNFUSED),
    "Rank 1 is late": both(REDUCE, [Launch(5 * MS)]),
    "Gradients are reduced in every microbatch": both([*GEMMS, *MICROBATCHES, *REDUCE]),
    "Many small all-reduces": both([*GEMMS, *[Collective(50 * US, RANKS, 1000)] * 20]),
    "Large exchanges are far below": both([*GEMMS, Collective(20 * MS, RANKS, 2_000_000)]),
    "Exchanges do not overlap": both([*GEMMS, Collective(5 * MS, RANKS, 400_000_000)]),
}


def with_header(folder: Path) -> None:
    for path in folder.iterdir():
        trace = json.loads(path.read_text())
        path.write_text(json.dumps({"deviceProperties": H100} | trace))


@pytest.mark.parametrize("title", FAULTS_OF_DEVICES)
def test_faults_of_a_run_on_devices_are_named_first(tmp_path: Path, title: str) -> None:
    simulate(FAULTS_OF_DEVICES[title]).write(tmp_path, ".json")
    with_header(tmp_path)
    found = advise(look_at(tmp_path))
    assert [each.title[: len(title)] for each in found] == [title]


@pytest.mark.parametrize("name", GOOD_ON_DEVICES)
def test_good_runs_on_devices_get_none(tmp_path: Path, name: str) -> None:
    simulate(GOOD_ON_DEVICES[name]).write(tmp_path, ".json")
    with_header(tmp_path)
    assert advise(look_at(tmp_path)) == []


def test_the_line_of_a_wait_is_named(tmp_path: Path) -> None:
    line = Begin("/home/me/train.py(41): step", "python_function")
    simulate(rank_of_one([line, *ITEM, End()])).write(tmp_path, ".json")
    (found,) = advise(look_at(tmp_path))
    assert any("train.py(41): step" in each for each in found.evidence)


def one_call(folder: Path, operator: str, kernel: str, call: str, ns: int, host_ns: int = 0, **args: Any) -> Analysis:
    """Steps of 10 ms in which a kernel computes for 5 ms, and one more call and its work."""
    recording = Recording()
    for number in range(NUM_STEPS):
        at = 10 * MS * number
        recording.mark(f"ProfilerStep#{number}", at, 10 * MS)
        recording.work("gemm", at + 20 * US, 5 * MS, recording.call("cudaLaunchKernel", at, 5 * US))
        recording.operator(operator, at + 5 * MS, 100 * US + host_ns, **args)
        correlation = recording.call(call, at + 5 * MS + 10 * US, 50 * US + host_ns)
        recording.work(kernel, at + 5 * MS + 40 * US, ns, correlation)
        begin = at + 5 * MS + 60 * US + max(ns, host_ns)
        correlation = recording.call("cudaLaunchKernel", begin, 5 * US)
        recording.work("gemm", begin + 10 * US, at + 10 * MS - begin - 10 * US, correlation)
    recording.write(folder / "rank-0.json")
    with_header(folder)
    return look_at(folder)


def test_pageable_copies_are_named(tmp_path: Path) -> None:
    found = advise(one_call(tmp_path, "aten::copy_", "Memcpy HtoD (Pageable -> Device)", "cudaMemcpyAsync", MS, MS))
    assert found[0].title == "Copies go through pageable memory"
    assert MS <= found[0].wins_at_most_ns < 1.2 * MS
    assert len(found) == 1


def test_copies_beside_nothing_are_named(tmp_path: Path) -> None:
    (found,) = advise(one_call(tmp_path, "aten::copy_", "Memcpy HtoD (Pinned -> Device)", "cudaMemcpyAsync", MS))
    assert found.title == "Copies run while nothing computes"
    assert found.wins_at_most_ns == MS


@pytest.mark.parametrize(
    ("dtype", "side", "kernel", "title"),
    [
        ("float", 1024, "ampere_sgemm_128x64_nn", "Matrix products run in float32"),
        ("c10::BFloat16", 1023, "cutlass_tensorop_bf16", "Sides of matrices do not suit"),
        ("c10::BFloat16", 1024, "cutlass_tensorop_bf16", None),
    ],
)
def test_products_that_leave_tensor_cores_idle_are_named(
    tmp_path: Path, dtype: str, side: int, kernel: str, title: str | None
) -> None:
    shapes = {"Input Dims": [[1024, side], [side, 1024]], "Input type": [dtype, dtype]}
    found = advise(one_call(tmp_path, "aten::mm", kernel, "cudaLaunchKernel", 2 * MS, **shapes))
    assert [each.title.startswith(title or "") for each in found] == ([True] if title else [])
    assert all(each.wins_at_most_ns < 2 * MS for each in found)


def products(folder: Path, behind: int, devices: int = 1) -> list[Finding]:
    """Two steps of 10 ms in which each device multiplies for 3 ms; and as many products behind the last one."""
    recording = Recording()
    shapes = {"Input Dims": [[1024, 1024], [1024, 1024]], "Input type": ["float", "float"]}
    for number in range(20 + behind):
        at = MS * number
        for device in range(devices):
            begin = at + 20 * US * device
            recording.operator("aten::mm", begin, 10 * US, **shapes)
            correlation = recording.call("cudaLaunchKernel", begin + US, 5 * US)
            recording.work("ampere_sgemm", begin + 10 * US, 300 * US, correlation, device=device)
        if number in (9, 19):
            recording.mark(f"ProfilerStep#{number}", at - 9 * MS, 10 * MS)
    recording.write(folder / "rank-0.json")
    with_header(folder)
    return advise(look_at(folder))


@pytest.mark.parametrize(("behind", "devices"), [(40, 1), (0, 2), (40, 2)])
def test_advice_is_of_a_step_and_a_device_whatever_else_the_trace_holds(
    tmp_path: Path, behind: int, devices: int
) -> None:
    folders = [tmp_path / "plain", tmp_path / "more"]
    for folder in folders:
        folder.mkdir()
    plain, found = products(folders[0], 0), products(folders[1], behind, devices)
    (one,), (other,) = ([each for each in finds if each.fault is Fault.FLOAT32] for finds in (plain, found))
    assert "3 ms of 10 ms in products of float32" in one.evidence[0]
    assert (other.evidence[0], other.wins_at_most_ns) == (one.evidence[0], one.wins_at_most_ns)


def test_tables_of_the_advice_count_what_began_in_steps(tmp_path: Path) -> None:
    recording = Recording()
    for at, name in [(0, "before"), (2 * MS, "in"), (3 * MS, "in"), (9 * MS, "behind")]:
        recording.work(name, at + 20 * US, 30 * US, recording.call("cudaLaunchKernel", at, 40 * US))
    recording.work("graph", 9 * MS, MS, recording.call("cudaGraphLaunch", 4 * MS, 60 * US))
    recording.mark("ProfilerStep#1", MS, 4 * MS)
    tables = of_advice(recording.trace())
    assert tables["step_kernels"].rows() == [(0, "compute", "in", 2, 60 * US)]
    assert tables["step_launches"].rows() == [(3, 2, 1, 140 * US, 60 * US + MS)]


def test_an_exchange_of_which_a_rank_is_missing_says_so_and_no_rank_is_late(tmp_path: Path) -> None:
    ranks = (0, 1, 2)
    program = [*GEMMS, Collective(20 * MS, ranks, 2_000_000)]
    late = [device_steps([*extra, *GEMMS], program, FUSED) for extra in ([], [Launch(MS)], [Launch(5 * MS)])]
    simulate(late).write(tmp_path, ".json")
    with_header(tmp_path)
    whole = advise(look_at(tmp_path))
    assert [each.fault for each in whole] == [Fault.SLOW_LINK, Fault.STRAGGLER]
    assert "waiting" not in whole[0].evidence[-1]
    (tmp_path / "rank-2.json").unlink()
    (found,) = advise(look_at(tmp_path))
    assert found.fault is Fault.SLOW_LINK
    assert "Only 2 of its 3 ranks' traces are here, so waiting for one of the others may be in it" in found.evidence[-1]
    (tmp_path / "rank-1.json").unlink()
    assert "Only one rank's trace has them" in advise(look_at(tmp_path))[0].evidence[-1]


@pytest.mark.parametrize(
    "name", ["amd_mi250_minitoy", "cpu_only", "h100_qwen_18k", "sampled_2rank", "vllm_decode_graph"]
)
def test_real_traces_give_ranked_findings_within_their_steps(name: str) -> None:
    analysis = real(name)
    found = advise(analysis)
    wins = [each.wins_at_most_ns for each in found]
    assert wins == sorted(wins, reverse=True)
    mean_ns = analysis.tables["steps"].group_by("rank").agg(pl.col("window_ns").mean())["window_ns"].mean()
    assert isinstance(mean_ns, float)
    for each in found:
        assert all((each.evidence, each.cause, each.remedy, each.measure_next, each.assumptions))
        assert 0 < each.wins_at_most_ns <= mean_ns
        assert each.share == pytest.approx(each.wins_at_most_ns / mean_ns, abs=1e-6)
    assert len({each.fault for each in found}) == len(found)


@pytest.mark.parametrize("name", ["cpu_only", "sampled_2rank"])
def test_any_table_may_be_missing(name: str) -> None:
    whole = real(name)
    for missing in whole.tables:
        tables = {key: table for key, table in whole.tables.items() if key != missing}
        advise(Analysis(tables=tables, ranks=whole.ranks, notes=(), num_bytes=0, header=whole.header))
    nothing = Analysis(tables={}, ranks=(), notes=(), num_bytes=0)
    assert advise(nothing) == []
    assert nothing_found(nothing).startswith("Nothing to advise")


def test_a_report_shows_findings() -> None:
    found = advise(real("sampled_2rank"))
    assert all(isinstance(each, Finding) for each in found)
    rows = [each.row() for each in found]
    assert {"title", "evidence", "cause", "remedy", "measure_next", "wins_at_most_ns", "assumptions"} <= set(rows[0])
    json.dumps(rows)
    assert Content(title="a run", advice=rows).why_missing("advice") is None
