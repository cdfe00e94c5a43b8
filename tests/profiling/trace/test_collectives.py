"""Collectives have the bytes, rates, exposed times, waits and clocks that the traces were made with."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.profiling.trace.collective_sizes import (
    bus_factor,
    bytes_of_inputs,
    collective_of,
    message_bytes,
    ranks_of,
)
from stepladder.profiling.trace.collective_skew import by_collective, by_rank, clock_offsets, matched
from stepladder.profiling.trace.collectives import SCHEMA, collective_summary, collectives
from stepladder.profiling.trace.dtypes import bytes_of
from stepladder.profiling.trace.kinds import Kind, kind_of
from stepladder.profiling.trace.launchers import launchers, parents
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.peaks import device_peak, peak_of
from stepladder.profiling.trace.tables import Trace

DATA = Path(__file__).parent / "data"
A100 = [{"id": 0, "name": "NVIDIA A100-SXM4-80GB"}]
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def event(name: str, start: int, dur: int, cat: str = "kernel", tid: int = 7, **args: Any) -> dict[str, Any]:
    """An event; times in nanoseconds."""
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": 0,
        "tid": tid,
        "ts": start / 1000,
        "dur": dur / 1000,
        "args": ({"device": 0, "stream": tid} if cat == "kernel" else {}) | args,
    }


def said(kind: str, put_in: int, got_out: int, dtype: str = "BFloat16", size: int = 4, **args: Any) -> dict[str, Any]:
    return {
        "Collective name": kind,
        "In msg nelems": put_in,
        "Out msg nelems": got_out,
        "dtype": dtype,
        "Group size": size,
        "Process Group Name": "2",
        "Process Group Ranks": str(list(range(size))),
    } | args


def trace_of(folder: Path, *events: dict[str, Any], **header: Any) -> Trace:
    path = folder / "rank-0.json"
    path.write_text(json.dumps({"deviceProperties": A100, **header, "traceEvents": events}))
    return read_trace(path, detail=True)


def large(name: str) -> Trace:
    folder = os.environ.get("STEPLADDER_TRACES")
    if not folder:
        pytest.skip("STEPLADDER_TRACES names no folder with the large traces")
    return read_trace(Path(folder) / name / "rank-0.json.gz", detail=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("allreduce", "all_reduce"),
        ("_allgather_base", "all_gather"),
        ("allgather_into_tensor_coalesced", "all_gather"),
        ("_reduce_scatter_base", "reduce_scatter"),
        ("reduce_scatter_tensor_coalesced", "reduce_scatter"),
        ("all_to_allv", "all_to_all"),
        ("nccl:all_to_all", "all_to_all"),
        ("_broadcast_oop", "broadcast"),
        ("reduce", "reduce"),
        ("gather", "gather"),
        ("nccl:recv 0<-1", "recv"),
        ("send", "send"),
        ("gloo:barrier", "barrier"),
        (ALL_REDUCE, "all_reduce"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "send_recv"),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", "other"),
        ("ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", "other"),
        ("void vllm::cross_device_reduce_1stage<__half, 2>", "all_reduce"),
        ("multimem_all_reduce_kernel", "all_reduce"),
    ],
)
def test_a_collective_is_known_by_any_of_its_names(name: str, kind: str) -> None:
    assert collective_of(name) == kind


@pytest.mark.parametrize(
    "name",
    [
        "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
        "void vllm::cross_device_reduce_1stage<__half, 2>",
        "void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>(c10::BFloat16*, unsigned long)",
        "void multimem_one_shot_all_reduce_kernel<float, 16>(float*, float*, unsigned long)",
        "void multimem_all_gather_kernel<16>(char*, char*, unsigned long, unsigned int**, unsigned long)",
        "void two_shot_all_reduce_kernel_inplace<c10::BFloat16, 16>(c10::BFloat16**, unsigned long)",
    ],
)
def test_kernels_between_devices_are_communication(name: str) -> None:
    assert kind_of("kernel", name) == Kind.COMMUNICATION


def test_elements_have_their_bytes_under_every_name() -> None:
    ones = ("Float8_e4m3fn", "c10::Float8_e5m2", "Char", "unsigned char", "Bool", "Float8_e8m0fnu")
    assert [bytes_of(name) for name in ones] == [1] * len(ones)
    assert [bytes_of(name) for name in ("BFloat16", "c10::Half", "float", "Long", "long int", "Double", "Int")] == [
        2, 2, 4, 8, 8, 8, 4,
    ]  # fmt: skip
    assert bytes_of("TensorList") is None
    assert bytes_of_inputs("[[65536, 384], [3]]", '["float", "long int"]') == 65536 * 384 * 4 + 24
    assert bytes_of_inputs("[[2,", '["float"]') is None
    assert ranks_of("[0, 1]") == (0, 1)
    assert ranks_of("[0, 1, ...]") is None


@pytest.mark.parametrize("size", [2, 4, 8, 64])
def test_bus_bytes_are_what_a_ring_sends(size: int) -> None:
    """A ring passes `size` pieces on, once for each half of an all-reduce; counted piece by piece."""
    pieces = sum(1 for _ in range(size - 1))
    assert bus_factor("all_gather", size) == pytest.approx(pieces / size)
    assert bus_factor("reduce_scatter", size) == pytest.approx(pieces / size)
    assert bus_factor("all_reduce", size) == pytest.approx(2 * pieces / size)
    assert bus_factor("all_to_all", size) == pytest.approx((size - 1) / size)
    assert bus_factor("broadcast", size) == bus_factor("send", size) == 1


def test_the_message_is_the_larger_end_whichever_end_is_known() -> None:
    assert message_bytes("all_gather", 100, None, 8) == message_bytes("all_gather", None, 800, 8) == 800
    assert message_bytes("reduce_scatter", None, 100, 8) == message_bytes("reduce_scatter", 800, 100, 8) == 800
    assert message_bytes("all_reduce", 5, None, None) == 5
    assert message_bytes("all_gather", 100, None, None) is None


def test_a_kernel_that_tells_all_has_its_bytes_rates_and_exposed_time(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        event(ALL_REDUCE, 1000, 1000, tid=20, **said("allreduce", 10_000_000, 10_000_000, Seq=3)),
        event("gemm", 1400, 300),
        event("gemm", 1600, 200),
        event("Memcpy DtoD", 1000, 1000, cat="gpu_memcpy"),
        event("ncclDevKernel_AllGather_RING_LL", 5000, 2000, tid=20, **said("_allgather_base", 500, 2000, "Char")),
    )
    rows = collectives(trace)
    assert dict(rows.schema) == SCHEMA
    first, second = rows.to_dicts()
    assert (first["exposed_ns"], second["exposed_ns"]) == (600, 2000)
    assert (first["seq"], first["group"], first["ranks"], first["size"]) == (3, "2", "[0,1,2,3]", 4)
    assert (first["in_bytes"], first["message_bytes"], second["message_bytes"]) == (20_000_000, 20_000_000, 2000)
    table = {row["type"]: row for row in collective_summary(rows).to_dicts()}
    assert table["all_reduce"]["algorithm_gb_s"] == 20_000  # 20 MB in a microsecond
    assert table["all_reduce"]["bus_gb_s"] == pytest.approx(30_000)
    assert table["all_reduce"]["link_share"] == pytest.approx(30_000 / 300)
    assert table["all_gather"]["bus_gb_s"] == pytest.approx(0.75)
    assert collectives(trace, link_gb_s=50.0)["link_gb_s"].to_list() == [50.0, 50.0]
    assert collectives(trace, peak="NVIDIA H100 PCIe")["link_gb_s"][0] == 63.0


def test_what_an_all_to_all_gets_out_may_be_more_than_it_puts_in(tmp_path: Path) -> None:
    """The range has what is put in, the operator around it first what is written."""
    half, both = "c10::Half", {"Input Dims": [[320], [256], []], "Input type": ["c10::Half", "c10::Half", "Scalar"]}
    trace = trace_of(
        tmp_path,
        event("c10d::alltoall_base_", 200, 100, "cpu_op", tid=1, **both),
        event("nccl:all_to_all", 210, 80, "user_annotation", tid=1, **{"Input Dims": [[256]], "Input type": [half]}),
        event("cudaLaunchKernel", 250, 10, "cuda_runtime", tid=1, correlation=6),
        event("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", 700, 100, tid=20, correlation=6),
    )
    (found,) = collectives(trace).to_dicts()
    assert (found["in_bytes"], found["out_bytes"], found["message_bytes"]) == (512, 640, 640)


def test_what_a_kernel_does_not_tell_its_operator_or_the_range_around_its_launch_does(tmp_path: Path) -> None:
    generic = "ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)"
    old = "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)"
    trace = trace_of(
        tmp_path,
        event("record_param_comms", 0, 100, "cpu_op", tid=1, **said("_reduce_scatter_base", 64, 16, "Float")),
        event("hipExtLaunchKernel", 50, 10, "cuda_runtime", tid=1, correlation=5),
        event(generic, 500, 100, tid=20, correlation=5),
        event("c10d::alltoall_base_", 200, 100, "cpu_op", tid=1),
        event(
            "nccl:all_to_all", 210, 80, "user_annotation", tid=1, **{"Input Dims": [[256]], "Input type": ["c10::Half"]}
        ),
        event("cudaLaunchKernel", 250, 10, "cuda_runtime", tid=1, correlation=6),
        event(old, 700, 100, tid=20, correlation=6),
        event(old, 900, 100, tid=20, correlation=7),
        distributedInfo={"rank": 0, "world_size": 16},
    )
    told, titled, untold = collectives(trace).to_dicts()
    assert (told["type"], told["message_bytes"], told["size"], told["group"]) == ("reduce_scatter", 256, 4, "2")
    assert (titled["type"], titled["message_bytes"], titled["size"], titled["group"]) == ("all_to_all", 512, 16, "")
    assert (untold["type"], untold["message_bytes"]) == ("other", None)


def test_a_collective_belongs_to_the_step_that_launched_it(tmp_path: Path) -> None:
    steps = [event(f"ProfilerStep#{5 + i}", 1000 * i, 900, "user_annotation", tid=1) for i in range(2)]
    launch = event("cudaLaunchKernel", 500, 10, "cuda_runtime", tid=1, correlation=1)
    kernels = [event(ALL_REDUCE, 1200 + 100 * i, 50, tid=20, correlation=1 + i) for i in range(2)]
    rows = collectives(trace_of(tmp_path, *steps, launch, *kernels))
    assert rows["step"].to_list() == [5, -1]  # launched in step 5 and run in step 6; launched before the trace


def test_gloo_on_the_host_is_exposed_where_no_other_thread_computes(tmp_path: Path) -> None:
    shape = {"Input Dims": [[1000]], "Input type": ["float"]}
    trace = trace_of(
        tmp_path,
        event("gloo:all_reduce", 1000, 1000, "user_annotation", tid=9, **shape),
        event("aten::mm", 1100, 300, "cpu_op", tid=1),
        event("c10d::allreduce_", 1500, 100, "cpu_op", tid=1),
        event("aten::copy_", 1700, 100, "cpu_op", tid=9),
        deviceProperties=[],
        distributedInfo={"rank": 0, "world_size": 2, "pg_count": 1},
    )
    (row,) = collectives(trace).to_dicts()
    assert (row["on_host"], row["exposed_ns"], row["message_bytes"], row["bus_bytes"]) == (True, 700, 4000, 4000.0)


def test_an_empty_trace_has_empty_tables(tmp_path: Path) -> None:
    rows = collectives(trace_of(tmp_path, event("aten::mm", 0, 10, "cpu_op")))
    assert not len(rows)
    assert dict(rows.schema) == SCHEMA
    assert not len(collective_summary(rows))
    same = matched(rows.with_columns(rank=pl.lit(0)))
    assert not len(same)
    assert not len(by_collective(same))
    assert not len(by_rank(same))


def ranks_rows(
    arrivals: np.ndarray, transfer: Sequence[int], clocks: Sequence[int], *, seq: bool, types: Sequence[str]
) -> pl.DataFrame:
    """Rows of collectives one after the other; [C, R] arrivals after the end of the one before."""
    rows: list[dict[str, Any]] = []
    now = 0
    for number, (arrive, length) in enumerate(zip(arrivals.tolist(), transfer, strict=True)):
        end = now + max(arrive) + length
        for rank, late in enumerate(arrive):
            blank: dict[str, Any] = dict.fromkeys(SCHEMA)
            of_type = [types[i] for i in range(number + 1)].count(types[number]) - 1
            rows.append(
                blank
                | {"rank": rank, "type": types[number], "group": "0", "ranks": "", "size": len(arrive)}
                | {"ts": now + late + clocks[rank], "dur_ns": end - now - late, "exposed_ns": 0}
                | {"seq": number if seq else -1, "order": of_type, "step_order": of_type, "on_host": False}
            )
        now = end
    return pl.DataFrame(rows, schema={**SCHEMA, "rank": pl.Int64}).sort("rank", "ts")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_clocks_waits_and_late_ranks_are_found_whatever_the_clocks_show(data: st.DataObject) -> None:
    num_ranks, num = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 8))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    arrivals = random.integers(0, 10**6, (num, num_ranks))
    transfer = random.integers(1, 10**6, num).tolist()
    clocks = random.integers(-(10**12), 10**12, num_ranks).tolist()
    types = random.choice(["all_reduce", "all_gather"], num).tolist()
    rows = ranks_rows(arrivals, transfer, clocks, seq=data.draw(st.booleans()), types=types)
    same = matched(rows)
    assert clock_offsets(same)["offset_ns"].to_list() == [clock - clocks[0] for clock in clocks]
    assert len(same) == num * num_ranks
    ordered = same.sort("rank", pl.col("ts"))
    late = arrivals - arrivals.min(axis=1, keepdims=True)
    assert ordered["late_ns"].to_list() == late.T.ravel().tolist()
    assert ordered["wait_ns"].to_list() == (arrivals.max(axis=1, keepdims=True) - arrivals).T.ravel().tolist()
    table = by_rank(same)
    cost = [0] * num_ranks
    for row in arrivals.tolist():
        if row.count(max(row)) == 1:
            cost[row.index(max(row))] += max(row) - sorted(row)[-2]
    assert table["cost_ns"].to_list() == cost
    assert table["num_last"].sum() == num
    assert sorted(by_collective(same)["transfer_ns"].to_list()) == sorted(transfer)


@pytest.mark.parametrize("size", [3, None])
def test_without_the_trace_of_a_rank_nobody_is_last_and_nothing_is_transfer(size: int | None) -> None:
    arrivals = np.array([[0, 40, 100], [30, 0, 90]])
    every = ranks_rows(arrivals, [10, 10], [0, 500, 0], seq=True, types=["all_reduce"] * 2)
    every = every.with_columns(size=pl.lit(size, pl.Int64))
    rows = every.filter(pl.col("rank") < 2)
    same = matched(rows, all_read=False)
    assert same["offset_ns"].to_list() == [0, 500, 0, 500]  # all leave together all the same
    assert same["late_ns"].to_list() == [0, 40, 30, 0]
    assert same["transfer_ns"].null_count() == same["wait_ns"].null_count() == same["cost_ns"].null_count() == 4
    table = by_collective(same)
    assert table.select("is_whole", "last_rank", "bus_gb_s").rows() == [(False, None, None)] * 2
    found = by_rank(same)
    assert found.select("count", "num_whole", "num_last", "cost_ns").rows() == [(2, 0, 0, 0)] * 2
    whole = by_collective(matched(every, all_read=True))
    assert whole.select("is_whole", "last_rank", "transfer_ns").rows() == [(True, 2, 10)] * 2


def test_clocks_of_ranks_that_share_no_group_are_compared_through_a_third() -> None:
    one = ranks_rows(np.array([[0, 5], [7, 2]]), [10, 10], [0, 1000], seq=True, types=["all_reduce"] * 2)
    two = ranks_rows(np.array([[3, 1]]), [10], [1000, -500], seq=True, types=["all_reduce"])
    rows = pl.concat([one, two.with_columns(pl.col("rank") + 1, group=pl.lit("1"))])
    assert clock_offsets(matched(rows))["offset_ns"].to_list() == [0, 1000, -500]


def test_collectives_of_other_sizes_or_other_times_are_not_taken_for_one() -> None:
    rows = ranks_rows(np.zeros((4, 2), dtype=np.int64), [10] * 4, [0, 0], seq=True, types=["all_reduce"] * 4)
    other = (pl.col("rank") == 1) & (pl.col("seq") == 2)
    rows = rows.with_columns(message_bytes=pl.when(other).then(64).otherwise(32))
    late = (pl.col("rank") == 1) & (pl.col("seq") == 3)
    rows = rows.with_columns(ts=pl.when(late).then(pl.col("ts") + 10**6).otherwise("ts"))
    assert sorted(matched(rows)["seq"].unique().to_list()) == [0, 1]


def test_what_was_launched_before_the_first_step_is_counted_from_its_end() -> None:
    rows = ranks_rows(np.zeros((3, 2), dtype=np.int64), [10, 20, 30], [0, 0], seq=False, types=["all_reduce"] * 3)
    rows = rows.with_columns(step=pl.when(pl.col("order") < 2).then(-1).otherwise(1).cast(pl.Int64))
    cut = rows.filter(~((pl.col("rank") == 1) & (pl.col("order") == 0)))
    cut = cut.with_columns(step_order=pl.int_range(pl.len()).over("rank", "step"))
    assert matched(cut).sort("rank", "ts")["dur_ns"].to_list() == [20, 30, 20, 30]


def test_a_receive_is_matched_with_the_send_of_the_other_rank_of_a_pair() -> None:
    rows = ranks_rows(np.array([[0, 40], [9, 0]]), [10, 10], [0, 0], seq=False, types=["send", "recv"])
    swapped = pl.when(pl.col("rank") == 1).then(pl.col("type").replace({"send": "recv", "recv": "send"}))
    rows = rows.with_columns(ranks=pl.lit("[0,1]"), type=swapped.otherwise("type"))
    assert matched(rows).sort("rank", "ts")["wait_ns"].to_list() == [40, 0, 0, 9]
    assert not len(matched(rows.with_columns(ranks=pl.lit(""))))


def test_two_real_ranks_end_their_collectives_together() -> None:
    folder = DATA / "sampled_2rank"
    each = [
        collectives(read_trace(folder / f"rank-{rank}.json.gz", detail=True)).with_columns(rank=pl.lit(rank))
        for rank in (0, 1)
    ]
    rows = pl.concat(each)
    assert not matched(rows)["is_whole"].any()  # two of 128
    assert by_rank(matched(rows))["num_last"].to_list() == [0, 0]
    same = matched(rows.with_columns(size=pl.lit(2, pl.Int64)))
    assert same["type"].value_counts().sort("type").rows() == [("all_gather", 4), ("all_reduce", 4)]
    ends = same.with_columns(end=pl.col("ts") + pl.col("dur_ns") - pl.col("offset_ns"))
    apart = ends.group_by("collective").agg(pl.col("end").max() - pl.col("end").min())["end"]
    assert int(str(apart.max())) < 400_000  # 128 ranks of other machines; the waits are up to 22 ms
    assert by_rank(same)["num_last"].to_list() == [0, 4]


def test_real_kernels_that_tell_their_sizes_have_them() -> None:
    rows = collectives(large("a100_nccl_meta_41k"))
    table = collective_summary(rows).select("type", "count", "num_bytes", "size").rows()
    assert table == [("all_reduce", 15, 306_684_384, 2), ("broadcast", 6, 638_712, 2)]


def test_real_kernels_of_one_untelling_name_are_told_apart_by_their_launches() -> None:
    rows = collectives(large("a100_16rank_109k"))
    counts = dict(rows["type"].value_counts().iter_rows())
    assert counts == {"all_reduce": 10, "all_gather": 10, "reduce_scatter": 10, "all_to_all": 45, "other": 5}
    assert rows.filter(pl.col("type") == "other")["step"].unique().to_list() == [-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=30))
def test_a_parent_is_the_last_earlier_event_that_does_not_end_before(ends: list[int]) -> None:
    want = [max((j for j in range(i) if ends[j] >= ends[i]), default=-1) for i in range(len(ends))]
    assert parents(np.array(ends, dtype=np.int64)).tolist() == want


@pytest.mark.parametrize("name", ["amd_mi250_minitoy", "h100_qwen_18k", "vllm_decode_graph"])
def test_the_operator_around_a_launch_is_the_one_that_the_kernel_names(name: str) -> None:
    trace = read_trace(DATA / name / "rank-0.json.gz")
    operators = trace.of(Kind.OPERATOR)
    by_id = dict(zip(operators["external"].to_list(), operators["row"].to_list(), strict=True))
    named = [by_id.get(number) for number in trace.device["external"].to_list()]
    found = launchers(trace)["operator"].to_list()
    pairs = [(one, other) for one, other in zip(named, found, strict=True) if one is not None]
    assert pairs
    assert all(one == other for one, other in pairs)


def test_a_kernel_without_its_launch_names_its_operator_unless_it_repeats_its_correlation(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        event("aten::mm", 0, 100, "cpu_op", tid=1, **{"External id": 8}),
        event("new", 500, 10, correlation=3, **{"External id": 8}),
        event("old", 600, 10, correlation=8, **{"External id": 8}),
        event("cudaLaunchKernel", 50, 5, "cuda_runtime", tid=1, correlation=9),
        event("launched", 700, 10, correlation=9, **{"External id": 77}),
    )
    assert launchers(trace)["operator"].to_list() == [0, -1, 0]


def test_a_device_is_known_by_its_name_or_on_amd_by_what_it_has(tmp_path: Path) -> None:
    names = ["Tesla V100-SXM2-32GB", "NVIDIA A100-PG509-200", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200"]
    found = [peak_of(name) for name in names]
    assert [peak.name if peak else None for peak in found] == [
        "V100 SXM2", "A100 SXM 40 GB", "H100 SXM", "H200", "B200",
    ]  # fmt: skip
    assert peak_of("GeForce GTX 480") is None
    properties = {"name": "", "warpSize": 64, "computeMajor": 9, "computeMinor": 4, "totalGlobalMem": 206141652992}
    nameless = device_peak(trace_of(tmp_path, event("gemm", 0, 1), deviceProperties=[properties]))
    assert nameless
    assert nameless.name == "MI300X"
