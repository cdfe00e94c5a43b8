import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepladder.profiling.trace.critical_path import (
    Category,
    Graph,
    Relation,
    across,
    by_category,
    by_name,
    critical_path,
    dependencies,
    simulate,
    what_if,
)
from stepladder.profiling.trace.critical_path.graph import Points, edges, join_edges, settle
from stepladder.profiling.trace.critical_path.simulate import Simulator, relax
from stepladder.profiling.trace.critical_path.whatif import ask, name_costs, standard
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"
MORE = os.environ.get("STEPLADDER_TRACES")
SMALL = ("amd_mi250_minitoy", "cpu_only", "sampled_2rank", "vllm_decode_graph", "h100_qwen_18k")
LARGE = ("a100_16rank_109k", "mi300_ddp8_resnet_56k", "v100_ns_69k", "a100_control_109k", "b200_eager_25k")

Event = dict[str, Any]
Read = Callable[..., Trace]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(*events: Event, rank: int = 0, detail: bool = False) -> Trace:
        path = tmp_path / f"rank-{rank}.json"
        path.write_text(json.dumps({"distributedInfo": {"rank": rank}, "traceEvents": list(events)}))
        return read_trace(path, detail=detail)

    return read


def host(name: str, begin: float, end: float, *, tid: int = 1, cat: str = "cpu_op", **args: Any) -> Event:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": begin, "dur": end - begin, "args": args}


def step(number: int, begin: float, end: float) -> Event:
    return host(f"ProfilerStep#{number}", begin, end, cat="user_annotation")


def call(correlation: int, begin: float, end: float, *, name: str = "cudaLaunchKernel", tid: int = 1) -> Event:
    return host(name, begin, end, tid=tid, cat="cuda_runtime", correlation=correlation)


def kernel(name: str, begin: float, end: float, correlation: int, *, stream: int = 7, **args: Any) -> Event:
    args |= {"correlation": correlation, "stream": stream, "device": 0}
    dur = end - begin
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": stream, "ts": begin, "dur": dur, "args": args}


def categories(graph: Graph) -> dict[str, float]:
    """Microseconds by category, those that are not zero."""
    return {word: time / 1000 for word, time, _ in by_category(graph).rows() if time}


def gains(graph: Graph) -> dict[tuple[str, str | None], float]:
    return {(row["change"], row["name"]): row["gain_ns"] / 1000 for row in what_if(graph).iter_rows(named=True)}


def check(graph: Graph) -> None:
    """What holds for every graph."""
    times = simulate(graph)
    assert (times == graph.points.time - graph.points.time[0]).all()
    path = critical_path(graph)
    assert path["dur_ns"].sum() == graph.length_ns
    if path.height:
        assert path["start_ns"][0] == graph.points.time[0]
        assert ((path["start_ns"] + path["dur_ns"])[:-1] == path["start_ns"][1:]).all()
    assert by_category(graph)["time_ns"].sum() == graph.length_ns == by_name(graph)["time_ns"].sum()
    answers = what_if(graph, num_names=4)
    assert (answers["gain_ns"] >= 0).all()
    assert (answers["gain_ns"] + answers["length_ns"] == graph.length_ns).all()
    assert answers.filter(pl.col("change") == "nothing")["gain_ns"].to_list() == [0]
    for name, gain in answers.filter(pl.col("change") == "free").select("name", "gain_ns").rows():
        assert gain <= by_name(graph).filter(pl.col("name") == name)["time_ns"].sum()


def test_a_host_bound_step_is_its_host(read: Read) -> None:
    """One thread: an operator of 40 us with a call of 10 in it, twice; kernels of 5 us end long before the next."""
    trace = read(
        step(1, 0, 100),
        host("aten::mm", 0, 40),
        call(1, 20, 30),
        kernel("gemm", 32, 37, 1),
        host("aten::mm", 50, 90),
        call(2, 70, 80),
        kernel("gemm", 82, 87, 2),
    )
    graph = dependencies(trace, step=1)
    check(graph)
    assert graph.length_ns == graph.host_ns == 100_000
    assert categories(graph) == {"python": 20, "operator": 60, "launch": 20}
    assert gains(graph)["free", "aten::mm"] == 60
    assert gains(graph)["2 times faster", "aten::mm"] == 30
    # Without the host: the second kernel after the first.
    assert gains(graph)["host infinitely fast", None] == 100 - 10


def test_a_device_bound_step_is_its_kernels(read: Read) -> None:
    """Four calls in 8 us, kernels of 100 us with gaps of 1, and a synchronisation that returns 5 us after the last."""
    calls = [call(i, 2 * i, 2 * i + 1) for i in range(4)]
    kernels = [kernel("gemm" if i % 2 else "relu", 10 + 101 * i, 110 + 101 * i, i) for i in range(4)]
    calls[0]["args"]["correlation"] = kernels[0]["args"]["correlation"] = 9
    trace = read(step(1, 0, 420), *calls, *kernels, call(20, 10, 418, name="cudaDeviceSynchronize"))
    graph = dependencies(trace)
    check(graph)
    assert categories(graph) == {"compute": 400, "launch": 10 + 3 + 5, "python": 2}
    found = gains(graph)
    assert found["free", "gemm"] == 200
    assert found["2 times faster", "gemm"] == 100
    assert found["host infinitely fast", None] == 20
    assert found["launches free", None] == 10 + 3  # what the synchronisation takes to return is no launch


def test_a_step_ends_when_its_last_kernel_does(read: Read) -> None:
    trace = read(
        step(1, 0, 20),
        call(1, 5, 8),
        kernel("a", 10, 110, 1),
        step(2, 20, 40),
        call(2, 25, 28),
        kernel("b", 111, 161, 2),
        host("aten::mm", 150, 180),
    )
    first, second = dependencies(trace, step=1), dependencies(trace, step=2)
    assert (first.length_ns, second.length_ns) == (110_000, 141_000)
    for graph in (first, second):
        check(graph)
    # Of the second step the kernel of the first is a part, from its beginning on: the stream is taken.
    assert critical_path(second)["name"].to_list() == ["a", "(gap on a stream)", "b"]
    assert critical_path(second)["dur_ns"].to_list() == [90_000, 1000, 50_000]
    assert dependencies(trace).length_ns == 161_000
    with pytest.raises(ValueError, match=r"step = 7: .*\[1, 2\]"):
        dependencies(trace, step=7)


def exposed() -> list[Event]:
    """A kernel, a collective on another stream that waits for it, a kernel that waits for that; launched at once."""
    return [
        step(1, 0, 260),
        host("aten::mm", 0, 12),
        call(1, 1, 2),
        call(2, 3, 4),
        call(3, 5, 6),
        kernel("warm", 7, 8, 1),
        kernel("gemm", 10, 60, 2),
        call(4, 7, 8),
        kernel("ncclDevKernel_AllReduce_Sum", 64, 214, 4, stream=20),
        call(5, 9, 10),
        kernel("adam", 220, 240, 5),
        call(9, 13, 250, name="cudaStreamSynchronize"),
    ]


def test_waits_between_streams_are_seen_without_a_record_of_them(read: Read) -> None:
    graph = dependencies(read(*exposed()), step=1)
    check(graph)
    names = critical_path(graph)["name"].to_list()
    assert [name for name in names if name[:4] in ("gemm", "nccl", "adam")] == [
        "gemm",
        "ncclDevKernel_AllReduce_Sum",
        "adam",
    ]
    assert categories(graph)["communication"] == 150
    # The delays before and behind it stay: nothing says that they would go.
    assert gains(graph)["communication overlapped", None] == 150


def test_a_hidden_collective_is_not_on_the_path(read: Read) -> None:
    events = [event for event in exposed() if event["name"] != "adam"]
    graph = dependencies(read(*events, kernel("adam", 61, 241, 5)), step=1)
    check(graph)
    assert "communication" not in categories(graph)
    assert gains(graph)["communication overlapped", None] == 0


def test_recorded_waits_of_streams_are_followed(read: Read) -> None:
    """Far apart in time, so that only the record can tell; the names of the streams stand in it."""
    trace = read(
        step(1, 0, 500),
        call(1, 1, 2),
        call(2, 3, 4, name="cudaEventRecord"),
        call(3, 5, 6, name="cudaStreamWaitEvent"),
        call(4, 7, 8),
        kernel("a", 10, 100, 1),
        kernel("b", 300, 400, 4, stream=20),
        {
            **kernel("Stream Wait Event", 9, 9, 3, stream=20, wait_on_stream=7, wait_on_cuda_event_record_corr_id=2),
            "cat": "cuda_sync",
        },
        call(5, 20, 480, name="cudaStreamSynchronize"),
        {**kernel("Stream Sync", 20, 480, 5, stream=20), "cat": "cuda_sync"},
        detail=True,
    )
    graph = dependencies(trace, step=1)
    check(graph)
    names = ["a", "(other stream)", "b", "(return from waiting)", "ProfilerStep#1"]
    assert critical_path(graph)["name"].to_list()[-5:] == names
    assert categories(graph)["compute"] == 190


def test_a_graph_is_one_call_of_many_kernels(read: Read) -> None:
    kernels = [kernel(f"k{i}", 20 + 10 * i, 29 + 10 * i, 1) for i in range(30)]
    trace = read(call(1, 0, 15, name="cudaGraphLaunch"), *kernels, call(2, 16, 325, name="cudaDeviceSynchronize"))
    graph = dependencies(trace)
    check(graph)
    assert (graph.edges.relation == Relation.LAUNCH).sum() == 30 + 1
    assert categories(graph) == {"launch": 15 + 5 + 29 + 6, "compute": 270}


def test_the_thread_of_the_backward_pass_is_waited_for(read: Read) -> None:
    trace = read(
        step(1, 0, 200),
        host("aten::mm", 0, 50),
        host("MmBackward0", 60, 140, tid=2),
        host("AddBackward0", 142, 150, tid=2),
        host("aten::add_", 155, 200),
    )
    graph = dependencies(trace, step=1)
    check(graph)
    path = critical_path(graph)
    assert path["name"].to_list() == [
        "aten::mm",
        "(hand-over)",
        "MmBackward0",
        "(between events)",
        "AddBackward0",
        "(hand-over)",
        "aten::add_",
    ]
    assert gains(graph)["free", "MmBackward0"] == 80


def test_a_collective_of_the_host_is_waited_for(read: Read) -> None:
    """Its range begins on the thread that asks, lies across other ranges, and ends shortly before a wait does."""
    trace = read(
        step(1, 0, 1000),
        host("aten::mm", 0, 100),
        host("gloo:all_reduce", 90, 890, cat="user_annotation"),
        host("aten::add_", 900, 1000),
    )
    graph = dependencies(trace, step=1)
    check(graph)
    assert categories(graph) == {"operator": 200 - 10, "communication": 800, "launch": 10}
    assert gains(graph)["communication overlapped", None] == 800


def test_what_has_no_host_no_device_or_no_length_is_no_error(read: Read) -> None:
    for events in ([kernel("a", 0, 5, 1), kernel("b", 9, 12, 2)], [host("aten::mm", 0, 5)], [kernel("a", 3, 3, 1)]):
        check(dependencies(read(*events)))
    other = host("x", 0, 5, cat="Trace")
    assert dependencies(read(other)).length_ns == 0
    assert critical_path(dependencies(read(other))).height == 0
    assert by_category(dependencies(read(other)))["time_ns"].sum() == 0


def late(rank: int, *, by: float, clock: float = 0) -> list[Event]:
    """A rank that works 100 us and as much longer as it is late, then meets the others for 50 us, then works 30."""
    at = 110 + by
    meets = {"Collective name": "allreduce", "Process Group Name": "0", "Process Group Ranks": "[0, 1]"}
    end = 110 + max(by, 200) + 50
    events = [
        step(1, 0, 500),
        call(1, 1, 2),
        kernel("gemm", 5, 105 + by, 1),
        call(2, 3, 4),
        kernel("ncclDevKernel_AllReduce", at, end, 2, stream=20, **meets),
        call(3, 5, 6),
        kernel("adam", end + 5, end + 35, 3),
        call(4, 7, 495, name="cudaDeviceSynchronize"),
    ]
    return [event | {"ts": event["ts"] + clock} for event in events]


def test_the_path_goes_by_way_of_the_rank_that_is_late(read: Read) -> None:
    graphs = [dependencies(read(*late(rank, by=200 * rank), rank=rank), step=1) for rank in (0, 1)]
    joint = across(graphs)
    check(joint)
    assert joint.length_ns == 500_000
    path = critical_path(joint).filter(pl.col("name").is_in(["gemm", "ncclDevKernel_AllReduce", "adam"]))
    assert path["dur_ns"].to_list() == [300_000, 50_000, 30_000]
    assert path["rank"][0] == 1
    assert "waiting" not in categories(joint)
    assert categories(graphs[0])["communication"] == 250  # alone it cannot tell waiting from transferring
    # The straggler's own kernel as fast as the others' is what the whole job can win.
    assert ask(joint, [("", "gemm", name_costs("gemm", 1 / 3))])["gain_ns"][0] == 200_000


def test_clocks_that_differ_are_put_right(read: Read) -> None:
    graphs = [dependencies(read(*late(rank, by=200 * rank, clock=7000.0 * rank), rank=rank), step=1) for rank in (0, 1)]
    assert across(graphs).length_ns > 7_000_000
    assert across(graphs, {1: 7_000_000}).length_ns == 500_000


def test_a_rank_alone_is_itself(read: Read) -> None:
    graph = dependencies(read(*late(0, by=0)), step=1)
    assert across([graph]).length_ns == graph.length_ns
    assert categories(across([graph])) == categories(graph)
    with pytest.raises(ValueError, match="nothing to join"):
        across([])


def test_a_chain_of_memory_bound_kernels_costs_its_largest(read: Read) -> None:
    calls = [call(i, 2 * i, 2 * i + 1) for i in range(1, 5)]
    ends = [(10, 30), (30, 70), (70, 80), (80, 180)]
    names = ("vectorized_elementwise_kernel<add>", "vectorized_elementwise_kernel<mul>", "layer_norm_kernel", "gemm")
    kernels = [kernel(n, a, b, i) for i, (n, (a, b)) in enumerate(zip(names, ends, strict=True), 1)]
    graph = dependencies(read(step(1, 0, 190), *calls, *kernels, call(9, 12, 185, name="cudaDeviceSynchronize")))
    check(graph)
    assert gains(graph)["kernels fused", None] == 20 + 10


# A simulator of a host and its streams, event by event, against which traces and what-if are held.

DELAY = 6
Action = tuple[str, int, int]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["aten::a", "aten::b"]), st.integers(1, 40), st.just(0)),
        st.tuples(st.sampled_from(["k0", "k1", "k2"]), st.integers(1, 60), st.integers(7, 9)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=40,
)


def run(actions: list[Action], scale: Callable[[str], float]) -> tuple[list[Event], float]:
    """Events of a program, and when it is over: each name takes so many times its time."""
    now, number = 0.0, 0
    free: dict[int, float] = {}
    events: list[Event] = []
    for name, dur, stream in actions:
        if stream:
            number += 1
            start = max(now + DELAY, free.get(stream, 0))
            free[stream] = start + 2 * dur * scale(name)
            events += [call(number, now, now + 2), kernel(name, start, free[stream], number, stream=stream)]
            now += 2
        elif name == "sync":
            done = max([now, *free.values()])
            events.append(call(10_000 + len(events), now, done, name="cudaDeviceSynchronize"))
            now = done + 1  # of no length, it would lie inside of what begins at the same time
        else:
            events.append(host(name, now, now + 2 * dur * scale(name)))
            now += 2 * dur * scale(name)
    over = max([now, *free.values()])
    return [step(1, 0, now), *events], over


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_a_simulated_change_is_what_the_program_would_do(read: Read, actions: list[Action]) -> None:
    # Every stream has worked before, and shows its delay.
    warm = [(name, dur, stream) for stream in (7, 8, 9) for name, dur, stream in [("w", 1, stream), ("sync", 0, 0)] * 2]
    program = [*warm, ("aten::w", 20, 0), *actions]
    events, over = run(program, lambda _: 1)
    graph = dependencies(read(*events), step=1)
    check(graph)
    assert graph.length_ns == 1000 * over
    for name in {name for name, _, _ in actions} - {"sync"}:
        for factor in (0.0, 0.5):
            _, changed = run(program, lambda each, name=name, factor=factor: factor if each == name else 1)
            found = ask(graph, [("", name, name_costs(name, factor))])["length_ns"][0]
            assert found == 1000 * changed, (name, factor)


# Graphs of any shape against a brute force.


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    n = 1 + sum(lengths)
    first = np.zeros(n, dtype=bool)
    first[np.concatenate([[0], 1 + np.cumsum([0, *lengths[:-1]])])] = True
    time = np.zeros(n, dtype=np.int64)
    for begin, length in zip(np.flatnonzero(first)[1:], lengths, strict=True):
        time[begin : begin + length] = np.cumsum(draw(st.lists(st.integers(0, 5), min_size=length, max_size=length)))
    passed = np.where(first, 0, np.diff(time, prepend=0))
    least = np.array([draw(st.sampled_from([0, int(p)])) for p in passed])
    zero = np.zeros(n, dtype=np.int32)
    points = Points(
        time=time,
        first=first,
        least=least,
        tier=np.ones(n, dtype=np.uint8),
        label=zero,
        category=zero.astype(np.uint8),
        row=zero,
        track=zero,
        rank=zero,
        ends=np.arange(n) > 0,
    )
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, n - 1), st.integers(0, 3)), max_size=20))
    source, target, lag = np.array(pairs or [(0, 1, 0)]).T
    found = join_edges(edges(source, target, Relation.WAIT, lag))
    return settle(points, found, names=("x",), collectives={}, host_ns=0, num_steps=0)


def brute_force(graph: Graph, least: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Longest paths from the beginning, by relaxing every edge as often as there are points."""
    points = graph.points
    along = np.flatnonzero(~points.first)
    every = [*zip((along - 1).tolist(), along.tolist(), least[along].tolist(), strict=True)]
    every += zip(graph.edges.source.tolist(), graph.edges.target.tolist(), lag.tolist(), strict=True)
    time = [0] * len(points.time)
    for _ in range(len(time)):
        for source, target, passed in every:
            time[target] = max(time[target], time[source] + passed)
    return np.array(time)


@settings(deadline=None, max_examples=80)
@given(graphs(), st.randoms(use_true_random=False))
def test_times_are_longest_paths(graph: Graph, random: Any) -> None:
    check(graph)
    assert (brute_force(graph, graph.points.least, graph.edges.lag) == simulate(graph)).all()
    least = np.array([random.randint(0, int(each)) for each in graph.points.least], dtype=np.int64)
    lag = np.array([random.randint(0, int(each)) for each in graph.edges.lag], dtype=np.int64)
    assert (brute_force(graph, least, lag) == Simulator(graph).run(least, lag)).all()
    # Less to do never takes longer, and the path's own least times bound what can be won.
    assert Simulator(graph).length_ns(least, lag) <= graph.length_ns


@pytest.mark.parametrize("name", SMALL)
def test_the_path_of_a_real_trace_is_as_long_as_its_window(name: str) -> None:
    trace = read_trace(DATA / name / "rank-0.json.gz")
    for number in (None, *trace.steps["step"].to_list()):
        check(dependencies(trace, step=number))


@pytest.mark.parametrize("name", LARGE)
def test_the_path_of_a_large_real_trace_is_as_long_as_its_window(name: str) -> None:
    if not MORE:
        pytest.skip("STEPLADDER_TRACES names no folder with the larger traces")
    trace = read_trace(Path(MORE) / name / "rank-0.json.gz")
    for number in (None, *trace.steps["step"].to_list()[:2]):
        check(dependencies(trace, step=number))


def test_old_traces_are_not_all_host() -> None:
    """Without a record of synchronisations, which streams wait for which is seen all the same."""
    if not MORE:
        pytest.skip("STEPLADDER_TRACES names no folder with the larger traces")
    shares = {}
    for name in ("a100_16rank_109k", "mi300_ddp8_resnet_56k"):
        found = by_category(dependencies(read_trace(Path(MORE) / name / "rank-0.json.gz")))
        shares[name] = dict(found.select("category", "share").rows())
    host = (Category.PYTHON, Category.OPERATOR, Category.LAUNCH)
    assert sum(shares["a100_16rank_109k"][each] for each in host) < 0.3
    assert shares["mi300_ddp8_resnet_56k"][Category.COMMUNICATION] > 0.7


def test_the_kernels_of_a_graph_are_on_the_path() -> None:
    """More than half of the window; a walk that loses them finds a tenth of it."""
    found = by_category(dependencies(read_trace(DATA / "vllm_decode_graph" / "rank-0.json.gz")))
    assert dict(found.select("category", "share").rows())[Category.COMPUTE] > 0.5


def test_the_standard_changes_have_names() -> None:
    assert list(standard()) == [
        "nothing",
        "host infinitely fast",
        "launches free",
        "communication overlapped",
        "copies free",
        "kernels fused",
    ]


@given(st.integers(0, 2**32 - 1))
def test_the_compiled_loop_over_edges_does_what_the_sentence_says(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_joints, num_edges = int(generator.integers(1, 30)), int(generator.integers(0, 200))
    source, target = (generator.integers(0, num_joints, num_edges).astype(np.int32) for _ in range(2))
    passes = generator.integers(-1000, 1 << 40, num_edges)
    expected = [0] * num_joints
    for before, after, passed in zip(source.tolist(), target.tolist(), passes.tolist(), strict=True):
        expected[after] = max(expected[after], expected[before] + passed)
    times = np.zeros(num_joints, dtype=np.int64)
    relax(source, target, passes, times)
    assert times.tolist() == expected
    with patch("stepladder.profiling.trace.critical_path.simulate.library", lambda: None):
        times[:] = 0
        relax(source, target, passes, times)
    assert times.tolist() == expected
