"""Waits of the host: what each was for, which line asked, and how long the device then stood still."""

from itertools import pairwise

import polars as pl
from synthetic_job import Begin, Collective, End, Launch, Program, Wait, Work, simulate
from synthetic_trace import BACKWARD, Recording

from stepladder.profiling.spans import Span
from stepladder.profiling.trace.syncs import WAIT_SCHEMA, wait_sites, waits

FRAME = "python_function"


def step(*inside: Begin | End | Launch | Wait | Work) -> Program:
    return [Begin("ProfilerStep#3"), *inside, End()]


def test_a_number_that_is_read_is_found_with_its_line_and_the_idle_time_that_it_costs() -> None:
    program = step(
        Launch(50_000), Begin(Span.CLIP), Begin("train.py(12): clip", FRAME),
        Begin("torch/_tensor.py(9): item", FRAME), Begin("aten::item", "cpu_op"),
        Wait(7, operator="aten::_local_scalar_dense"), End(), End(), End(), End(),
        Work(10_000), Launch(30_000), Wait(7),
    )  # fmt: skip
    job = simulate([program], launch_ns=5000, latency_ns=2000)
    number, last = waits(job.recordings[0].trace()).iter_rows(named=True)
    # launched at 5 us, runs 7-57; the host waits 5-57, works 10, launches 5; the next begins at 74
    assert (number["cause"], number["operator"]) == ("item", "aten::_local_scalar_dense")
    assert (number["step"], number["phase"], number["call"]) == (3, Span.CLIP, "cudaStreamSynchronize")
    assert number["frame"] == "train.py(12): clip"
    assert (number["ts_ns"], number["waited_ns"], number["idle_ns"]) == (5000, 52_000, 17_000)
    assert (last["cause"], last["frame"], last["idle_ns"]) == ("synchronize", None, 0)


def test_of_several_waits_in_one_gap_each_has_its_own_part() -> None:
    program = step(
        Launch(50_000), Wait(7), Work(1000), Wait(7), Work(4000), Wait(7), Work(2000), Launch(10_000), Wait(7)
    )  # fmt: skip
    found = waits(simulate([program], launch_ns=5000, latency_ns=0).recordings[0].trace())
    assert found["idle_ns"].to_list() == [1000, 4000, 7000, 0]


def test_a_wait_for_one_stream_while_another_is_busy_costs_no_idle_time() -> None:
    program = step(Launch(10_000), Launch(90_000, stream=8), Wait(7), Work(5000), Launch(10_000), Wait(7))
    found = waits(simulate([program]).recordings[0].trace())
    assert found["idle_ns"].to_list() == [0, 0]


def test_copies_shapes_and_the_allocator_are_told_apart() -> None:
    recording = Recording()
    recording.mark("ProfilerStep#0", 0, 10_000)
    recording.operator("aten::copy_", 100, 200)
    copy = recording.call("cudaMemcpyAsync", 120, 100)
    recording.work("Memcpy DtoH (Device -> Pageable)", 130, 50, copy)
    recording.call("cudaStreamSynchronize", 230, 60)
    recording.operator("aten::copy_", 1000, 100)
    pinned = recording.call("cudaMemcpyAsync", 1010, 20)
    recording.work("Memcpy HtoD (Pinned -> Device)", 1040, 50, pinned)
    recording.operator("aten::copy_", 2000, 100)
    recording.call("hipMemcpyWithStream", 2010, 50)
    recording.operator("aten::nonzero", 3000, 500)
    recording.operator("aten::copy_", 3100, 100)
    recording.call("cudaStreamSynchronize", 3150, 40)
    recording.call("cudaFree", 4000, 70)
    recording.call("cudaDeviceSynchronize", 5000, 80)
    recording.call("cudaStreamWaitEvent", 6000, 90)
    found = waits(recording.trace()).select("ts_ns", "cause", "call", "waited_ns").rows()
    assert found == [
        (120, "pageable copy", "cudaMemcpyAsync", 160),
        (2010, "blocking copy", "hipMemcpyWithStream", 50),
        (3150, "shape", "cudaStreamSynchronize", 40),
        (4000, "allocator", "cudaFree", 70),
        (5000, "synchronize", "cudaDeviceSynchronize", 80),
    ]


def test_the_loader_garbage_and_compilation_are_waits_and_what_they_contain_is_not() -> None:
    recording = Recording()
    for number in range(2):
        start = 10_000 * number
        recording.mark(f"ProfilerStep#{number}", start, 10_000)
        recording.mark(Span.DATA_WAIT, start, 500)
        recording.mark("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", start + 10, 400)
        recording.mark("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", start + 10, 4000, BACKWARD)
        recording.python("<built-in function collect>", start + 1000, 300)
        recording.operator("entire_frame_compile", start + 2000, 3000)
        recording.operator("_compile.compile_inner (dynamo_timed)", start + 2001, 2900)
        recording.python("<built-in function collect>", start + 2100, 300)
        recording.mark("backend_compile_data: fn_name=call, compile_id=0/1", start + 2500, 1)
        recording.operator("aten::_local_scalar_dense", start + 6000, 7)  # no device: nobody waits, but it is listed
    sites = wait_sites(recording.trace())
    assert dict(sites.select("cause", "waited_ns").rows()) == {
        "compilation": 6000, "loader": 1000, "garbage collection": 600, "item": 14,
    }  # fmt: skip
    assert sites["num_steps"].to_list() == [2] * 4
    assert sites["num"].to_list() == [2] * 4


def test_call_stacks_of_operators_stand_in_where_no_python_function_was_recorded() -> None:
    recording = Recording()
    stack = "torch/_tensor.py(3): item;train.py(40): step;train.py(9): main"
    recording.operator("aten::item", 0, 100, **{"Call stack": stack})
    recording.operator("aten::_local_scalar_dense", 1, 98)
    recording.call("cudaStreamSynchronize", 10, 50)
    recording.work("gemm", 5, 10, -1)
    assert waits(recording.trace(detail=True))["frame"].to_list() == ["train.py(40): step"]
    assert waits(recording.trace())["frame"].to_list() == [None]


def test_what_lies_outside_of_the_steps_has_no_step_and_no_site() -> None:
    recording = Recording()
    recording.mark("ProfilerStep#0", 0, 100)
    recording.work("gemm", 5, 10, -1)
    recording.call("cudaDeviceSynchronize", 200, 50)  # the profiler's own, when it stops
    assert waits(recording.trace())["step"].to_list() == [None]
    assert wait_sites(recording.trace()).height == 0


def test_a_trace_without_waits_gives_tables_without_rows() -> None:
    recording = Recording()
    recording.operator("aten::mm", 0, 10)
    assert waits(recording.trace()).schema == WAIT_SCHEMA
    assert wait_sites(recording.trace()).height == 0
    assert set(wait_sites(recording.trace()).columns) >= {"cause", "frame", "waited_ns", "num_steps"}


def test_the_machine_s_critical_path_is_without_a_gap_and_as_long_as_the_run() -> None:
    group = (0, 1, 2)
    programs = [
        step(Work(1000 * rank), Launch(20_000), Collective(9000, group), Launch(5000, after=(20,)), Wait(7), Work(500))
        for rank in range(3)
    ]
    job = simulate(programs, launch_ns=5000, latency_ns=2000)
    path = job.critical_path()
    assert sum(node.end - node.start for node in path) == job.makespan_ns == 2000 + 5000 + 2000 + 20_000 + 9000 + 5500
    assert all(earlier.end == later.start for earlier, later in pairwise(path))
    assert job.exchanges[0].waited == {0: 2000, 1: 1000, 2: 0}
    kernels = job.recordings[0].trace().device.filter(pl.col("kind") == "communication")
    assert kernels["dur"].to_list() == [9000 + 2000]


def test_the_machine_knows_why_a_stream_was_idle() -> None:
    program = step(
        Launch(2000), Work(10_000), Launch(10_000), Launch(30_000, stream=8), Launch(1000, after=(8,)), Wait(7)
    )
    job = simulate([program], launch_ns=5000, latency_ns=1000)
    # stream 7: runs 6-8, then 21-31 (called at 15: the host was late), then 56-57 (called at 25, waits for stream 8)
    assert job.idle_ns[0] == {"host": 13_000, "device": 25_000}
