"""Devices that are neither CUDA's nor ROCm's: what Kineto writes of Intel's and Meta's, made small.

Intel's kernels, copies and fills have the usual categories and a device, no stream; queues are rows. Calls are
`xpu_runtime`, `ur...`; the id that joins them is the same. All that Meta's processor does is `mtia_ccp_events`:
kernels, which have a correlation and a stream, `dma_request`, which often has neither, and `event_wait`, in which
nothing runs. Calls are `mtia_runtime`.
"""

from collections.abc import Callable

import polars as pl
import pytest
from synthetic_trace import HOST_PID, MAIN, Recording

from stepladder.profiling.trace import hta
from stepladder.profiling.trace.analysis import of_hta, of_steps
from stepladder.profiling.trace.critical_path import critical_path, dependencies
from stepladder.profiling.trace.kinds import Kind, kind_of
from stepladder.profiling.trace.launchers import launchers
from stepladder.profiling.trace.operations import operators
from stepladder.profiling.trace.report import timeline_of
from stepladder.profiling.trace.tables import Trace

US = 1000
MTIA_PID = 9
SUBMIT = "runFunction - job_prep_and_submit_for_execution"


def xpu() -> Recording:
    """Two steps of 100 us: a copy of 10, a kernel of 30, an all-reduce of 20 half under it on a second queue."""
    made = Recording()
    for step in (3, 4):
        begin = (step - 3) * 100 * US
        made.mark(f"ProfilerStep#{step}", begin, 100 * US)
        made.mark("forward", begin + US, 60 * US)
        made.operator("aten::mm", begin + 2 * US, 20 * US)
        work = [
            ("gpu_memcpy", "Memcpy M2D", 5, 10, 1, "urEnqueueUSMMemcpy"),
            ("kernel", "gemm_kernel", 20, 30, 1, "urEnqueueKernelLaunch"),
            ("kernel", "oneccl_allreduce_medium", 40, 20, 2, "urEnqueueKernelLaunch"),
        ]
        for turn, (category, name, start, dur, queue, call) in enumerate(work):
            number = 10 * step + turn
            at = begin + (3 + turn) * US
            made.add("xpu_runtime", call, at, US // 2, HOST_PID, MAIN, correlation=number)
            ids = {"device": 0, "correlation": number, "sycl queue": f"0x{queue}"}
            made.add(category, name, begin + start * US, dur * US, 0, queue, **ids)
        made.add("xpu_sync", "zeCommandQueueSynchronize", begin + 50 * US, 10 * US, 0, 1, device=0)
    return made


def mtia() -> Recording:
    """The same on one row: dma without a correlation, a kernel, a wait for an event, an exchange."""
    made = Recording()
    for step in (3, 4):
        begin = (step - 3) * 100 * US
        made.mark(f"ProfilerStep#{step}", begin, 100 * US)
        made.mark("forward", begin + US, 60 * US)
        made.mark("hccl:all_reduce", begin + 3 * US, 2 * US)
        made.operator("aten::mm", begin + 2 * US, 20 * US)
        made.add(
            "mtia_ccp_events", "dma_request", begin + 5 * US, 10 * US, MTIA_PID, 4, direction="DEVICE_TO_HOST", size=16
        )
        for turn, (name, start, dur) in enumerate([("fc-dtype_Float", 20, 30), ("hccl_all_reduce_sum", 50, 10)]):
            number = 10 * step + turn
            made.add("mtia_runtime", SUBMIT, begin + (3 + turn) * US, US, HOST_PID, MAIN, correlation=number)
            ids = {"correlation": number, "stream": 1, "packet_ptr": 330}
            made.add("mtia_ccp_events", name, begin + start * US, dur * US, MTIA_PID, 4, **ids)
        made.add("mtia_ccp_events", "event_wait", begin + 70 * US, 20 * US, MTIA_PID, 4, stream=1, wait_on_stream=2)
    return made


PARTS = ["compute_ns", "overlapped_communication_ns", "exposed_communication_ns", "copy_ns", "idle_ns"]
EACH = pytest.mark.parametrize(
    ("make", "parts"),
    # In the XPU's step the exchange runs 40 to 60, the kernel 20 to 50; on the MTIA they follow each other.
    [(xpu, [20, 10, 10, 10, 50]), (mtia, [30, 0, 10, 10, 50])],
)


@EACH
def test_a_step_is_split_as_on_any_device(make: Callable[[], Recording], parts: list[int]) -> None:
    trace = make().trace()
    tables = of_steps(trace)
    assert tables["steps"]["step"].to_list() == [3, 4]
    assert tables["steps"].select(PARTS).rows() == [tuple(part * US for part in parts)] * 2
    busy = tables["phases"].filter(pl.col("phase") == "forward").select(pl.col(PARTS[:3]).sum()).row(0)
    assert [each / (2 * US) for each in busy] == parts[:3]  # all kernels were launched in it
    assert not any("ccl:" in phase for phase in tables["phases"]["phase"])
    assert set(tables["collectives"]["type"]) == {"all_reduce"}


@EACH
def test_kinds_calls_and_operators_are_known(make: Callable[[], Recording], parts: list[int]) -> None:
    trace = make().trace()
    kinds = dict(trace.events.group_by(pl.col("kind").cast(pl.String)).len().rows())
    assert {kind: kinds[kind] for kind in ("compute", "communication", "memory", "sync")} == dict.fromkeys(
        ("compute", "communication", "memory", "sync"), 2
    )
    kernels = trace.device.filter(pl.col("kind") != Kind.MEMORY.value)
    found = launchers(trace, kernels)
    assert (found["launch"] >= 0).all()
    assert (found["operator"] >= 0).all()
    assert operators(trace).select("name", "count").rows() == [("aten::mm", 2)]
    tables = of_hta(trace)
    assert tables["temporal"].select("compute_ns").item() == 60 * US
    started = 3 if make is xpu else 2
    assert tables["launches"]["num_kernels"].sum() == 2 * started


@EACH
def test_the_path_and_the_timeline_have_their_rows(make: Callable[[], Recording], parts: list[int]) -> None:
    trace = make().trace()
    assert critical_path(dependencies(trace, step=3))["dur_ns"].sum() == 100 * US
    drawn, _ = timeline_of(trace, step=3)
    on_device = drawn.filter(pl.col("place") == "device")
    assert on_device["track"].n_unique() == (2 if make is xpu else 1)
    assert set(on_device["kind"]) == {"compute", "communication", "memory", "sync"}


def test_a_queue_without_a_stream_is_told_by_its_row() -> None:
    trace: Trace = xpu().trace()
    gaps = hta.idle_breakdown(trace)
    assert sorted(set(gaps["stream"])) == [1, 2]
    # Between the pieces of the first queue: 15 to 20, 50 to 105 and again 15 to 20; of the second 60 to 140.
    assert dict(gaps.group_by("stream").agg(pl.col("idle_ns").sum()).rows()) == {1: 65 * US, 2: 80 * US}


@pytest.mark.parametrize(
    ("category", "name", "kind"),
    [
        ("mtia_ccp_events", "dma_request", Kind.MEMORY),
        ("mtia_ccp_events", "event_record", Kind.SYNC),
        ("mtia_ccp_events", "pe_exe", Kind.COMPUTE),
        ("mtia_ccp_events", "hccl_all_to_all", Kind.COMMUNICATION),
        ("mtia_runtime", "synchronizeStream", Kind.LAUNCH),
        ("kernel", "event_loop", Kind.COMPUTE),
        ("kernel", "dma_like_kernel", Kind.COMPUTE),
        ("xpu_driver", "zeCommandListAppendLaunchKernel", Kind.LAUNCH),
        ("xpu_sync", "zeEventHostSynchronize", Kind.SYNC),
        ("gpu_memset", "zeCommandListAppendMemoryFill", Kind.MEMORY),
    ],
)
def test_what_an_event_is_goes_by_its_category_first(category: str, name: str, kind: Kind) -> None:
    assert kind_of(category, name) is kind
