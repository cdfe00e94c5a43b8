"""Every nanosecond of a step has one owner: against a look at each nanosecond of random traces."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_job import Begin, Collective, End, Launch, Wait, Work, simulate
from synthetic_trace import BACKWARD, MAIN, Recording

from stepladder.profiling.spans import Span
from stepladder.profiling.trace import steps as steps_module
from stepladder.profiling.trace.phases import NO_PHASE
from stepladder.profiling.trace.segments import PARTS, By
from stepladder.profiling.trace.steps import PART_COLUMNS, host_phases, phase_breakdown, step_breakdown
from stepladder.profiling.trace.tables import Trace

NAMES = {"compute": "gemm", "communication": "ncclDevKernel_AllReduce", "memory": "Memcpy DtoD (Device -> Device)"}
MARKS = (Span.FORWARD, Span.BACKWARD, Span.DATA_WAIT, "FSDP::all_gather", "Optimizer.step#SGD.step", "mine")
NO_STEP, NO_LAUNCH = -1, -1
FIRST_NS = 1_700_000_000_000_000_000
"""A real date: microseconds as floats could not hold its nanoseconds."""


@dataclass
class World:
    """A random trace, as plain lists."""

    work: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    """sort, device, start, dur, launching thread, launch (or none)."""
    marks: list[tuple[int, str, int, int]] = field(default_factory=list)
    """thread, name, start, dur."""
    steps: list[tuple[int, int]] = field(default_factory=list)
    """start, end."""

    def trace(self) -> Trace:
        recording = Recording()
        recording.operator("aten::empty", FIRST_NS, 1)
        for number, (start, end) in enumerate(self.steps):
            recording.mark(f"ProfilerStep#{number}", FIRST_NS + start, end - start)
        for thread, name, start, dur in self.marks:
            recording.mark(str(name), FIRST_NS + start, dur, thread)
        for sort, device, start, dur, thread, launch in self.work:
            correlation = NO_LAUNCH
            if launch != NO_LAUNCH:
                correlation = recording.call("cudaLaunchKernel", FIRST_NS + launch, 1, thread)
            recording.work(NAMES[sort], FIRST_NS + start, dur, correlation, device=device)
        return recording.trace()

    def phase(self, thread: int, moment: int) -> tuple[str, str]:
        """`within` and phase of a moment, by definition."""
        for each in (thread, MAIN):
            open_ = [
                (start, -dur, index, str(name))
                for index, (track, name, start, dur) in enumerate(self.marks)
                if track == each and start <= moment < start + dur
            ]
            if open_:
                ours = [mark for mark in open_ if mark[3] in set(Span)]
                return (max(ours) if ours else min(open_))[3], max(open_)[3]
        return NO_PHASE, NO_PHASE

    def step(self, moment: int) -> int:
        return next((i for i, (start, end) in enumerate(self.steps) if start <= moment < end), NO_STEP)

    def owners(self, device: int, by: By) -> list[tuple[int, str, tuple[str, str], bool, bool]]:
        """Of each nanosecond: step, part, phase, whether launched earlier, whether launched by nobody knows what."""
        mine = [(i, *each) for i, each in enumerate(self.work) if each[1] == device]

        def launch_step(index: int) -> int:
            _, _, start, _, _, launch = self.work[index]
            return self.step(start if launch == NO_LAUNCH else launch)

        last = max(end for _, end in self.steps)
        if by == "launch":
            last = max([last, *(start + dur for i, _, _, start, dur, *_ in mine if launch_step(i) != NO_STEP)])
        found = []
        for moment in range(self.steps[0][0], last):
            run: dict[str, int] = {}
            for index, sort, _, start, dur, *_ in sorted(mine, key=lambda each: (each[3], -each[4], each[0])):
                if start <= moment < start + dur:
                    run[sort] = index
            part = "idle"
            if "communication" in run:
                part = "overlapped_communication" if "compute" in run else "exposed_communication"
            elif run:
                part = "compute" if "compute" in run else "copy"
            owner = run.get("communication", run.get("compute", run.get("memory")))
            if owner is None:
                found.append((self.step(moment), part, self.phase(MAIN, moment), False, False))
                continue
            _, _, _, _, thread, launch = self.work[owner]
            phase = (NO_PHASE, NO_PHASE) if launch == NO_LAUNCH else self.phase(thread, launch)
            step = launch_step(owner) if by == "launch" else self.step(moment)
            earlier = launch != NO_LAUNCH and step != NO_STEP and launch < self.steps[step][0]
            found.append((step, part, phase, earlier, launch == NO_LAUNCH))
        busy = [i for i, each in enumerate(found) if each[1] != "idle"]
        if by == "launch" and busy:  # an idle nanosecond is of the step that the device waits for
            found = [(found[next((b for b in busy if b >= i), busy[-1])][0], *each[1:]) for i, each in enumerate(found)]
        return [each for each in found if by == "launch" or each[0] != NO_STEP]


def check(world: World, by: By) -> None:
    trace = world.trace()
    sums, phases = step_breakdown(trace, by=by), phase_breakdown(trace, by=by)
    for device in {each[1] for each in world.work}:
        owners = world.owners(device, by)
        expected = Counter((step, part) for step, part, *_ in owners)
        for row in sums.filter(pl.col("device") == device).iter_rows(named=True):
            step = NO_STEP if row["step"] is None else row["step"]
            assert {part: row[f"{part}_ns"] for part in PARTS} == {
                part: expected.pop((step, part), 0) for part in PARTS
            }
            assert row["window_ns"] == sum(row[key] for key in PART_COLUMNS)
            assert row["earlier_ns"] == sum(1 for each in owners if each[0] == step and each[3])
            assert row["unlinked_ns"] == sum(1 for each in owners if each[0] == step and each[4])
        assert not expected
        counted = Counter((step, *phase, part) for step, part, phase, *_ in owners)
        rows = phases.filter(pl.col("device") == device).with_columns(pl.col("step").fill_null(NO_STEP))
        found = {
            (row["step"], row["within"], row["phase"], part): row[f"{part}_ns"]
            for row in rows.iter_rows(named=True)
            for part in PARTS
            if row[f"{part}_ns"]
        }
        assert found == counted


@st.composite
def worlds(draw: st.DrawFn) -> World:
    moment, dur = st.integers(0, 60), st.integers(0, 20)
    edges = sorted(draw(st.lists(moment, min_size=2, max_size=5, unique=True)))
    gap = draw(st.integers(0, 2))
    windows = [(start, max(start + 1, end - gap)) for start, end in pairwise(edges)]
    thread = st.sampled_from([MAIN, BACKWARD])
    sort, device = st.sampled_from(sorted(NAMES)), st.integers(0, 1)
    work = st.tuples(sort, device, moment, dur, thread, st.one_of(st.just(NO_LAUNCH), moment))
    mark = st.tuples(thread, st.sampled_from(MARKS), moment, dur)
    return World(draw(st.lists(work, min_size=1, max_size=12)), draw(st.lists(mark, max_size=8)), windows)


@pytest.mark.parametrize("by", ["time", "launch"])
@settings(max_examples=40, deadline=None)
@given(worlds())
def test_each_nanosecond_of_a_small_trace_has_the_owner_that_a_look_at_it_finds(by: By, world: World) -> None:
    check(world, by)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("by", ["time", "launch"])
def test_each_nanosecond_of_hundreds_of_steps_on_several_devices_has_its_owner(by: By, seed: int) -> None:
    random = np.random.default_rng(seed)
    length, num_steps = 20, 100
    world = World(steps=[(step * length, (step + 1) * length - int(random.integers(3))) for step in range(num_steps)])
    for _ in range(350):
        sort, device = str(random.choice(sorted(NAMES))), int(random.integers(3))
        start, thread = int(random.integers(length * num_steps)), int(random.integers(MAIN, BACKWARD + 1))
        launch = max(0, start - int(random.geometric(0.1))) if random.random() < 0.9 else NO_LAUNCH
        world.work.append((sort, device, start, int(random.integers(12)), thread, launch))
    for _ in range(200):
        start, thread = int(random.integers(length * num_steps)), int(random.integers(MAIN, BACKWARD + 1))
        world.marks.append((thread, MARKS[random.integers(len(MARKS))], start, int(random.integers(40))))
    check(world, by)


@settings(max_examples=30, deadline=None)
@given(worlds())
def test_own_times_of_the_host_s_phases_are_counted_nanosecond_by_nanosecond(world: World) -> None:
    found = {
        (row["step"], row["within"], row["phase"]): row["own_ns"]
        for row in host_phases(world.trace()).iter_rows(named=True)
    }
    assert found == Counter(
        (number, *world.phase(MAIN, moment))
        for number, (start, end) in enumerate(world.steps)
        for moment in range(start, end)
    )


def test_a_program_s_step_splits_into_what_the_machine_did() -> None:
    program = [
        Begin("ProfilerStep#7"), Begin(Span.FORWARD), Launch(30_000), End(),
        Begin(Span.BACKWARD), Launch(20_000), Begin("FSDP::reduce_scatter"), Collective(40_000, (0, 1)), End(), End(),
        Begin(Span.OPTIMIZER), Launch(25_000), Wait(7), Wait(20), End(), End(),
    ]  # fmt: skip
    job = simulate([program, [Begin("ProfilerStep#7"), Work(3000), *program[1:]]], launch_ns=5000, latency_ns=2000)
    # rank 0: launches end at 5, 10, 15, 20 us; gemms run 7-37, 37-57, 57-82; the exchange 57-100 (it waits for rank 1)
    row = step_breakdown(job.recordings[0].trace()).row(0, named=True)
    assert row["step"] == 7
    assert row["window_ns"] == 100_000
    assert row["compute_ns"] == 50_000
    assert row["overlapped_communication_ns"] == 25_000
    assert row["exposed_communication_ns"] == 18_000
    assert row["idle_ns"] == 7000
    phases = phase_breakdown(job.recordings[0].trace())
    exchange = phases.filter(pl.col("phase") == "FSDP::reduce_scatter").row(0, named=True)
    assert exchange["within"] == Span.BACKWARD
    assert (exchange["exposed_communication_ns"], exchange["overlapped_communication_ns"]) == (18_000, 25_000)


def test_work_of_a_step_that_runs_in_the_next_counts_for_either_as_asked() -> None:
    program = [Begin("ProfilerStep#0"), Launch(50_000), End(), Begin("ProfilerStep#1"), Launch(10_000), Wait(), End()]
    trace = simulate([program], launch_ns=5000, latency_ns=0)
    found = {by: step_breakdown(trace.recordings[0].trace(), by=by) for by in ("time", "launch")}
    assert found["time"].select("compute_ns", "earlier_ns").rows() == [(0, 0), (60_000, 50_000)]
    assert found["launch"].select("compute_ns", "earlier_ns").rows() == [(50_000, 0), (10_000, 0)]
    assert found["time"]["num_pieces"].to_list() == [0, 2]
    assert found["launch"]["num_pieces"].to_list() == [1, 1]


def test_without_steps_the_whole_trace_is_one_window() -> None:
    recording = Recording()
    call = recording.call("cudaLaunchKernel", 100, 10)
    recording.work("gemm", 200, 50, call)
    recording.work("gemm", 300, 70, call)
    for by in ("time", "launch"):
        row = step_breakdown(recording.trace(), by=by).row(0, named=True)
        assert (row["step"], row["window_ns"], row["compute_ns"], row["idle_ns"]) == (-1, 170, 120, 50)
        assert (row["earlier_ns"], row["num_pieces"]) == (0, 2)


def test_a_kernel_whose_launch_is_not_in_the_trace_belongs_to_the_device_s_mark() -> None:
    recording = Recording()
    recording.mark("ProfilerStep#0", 0, 100)
    recording.add("gpu_user_annotation", Span.BACKWARD, 10, 50, 0, 7)
    recording.work("gemm", 20, 30, -1, stream=7)
    row = phase_breakdown(recording.trace()).filter(pl.col("compute_ns") > 0).row(0, named=True)
    assert row["phase"] == Span.BACKWARD
    assert step_breakdown(recording.trace())["unlinked_ns"].to_list() == [30]


def test_without_a_device_operators_compute_and_collectives_communicate() -> None:
    recording = Recording()
    recording.mark("ProfilerStep#0", 0, 1000)
    recording.mark(Span.DATA_WAIT, 0, 200)
    recording.operator("aten::stack", 50, 100)  # collating is the loader's work, not the step's
    recording.mark(Span.FORWARD, 200, 300)
    recording.operator("aten::mm", 250, 200)
    recording.mark(Span.BACKWARD, 500, 400)
    recording.operator("aten::mm", 500, 200)
    recording.operator("c10d::allreduce_", 600, 50)
    recording.mark("gloo:all_reduce", 620, 180, BACKWARD)
    recording.operator("aten::copy_", 900, 100, 9)  # a writer's thread
    row = step_breakdown(recording.trace()).row(0, named=True)
    assert (row["device"], row["window_ns"]) == (-1, 1000)
    assert row["compute_ns"] == 200 + 100  # all of forward's; backward's up to the call
    assert row["exposed_communication_ns"] == 50 + 100  # the call; after the operator
    assert row["overlapped_communication_ns"] == 50
    assert row["idle_ns"] == 500
    phases = phase_breakdown(recording.trace())
    assert dict(phases.select("phase", "idle_ns").rows()) == {
        Span.DATA_WAIT: 200, Span.FORWARD: 100, Span.BACKWARD: 100, NO_PHASE: 100,
    }  # fmt: skip


def test_phases_beyond_the_limit_are_one_row_and_lose_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "MAX_PHASES", 3)
    recording = Recording()
    recording.mark("ProfilerStep#0", 0, 1000)
    for index in range(10):
        recording.mark(f"request {index}", index * 100, 50 + index)
    recording.work("gemm", 0, 10, -1)
    phases = host_phases(recording.trace())
    assert phases["phase"].to_list() == [NO_PHASE, steps_module.RARER, "request 9", "request 8"]
    assert phases["own_ns"].sum() == 1000


def test_steps_that_overlap_are_cut_so_that_no_time_counts_twice() -> None:
    recording = Recording()
    recording.mark("ProfilerStep#0", 0, 150)
    recording.mark("ProfilerStep#1", 100, 100)
    recording.work("gemm", 50, 100, -1)
    assert step_breakdown(recording.trace())["compute_ns"].to_list() == [50, 50]


def test_a_trace_with_nothing_to_measure_gives_tables_without_rows() -> None:
    recording = Recording()
    recording.add("Trace", "PyTorch Profiler (0)", 0, 10, 0, 0)
    trace = recording.trace()
    assert step_breakdown(trace).schema == steps_module.STEP_SCHEMA
    assert phase_breakdown(trace).schema == steps_module.PHASE_SCHEMA
    assert host_phases(trace).schema == steps_module.HOST_SCHEMA
    assert step_breakdown(trace).height == phase_breakdown(trace).height == host_phases(trace).height == 0
