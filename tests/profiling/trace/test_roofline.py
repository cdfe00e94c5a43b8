"""Operations and bytes are those of a closed form, and what has none is reported as unknown."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import flop_counter

from stepladder.profiling.trace.dtypes import in_kernel_name
from stepladder.profiling.trace.load import read_trace
from stepladder.profiling.trace.matrix_work import matrix_work, seen
from stepladder.profiling.trace.peaks import Peak, peak_of
from stepladder.profiling.trace.roofline import kernel_work, roofline, roofline_summary
from stepladder.profiling.trace.shapes import call_of
from stepladder.profiling.trace.tables import Trace
from stepladder.profiling.trace.utilisation import utilisation
from stepladder.profiling.trace.work import Work, broadcast, elementwise

DATA = Path(__file__).parent / "data"
BF16, FP8, FLOAT = "c10::BFloat16", "c10::Float8_e4m3fn", "float"
PEAK = Peak(
    name="a device", flop_s={"bfloat16": 1e15, "tf32": 5e14, "float": 1e14, "vector": 1e14}, byte_s=1e12
)  # 1000 operations a byte


def work(name: str, dims: list[Any], types: list[str], concrete: list[str] | None = None, kernel: str = "") -> Work:
    call = call_of(name, json.dumps(dims), json.dumps(types), json.dumps(concrete or []), in_kernel_name(kernel))
    assert call
    return matrix_work(call) or elementwise(call)


@pytest.mark.parametrize(
    ("name", "dims", "types", "flops", "num_bytes"),
    [
        ("aten::mm", [[64, 32], [32, 16]], [BF16] * 2, 2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16 + 64 * 16)),
        ("aten::addmm", [[16], [64, 32], [32, 16]], [FLOAT] * 3, 2 * 64 * 32 * 16, 4 * (16 + 2048 + 512 + 1024)),
        ("aten::bmm", [[5, 64, 32], [5, 32, 16]], [FLOAT] * 2, 10 * 64 * 32 * 16, 20 * (2048 + 512 + 1024)),
        ("aten::baddbmm", [[5, 4, 3], [5, 4, 2], [5, 2, 3]], [FLOAT] * 3, 10 * 24, 20 * (12 + 8 + 6 + 12)),
        ("aten::linear", [[2, 3, 32], [16, 32]], [BF16] * 2, 2 * 6 * 32 * 16, 2 * (192 + 512 + 96)),
        ("aten::_scaled_mm", [[64, 32], [32, 16]], [FP8] * 2, 2 * 64 * 32 * 16, 2048 + 512 + 2 * 1024),
        ("aten::_int_mm", [[64, 32], [32, 16]], ["signed char"] * 2, 2 * 64 * 32 * 16, 2048 + 512 + 4 * 1024),
        ("aten::_grouped_mm", [[64, 32], [4, 32, 16], [4]], [BF16, BF16, "int"], 65536, 2 * (2048 + 2048 + 1024)),
        ("aten::_grouped_mm", [[64, 32], [32, 16], [4]], [BF16, BF16, "int"], 65536, 2 * (2048 + 512 + 4096)),
        ("aten::mv", [[64, 32], [32]], [FLOAT] * 2, 2 * 64 * 32, 4 * (2048 + 32 + 64)),
    ],
)  # fmt: skip
def test_matrix_products_need_what_their_shapes_say(
    name: str, dims: list[Any], types: list[str], flops: int, num_bytes: int
) -> None:
    found = work(name, dims, types)
    assert (found.family, found.flops, found.model_flops, found.num_bytes) == ("gemm", flops, flops, num_bytes)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "kv_heads"), [(128, 128, 8, 8), (128, 128, 8, 2), (64, 256, 4, 4)]
)
def test_attention_counts_what_the_mask_lets_through(
    causal: bool, queries: int, keys: int, heads: int, kv_heads: int
) -> None:
    q, k = [2, heads, queries, 64], [2, kv_heads, keys, 64]
    full = 2 * 2 * heads * queries * keys * 64
    share = seen(queries, keys, to_the_end=False) / (queries * keys) if causal else 1
    forward = work(
        "aten::_scaled_dot_product_flash_attention",
        [q, k, k, [], [], [], []], [BF16] * 3 + ["Scalar"] * 4, ["", "", "", "0.", str(causal), "False", "0.125"],
    )  # fmt: skip
    assert forward.flops == pytest.approx(2 * full * share)
    bshd = [[each[0], each[2], each[1], each[3]] for each in (q, k)]
    low = work(
        "aten::_flash_attention_forward",
        [bshd[0], bshd[1], bshd[1], *[[]] * 7], [BF16] * 3 + ["", "", *["Scalar"] * 5],
        ["", "", "", "", "", str(queries), str(keys), "0.", str(causal), "False"],
    )  # fmt: skip
    assert (low.flops, low.num_bytes, low.sides) == (forward.flops, forward.num_bytes, forward.sides)
    assert forward.num_bytes == 2 * 64 * 2 * (2 * heads * queries + 2 * kv_heads * keys)
    back = work(
        "aten::_scaled_dot_product_flash_attention_backward",
        [q, q, k, k, q, *[[]] * 7], [BF16] * 5 + ["Scalar"] * 7, [""] * 11 + [str(causal)],
    )  # fmt: skip
    assert (back.flops, back.model_flops) == pytest.approx((5 * full * share, 4 * full * share))
    assert back.num_bytes == 2 * 64 * 2 * (4 * heads * queries + 4 * kv_heads * keys)


def test_attention_agrees_with_torch_where_torch_counts_the_same() -> None:
    q, k, v = [2, 8, 100, 64], [2, 8, 70, 64], [2, 8, 70, 32]
    args = [BF16] * 3 + ["", *["Scalar"] * 3]
    found = work("aten::_scaled_dot_product_efficient_attention", [q, k, v, [], [], [], []], args, [""] * 6 + ["False"])
    assert found.flops == flop_counter.sdpa_flop_count(q, k, v)
    out = [2, 8, 100, 32]
    found = work(
        "aten::_scaled_dot_product_efficient_attention_backward",
        [out, q, k, v, *[[]] * 8], [BF16] * 4 + ["Scalar"] * 8, [""] * 11 + ["False"],
    )  # fmt: skip
    assert found.flops == flop_counter.sdpa_backward_flop_count(out, q, k, v)


@given(st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_a_causal_mask_is_counted_pair_by_pair(queries: int, keys: int, to_the_end: bool) -> None:
    shift = keys - queries if to_the_end else 0
    pairs = sum(1 for query in range(queries) for key in range(keys) if key <= query + shift)
    assert seen(queries, keys, to_the_end=to_the_end) == pairs


def test_attention_without_a_flag_or_with_packed_sequences_is_not_guessed() -> None:
    shape = [2, 100, 8, 64]
    assert work("aten::_flash_attention_forward", [shape] * 3, [BF16] * 3).flops is None
    packed = work("aten::_flash_attention_forward", [[700, 8, 64]] * 3, [BF16] * 3, [""] * 8 + ["True"])
    assert (packed.family, packed.flops) == ("attention", None)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 3, 1, 1), (2, 2, 2, 4)])
def test_convolutions_agree_with_what_torch_counts_and_computes(
    stride: int, padding: int, dilation: int, groups: int
) -> None:
    x, weight = [2, 8, 30, 31], [16, 8 // groups, 3, 5]
    out = torch.nn.functional.conv2d(
        torch.empty(x, device="meta"), torch.empty(weight, device="meta"), None, stride, padding, dilation, groups
    )
    steps = [f"[{value}, {value}]" for value in (stride, padding, dilation)]
    concrete = ["", "", "", *steps, "False", "[0, 0]", str(groups)]
    forward = work(
        "aten::convolution", [x, weight, *[[]] * 7], [FLOAT, FLOAT, "", *["ScalarList"] * 3, *[""] * 3], concrete
    )
    assert forward.flops == flop_counter.conv_flop_count(x, weight, list(out.shape))
    assert forward.num_bytes == 4 * (torch.Size(x).numel() + torch.Size(weight).numel() + out.numel())
    cudnn = ["", "", steps[1], steps[0], steps[2], str(groups)]
    assert (
        work("aten::cudnn_convolution", [x, weight, *[[]] * 4], [FLOAT, FLOAT, *[""] * 4], cudnn).flops == forward.flops
    )
    for asked, times in (("[True, True, False]", 2), ("[False, True, False]", 1)):
        back = work(
            "aten::convolution_backward",
            [list(out.shape), x, weight, *[[]] * 8], [FLOAT] * 3 + [""] * 8, [""] * 7 + ["False", "", "", asked],
        )  # fmt: skip
        assert back.flops == times * (forward.flops or 0)


@pytest.mark.parametrize(
    ("name", "dims", "types", "concrete", "flops", "num_bytes"),
    [
        ("aten::add", [[4, 1, 8], [5, 8], []], [BF16, BF16, "Scalar"], [], 160, 2 * (32 + 40 + 160)),
        ("aten::mul", [[6, 8], [], [6, 8]], [FLOAT, FLOAT, FLOAT], [], 48, 4 * (48 + 1 + 48)),
        ("aten::gt", [[10], []], [FLOAT, "Scalar"], [], 10, 40 + 10),
        ("aten::gelu", [[10], []], [BF16, ""], [], 10, 40),
        ("aten::copy_", [[4, 8], [4, 8], []], [BF16, FLOAT, "Scalar"], [], 0, 32 * 6),
        ("aten::fill_", [[4, 8], []], [FLOAT, "Scalar"], [], 0, 128),
        ("aten::native_layer_norm", [[4, 8], [], [8]], [BF16, "ScalarList", BF16], [], 7 * 32, 128),
        ("aten::native_layer_norm_backward", [[4, 8], [4, 8]], [BF16, BF16], [], 12 * 32, 192),
        ("aten::_softmax", [[4, 8], [], []], [FLOAT, "Scalar", "Scalar"], [], 160, 256),
        ("aten::sum", [[4, 8], [], []], [FLOAT, "ScalarList", "Scalar"], [], 32, 128),
        ("aten::embedding", [[100, 16], [3, 5]], [BF16, "long int"], [], 0, 15 * 8 + 2 * 15 * 16 * 2),
        ("aten::index_select", [[7, 3], [], [5]], [FLOAT, "Scalar", "long"], ["", "0", ""], 0, 40 + 2 * 15 * 4),
        ("aten::embedding_dense_backward", [[3, 16], [3]], [FLOAT, "long"], ["", "", "9"], 0, 192 + 24 + 9 * 64),
        ("triton_poi_fused_add_0", [[8], [8], []], [FLOAT, FLOAT, "Scalar"], [], None, 64),
    ],
)
def test_other_operators_move_every_operand_once(
    name: str, dims: list[Any], types: list[str], concrete: list[str], flops: int | None, num_bytes: int
) -> None:
    found = work(name, dims, types, concrete)
    assert (found.flops, found.num_bytes) == (flops, num_bytes)


def test_an_optimizer_reads_and_writes_its_lists() -> None:
    lists = [[[4, 8], [8]]] * 4
    fused = work(
        "aten::_fused_adamw_", [*lists, [], [[], []]], ["TensorList"] * 6, kernel="FusedAdamMathFunctor<float, 4, 0>"
    )
    assert (fused.family, fused.num_bytes, fused.flops) == ("optimizer", 7 * 40 * 4, 15 * 40)
    kernel = "multi_tensor_apply_kernel<TensorListMetadata<2>, BinaryOpListAlphaFunctor<c10::BFloat16, 2, 2, 0>>"
    foreach = work("aten::_foreach_add_", [*lists[:2], []], ["TensorList"] * 2 + ["Scalar"], kernel=kernel)
    assert (foreach.num_bytes, foreach.flops) == (3 * 40 * 2, 40)
    cut = work("aten::_foreach_add_", [[], [], []], ["TensorList"] * 2 + ["Scalar"], kernel=kernel)
    assert (cut.family, cut.num_bytes) == ("optimizer", None)  # Kineto leaves out lists of many tensors


def test_shapes_that_are_none_or_do_not_fit_have_no_work() -> None:
    assert call_of("aten::mm", None, None, None) is None
    assert call_of("aten::mm", "[[1, 2", '["float"]', None) is None
    assert call_of("aten::mm", "[[1]]", "[]", None) is None
    assert work("aten::mm", [[4, 5], [6, 7]], [FLOAT] * 2).flops is None
    assert work("fbgemm::something", [[4, 5]], [FLOAT]).family == "unknown"
    assert broadcast([(2, 3), (4,)]) is None


def event(name: str, start: int, dur: int, cat: str, tid: int, **args: Any) -> dict[str, Any]:
    keys = {"device": 0, "stream": tid} if cat in ("kernel", "gpu_memcpy") else {}
    times = {"ts": start / 1000, "dur": dur / 1000}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": tid, **times, "args": keys | args}


def trace_of(folder: Path, *events: dict[str, Any]) -> Trace:
    path = folder / "rank-0.json"
    path.write_text(json.dumps({"traceEvents": events}))
    return read_trace(path, detail=True)


def launched(
    number: int, operator: str, dims: list[Any], kernels: list[tuple[str, int]], dtype: str = BF16, tid: int = 1
) -> list[dict[str, Any]]:
    """An operator with its launches of 1 us each, and their kernels, each 100 us after the one before."""
    start = 1_000_000 * number
    shapes = {"Input Dims": dims, "Input type": [dtype] * len(dims)}
    events = [event(operator, start, 50_000, "cpu_op", tid, **shapes)]
    for place, (name, dur) in enumerate(kernels):
        args = {"correlation": 10 * number + place}
        cat = "gpu_memcpy" if name.startswith("Mem") else "kernel"
        events.append(event("cudaLaunchKernel", start + 2000 * place + 1, 1000, "cuda_runtime", tid, **args))
        events.append(event(name, start + 100_000 * (place + 1), dur, cat, 7, **args))
    return events


def test_kernels_have_their_rates_and_bounds(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        *launched(1, "aten::mm", [[4096, 4096], [4096, 4096]], [("gemm", 200_000)]),
        *launched(2, "aten::add", [[1 << 20], [1 << 20]], [("add", 10_000)]),
        *launched(3, "aten::mm", [[8, 8], [8, 8]], [("gemm", 2000)]),
        *launched(4, "ours::op", [[8, 8]], [("ours", 80_000)]),
        *launched(5, "aten::mm", [[4096, 4097], [4097, 4096]], [("gemm", 400_000)]),
        *launched(6, "aten::mm", [[64, 64], [64, 64]], [("sgemm", 9000)], dtype=FLOAT),
        *launched(7, "aten::mm", [[64, 66], [66, 64]], [("gemm_tf32f32", 9000)], dtype=FLOAT),
    )
    table = roofline(trace, PEAK)
    by_dims = {(row["name"], row["dims"]): row for row in table.to_dicts()}
    big = by_dims["gemm", "[[4096, 4096], [4096, 4096]]"]
    assert (big["bound"], big["dtype"], big["aligned"]) == ("compute", "bfloat16", True)
    assert big["flop_s"] == pytest.approx(2 * 4096**3 / 200e-6)
    assert big["efficiency"] == pytest.approx(2 * 4096**3 / 1e15 / 200e-6)
    assert big["intensity"] == pytest.approx(4096 / 3)
    add = by_dims["add", "[[1048576], [1048576]]"]
    assert (add["bound"], add["efficiency"]) == ("memory", pytest.approx(6 * 2**20 / 1e12 / 10e-6))
    assert by_dims["gemm", "[[8, 8], [8, 8]]"]["bound"] == "launch"
    assert by_dims["ours", "[[8, 8]]"]["bound"] == "unknown"
    odd = by_dims["gemm", "[[4096, 4097], [4097, 4096]]"]
    assert (odd["aligned"], odd["odd_sides"]) == (False, "k = 4097")
    assert by_dims["sgemm", "[[64, 64], [64, 64]]"]["aligned"] is None
    tf32 = by_dims["gemm_tf32f32", "[[64, 66], [66, 64]]"]
    assert (tf32["dtype"], tf32["odd_sides"]) == ("tf32", "k = 66")
    assert table["share"].sum() == pytest.approx(1)
    unknown = roofline_summary(table).filter(pl.col("family") == "unknown")
    assert unknown["share"].to_list() == [pytest.approx(80 / 710)]


def test_the_kernels_of_a_call_share_its_work_and_its_copies_have_none(tmp_path: Path) -> None:
    kernels = [("Memset (Device)", 30_000), ("split", 60_000), ("reduce", 20_000)]
    rows = kernel_work(trace_of(tmp_path, *launched(1, "aten::mm", [[64, 64], [64, 64]], kernels)))
    assert rows["flops"].to_list() == pytest.approx([0, 2 * 64**3 * 0.75, 2 * 64**3 * 0.25])
    assert rows["family"].to_list() == ["copy", "gemm", "gemm"]


def test_what_adds_a_product_s_parts_up_has_no_part_in_its_operations_and_its_type_is_the_product_s(
    tmp_path: Path,
) -> None:
    """Only the name of the first kernel says that cuBLAS computes in tf32."""
    kernels = [("ampere_gemm_tf32f32_splitK", 60_000), ("void splitKreduce_kernel<float>(int)", 20_000)]
    dims = [[1024, 2880], [2880, 256]]
    trace = trace_of(tmp_path, *launched(1, "aten::mm", dims, kernels, dtype=FLOAT))
    flops = 2 * 1024 * 2880 * 256
    rows = kernel_work(trace)
    assert rows.select("family", "dtype", "flops").rows() == [("gemm", "tf32", flops), ("reduction", "tf32", 0)]
    table = {row["family"]: row for row in roofline(trace, PEAK).to_dicts()}
    assert table["gemm"]["flop_s"] == pytest.approx(flops / 60e-6)
    assert (table["reduction"]["bound"], table["reduction"]["efficiency"]) == ("unknown", None)
    alone = kernel_work(trace_of(tmp_path, *launched(1, "aten::mm", dims, kernels[1:], dtype=FLOAT)))
    assert alone.select("family", "flops").rows() == [("gemm", flops)]  # the trace has not the other


def test_the_utilisation_of_a_step_leaves_out_what_a_checkpoint_computes_again(tmp_path: Path) -> None:
    square = [[1024, 1024], [1024, 1024]]
    flops = 2 * 1024**3
    node = event("autograd::engine::evaluate_function: ReluBackward0", 2_900_000, 900_000, "cpu_op", 1)
    again = event("aten::linear", 2_950_000, 200_000, "cpu_op", 1, **{"Sequence number": 4})
    first = event("aten::linear", 950_000, 200_000, "cpu_op", 1, **{"Sequence number": 1})
    trace = trace_of(
        tmp_path,
        event("ProfilerStep#3", 500_000, 4_000_000, "user_annotation", 1),
        node, again, first,
        *launched(1, "aten::mm", square, [("gemm", 50_000)]),
        *launched(3, "aten::mm", square, [("gemm", 50_000)]),
        *launched(4, "aten::mm", square, [("gemm", 50_000)]),
        event("ProfilerStep#4", 4_500_000, 1_000_000, "user_annotation", 1),
    )  # fmt: skip
    one, other = utilisation(trace, PEAK).to_dicts()
    assert (one["flops"], one["model_flops"], one["known_share"]) == (3 * flops, 2 * flops, 1)
    assert (one["hfu"], one["mfu"]) == pytest.approx((3 * flops / 1e15 / 4e-3, 2 * flops / 1e15 / 4e-3))
    assert (other["flops"], other["mfu"]) == (0, 0)
    assert utilisation(trace)["mfu"].to_list() == [None, None]


def test_a_trace_without_a_device_or_without_shapes_has_tables_of_the_same_columns(tmp_path: Path) -> None:
    bare = trace_of(tmp_path, event("aten::mm", 0, 10, "cpu_op", 1))
    assert not len(roofline(bare))
    assert not len(utilisation(bare))
    plain = read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz")
    assert dict(roofline(bare).schema) == dict(roofline(plain).schema)
    assert set(roofline(plain)["family"].unique().to_list()) == {"unknown", "copy"}


def test_a_real_forward_pass_has_the_operations_of_its_model() -> None:
    """A small Qwen, as far as the trace has the launches; its products are in bfloat16, all but that of the angles."""
    trace = read_trace(DATA / "h100_qwen_18k" / "rank-0.json.gz", detail=True)
    table = roofline(trace)
    attention = table.filter(pl.col("family") == "attention")
    pairs = 559 * 560 // 2
    assert attention["flops"].sum() == pytest.approx(attention["count"].sum() * 4 * 16 * 16 * pairs * 64)
    gemm = table.filter((pl.col("family") == "gemm") & (pl.col("dtype") == "bfloat16"))
    expected = 0
    for dims, count in gemm.select("dims", "count").iter_rows():
        a, b = [shape for shape in json.loads(dims) if len(shape) == 2]
        expected += 2 * count * a[0] * a[1] * b[1]
    assert gemm["flops"].sum() == pytest.approx(expected)
    assert gemm["bound"].unique().to_list() == ["compute"]
    best = gemm["efficiency"].max()
    assert isinstance(best, float)
    assert 0.5 < best < 1
    assert utilisation(trace)["mfu"].to_list() == [pytest.approx(0.1235, abs=1e-4)]


def test_a_real_checkpointed_resnet_has_its_published_operations() -> None:
    """ResNet-18 on 10 images: 1.814e9 multiply-adds each, three times, without the first gradient of an input."""
    folder = os.environ.get("STEPLADDER_TRACES")
    if not folder:
        pytest.skip("STEPLADDER_TRACES names no folder with the large traces")
    trace = read_trace(Path(folder) / "mi300_ddp8_resnet_56k" / "rank-0.json.gz", detail=True)
    stem = 2 * 64 * 3 * 49 * 112 * 112
    expected = 10 * (3 * 2 * 1.814e9 - stem)
    again = 10 * (2 * 1.814e9 - stem - 2 * 512 * 1000)  # all but the first convolution and the last layer
    for row in utilisation(trace).to_dicts():
        assert row["model_flops"] == pytest.approx(expected, rel=2e-3)
        assert row["flops"] == pytest.approx(expected + again, rel=2e-3)


def test_peaks_are_found_for_every_spelling_of_a_type() -> None:
    peak = peak_of("NVIDIA H100 80GB HBM3")
    assert peak
    assert peak.of("c10::Half") == peak.of("BFloat16") == 989.4e12
    assert peak.of("Float8_e4m3fn") == 1978.9e12
    assert peak.of("float") == pytest.approx(66.9e12)
    assert peak.of("QuantizedSomething") is None


def test_the_utilisation_of_a_step_leaves_out_what_was_launched_outside_of_it(tmp_path: Path) -> None:
    """Between two steps, and behind the last one."""
    square, flops = [[1024, 1024], [1024, 1024]], 2 * 1024**3
    trace = trace_of(
        tmp_path,
        event("ProfilerStep#1", 900_000, 1_000_000, "user_annotation", 1),
        event("ProfilerStep#2", 2_900_000, 1_000_000, "user_annotation", 1),
        *[each for n in range(1, 6) for each in launched(n, "aten::mm", square, [("gemm", 50_000)])],
    )
    found = utilisation(trace, PEAK)
    assert found["flops"].to_list() == [flops, flops]
    assert found["mfu"].to_list() == pytest.approx([flops / 1e15 / 1e-3] * 2)
    (row,) = roofline(trace, PEAK).to_dicts()
    assert (row["dur_ns"], row["in_steps_ns"]) == (250_000, 100_000)


def test_each_device_of_a_trace_has_a_utilisation_of_its_own(tmp_path: Path) -> None:
    square, flops = [[1024, 1024], [1024, 1024]], 2 * 1024**3
    events = [each for n in range(1, 4) for each in launched(n, "aten::mm", square, [("gemm", 50_000)])]
    for each in events:
        if each["cat"] == "kernel" and each["ts"] >= 2000:  # the second product and the third are of the other device
            each["args"]["device"] = 1
    trace = trace_of(tmp_path, event("ProfilerStep#1", 900_000, 4_000_000, "user_annotation", 1), *events)
    found = utilisation(trace, PEAK)
    assert found.select("step", "device").rows() == [(1, 0), (1, 1)]
    assert found["mfu"].to_list() == pytest.approx([flops / 1e15 / 4e-3, 2 * flops / 1e15 / 4e-3])
    assert roofline(trace, PEAK).select("device", "count").sort("device").rows() == [(0, 1), (1, 2)]
