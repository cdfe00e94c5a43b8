"""Names of kernels lose what changes from build to build, and keep what the kernel does."""

import pytest

from stepladder.profiling.trace.kernel_names import normal_form, short_form, similarity, words_of

ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<{}>, Array<char*, 3> >(int)"
SAME = [
    ("volta_sgemm_128x32_nt", "ampere_sgemm_64x64_nt"),
    ("triton_poi_fused_add_relu_12", "triton_poi_fused_add_relu_3"),
    ("triton_red_fused_add_0a1b2c3d4e5f6071_0", "triton_red_fused_add_7"),
    (
        "ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)",
    ),
    (ADD.format("float"), ADD.format("c10::BFloat16")),
    (ADD.format("float"), ADD.format("float").replace("vectorized", "unrolled").replace("<4,", "<2,")),
    (
        "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT32x32x256_MI16x16x1",
        "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT16x16x256_MI16x16x1",
    ),
    ("_ZN2ck6kentryILi1ENS_12Rmsnorm2dFwdEEEvPf", "_ZN2ck6kentryILi2ENS_12Rmsnorm2dFwdEEEvPf"),
    ("softmax_warp_forward<float, 10>(float*)", "softmax_warp_forward<half, 11>(half*, int)"),
]
DIFFERENT = [
    ("volta_sgemm_128x32_nt", "volta_sgemm_128x32_tn"),
    ("triton_poi_fused_add_0", "triton_poi_fused_mul_0"),
    ("ncclDevKernel_AllReduce_Sum_f32_RING_LL()", "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL()"),
    (ADD.format("float"), ADD.format("float").replace("CUDAFunctor_add", "FillFunctor")),
    ("Cijk_Alik_Bljk_BBS_MT32", "Cijk_Ailk_Bljk_BBS_MT32"),
    ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD (Pageable -> Device)"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_builds_of_one_kernel_have_one_normal_form(a: str, b: str) -> None:
    assert normal_form(a) == normal_form(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_kernels_have_different_normal_forms(a: str, b: str) -> None:
    assert normal_form(a) != normal_form(b)


@pytest.mark.parametrize(
    "name", ["", "(", ")", "()", "_Z", "_Z9999", "123", "<" * 9000, ")" * 9000, "_Z" + "1" * 9000, "a" * 10**6]
)
def test_no_name_is_too_odd(name: str) -> None:
    assert len(normal_form(name)) <= max(len(name), 12)
    assert len(short_form(name)) <= max(len(name), 12)
    assert 0 <= similarity(words_of(name), words_of("gemm")) <= 1


def test_the_short_form_is_the_function() -> None:
    assert short_form(ADD.format("float")) == "vectorized_elementwise_kernel"
    assert short_form("volta_sgemm_128x32_nt") == "volta_sgemm_128x32_nt"
    assert (
        short_form("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, 2>(float*)")
        == "CatArrayBatchedCopy"
    )
