"""Names of kernels without what changes from build to build, so that a kernel is found again in another run.

A name carries what the kernel does, and besides tile sizes, architectures, types, counters and hashes of a compiler:
`ampere_sgemm_128x64_tn`, `triton_poi_fused_add_relu_12`, `ncclDevKernel_AllReduce_Sum_f32_RING_LL(...)`,
`void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, ...>(int, ...)`. Names come from
a file that nobody vouches for: only the first 4096 characters are looked at, each a fixed number of times.
"""

import re

_MAX_CHARACTERS = 4096

_NCCL = re.compile(r"^(?:void )?(?:nccl|rccl)(?:Dev)?(?:Kernel)?_?(?:Generic)?_?([A-Za-z]*)")
_TENSILE = re.compile(r"^Cijk_([A-Za-z]+_[A-Za-z]+)_")
_TRITON = re.compile(r"^triton_[a-z]+_fused_")
_MANGLED = re.compile(r"L[a-z]n?\d+E|(\d{1,4})(?=[A-Za-z_])")  # a number as a parameter, or the length of a word
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HASH = re.compile(r"_(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,64}(?=_|$)")
_SIZE = re.compile(r"(?:\d+x)+\d+(?:[a-z]*\d+)*|\d+")
_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_WORDS_OF_A_BUILD = (
    "volta turing ampere hopper blackwell sm align aligned stages warpgroupsize xmma cutlass kernel kernels impl void"
    " const unsigned signed volatile int long short char bool float double half bfloat size_t true false std array"
    " at c10 cuda hip native detail internal memory anonymous namespace lambda operator auto vec wgmma mma tensorop"
    " Array TrivialOffsetCalculator LoadWithoutCast StoreWithoutCast LoadWithCast StoreWithCast func_wrapper_t"
    " TensorIteratorBase TensorIterator gpu_kernel_impl gpu_kernel_impl_nocast binary_internal function_traits"
    " vectorized_elementwise_kernel unrolled_elementwise_kernel elementwise_kernel elementwise_kernel_with_index"
    " vectorized_templated_elementwise_kernel c10 BFloat16 Half Float8_e4m3fn __half __nv_bfloat16 __hip_bfloat16"
    " _GLOBAL__N_ uint uint8 uint16 uint32 uint64 uint32_t uint64_t int64_t int32_t ul u l"
    " Tensor Scalar kFloat kLong size sizes params Params"
)
"""They say how a kernel was built and not what it does; elementwise kernels are told apart by their functor."""
_OF_A_BUILD = frozenset(_WORDS_OF_A_BUILD.split())


def short_form(name: str) -> str:
    """The function alone, for tables: without return type, template parameters, arguments, PyTorch's namespaces."""
    name = name[:_MAX_CHARACTERS]
    if name.startswith(("Memcpy", "Memset")):
        return name
    if name.startswith("_Z"):
        return "::".join(_mangled_words(name)[:3]) or name
    text = _outside_brackets(name.replace("(anonymous namespace)::", "").replace("->", ""))
    return text.strip().split(" ")[-1].replace("at::native::", "") or name


def normal_form(name: str) -> str:
    """The name without sizes, types, architectures, counters and hashes; equal for builds of one kernel."""
    name = name[:_MAX_CHARACTERS]
    if name.startswith(("Memcpy", "Memset")):
        return name
    if match := _NCCL.match(name):
        return f"nccl {match[1] or 'generic'}"
    if match := _TENSILE.match(name):
        return f"gemm {match[1]}"
    if _TRITON.match(name):
        return re.sub(r"_\d+(?=_|$)", "", _HASH.sub("", name))
    if name.startswith("_Z"):
        words = _mangled_words(name)
    else:
        head = _without_arguments(name)
        words = _WORD.findall(_HASH.sub("", head.replace("(anonymous namespace)", "")))
    kept = [piece for word in words if word not in _OF_A_BUILD and (piece := _plain(word))]
    unique = list(dict.fromkeys(kept))
    return " ".join(unique) or name


def words_of(name: str) -> frozenset[str]:
    """What the name speaks of, in small letters, for a comparison of names that are not equal."""
    pieces = (piece.lower() for piece in _PIECE.findall(normal_form(name)))
    return frozenset(piece for piece in pieces if len(piece) > 1)


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Words that both have, as a share of those that either has."""
    return len(a & b) / len(a | b) if a or b else 0.0


def _plain(word: str) -> str:
    """A word without sizes and words of a build."""
    parts = [part for part in _SIZE.sub("", word).split("_") if part and part not in _OF_A_BUILD]
    return "_".join(parts)


def _without_arguments(name: str) -> str:
    """The name up to the list of arguments that ends it."""
    if not name.endswith(")"):
        return name
    depth = 0
    for place in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[place], 0)
        if not depth:
            return name[:place] or name
    return name


def _outside_brackets(name: str) -> str:
    """What stands outside of <> and ()."""
    kept: list[str] = []
    depth = 0
    for character in name:
        if character in "<(":
            depth += 1
        elif character in ">)":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(character)
    return "".join(kept)


def _mangled_words(name: str) -> list[str]:
    """The identifiers in a mangled C++ name: each stands behind its length."""
    found: list[str] = []
    place = 2
    while match := _MANGLED.search(name, place):
        length = int(match[1] or 0)
        word = name[match.end() : match.end() + length]
        if 0 < length <= 80 and len(word) == length and _WORD.fullmatch(word):
            found.append(word)
            place = match.end() + length
        else:
            place = match.end()
    return [word for word in found if not word.startswith("_GLOBAL__N")]
