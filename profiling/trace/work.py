"""How many operations and bytes an operator needs at least, from the shapes of its arguments.

Bytes are those of every operand once: what a kernel must move if nothing stays in a cache and nothing is read twice.
Operations of matrix products count a multiplication and an addition as two. Elementwise ones are counted as a textbook
writes them (a layer norm has 7 for an element); they never decide a bound. What is not known is None, not guessed.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from .shapes import Call, Dims, Tensor


class Family(StrEnum):
    """What kind of work an operator does."""

    GEMM = "gemm"
    ATTENTION = "attention"
    CONVOLUTION = "convolution"
    POINTWISE = "pointwise"
    NORM = "norm"
    SOFTMAX = "softmax"
    REDUCTION = "reduction"
    OPTIMIZER = "optimizer"
    EMBEDDING = "embedding"
    COPY = "copy"
    FUSED = "fused"
    """Kernels of Inductor without matrix products: their bytes are those of their arguments."""
    COMMUNICATION = "communication"
    UNKNOWN = "unknown"


MATRIX = (Family.GEMM, Family.ATTENTION, Family.CONVOLUTION)
"""What tensor cores do, and what a model's operations are counted by."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call needs."""

    family: Family
    dtype: str = ""
    """Of the elements."""
    flops: float | None = None
    """As executed."""
    model_flops: float | None = None
    """Without the scores that attention computes a second time in its backward pass."""
    num_bytes: float | None = None
    sides: tuple[tuple[str, int], ...] = ()
    """Dimensions that tensor cores want to be multiples of 8 or 16."""


UNKNOWN = Work(family=Family.UNKNOWN)


def _words(text: str) -> list[str]:
    return text.split()


_OF_ONE = frozenset(
    _words("""abs bernoulli bitwise_not ceil clamp clamp_max clamp_min cos elu erf exp expm1 _fused_dropout floor gelu
    hardswish hardtanh isfinite isnan leaky_relu log log1p log2 logical_not native_dropout neg normal reciprocal relu
    round rsqrt sigmoid sign silu sin sqrt tanh tril triu uniform""")
)
_OF_TWO = frozenset(
    _words("""add bitwise_and bitwise_or div eq floor_divide ge gelu_backward gt le logical_and logical_or lt maximum
    minimum mul native_dropout_backward ne pow remainder rsub sigmoid_backward silu_backward sub tanh_backward
    threshold_backward""")
)
_OF_THREE = frozenset(_words("addcdiv addcmul lerp masked_fill where"))
_POINTWISE = {**dict.fromkeys(_OF_ONE, 1), **dict.fromkeys(_OF_TWO, 2), **dict.fromkeys(_OF_THREE, 3)}
"""How many tensors are read; one more is where the result goes."""
_TO_BOOL = frozenset(_words("eq ne ge gt le lt isnan isfinite logical_and logical_or logical_not"))
# Position of the tensor that sets the size, operations for each of its elements, and how often that many are moved.
_SIZED: dict[str, tuple[Family, int, int, int]] = {
    **dict.fromkeys(
        ("native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm",
         "native_group_norm", "_batch_norm_with_update"),
        (Family.NORM, 0, 7, 2),
    ),
    **dict.fromkeys(
        ("native_layer_norm_backward", "native_batch_norm_backward", "cudnn_batch_norm_backward",
         "miopen_batch_norm_backward", "native_group_norm_backward", "batch_norm_backward"),
        (Family.NORM, 0, 12, 3),
    ),
    "_fused_rms_norm": (Family.NORM, 0, 4, 2),
    "_fused_rms_norm_backward": (Family.NORM, 0, 9, 3),
    "_C::rms_norm": (Family.NORM, 1, 4, 2),
    "_C::fused_add_rms_norm": (Family.NORM, 0, 5, 4),
    "_softmax": (Family.SOFTMAX, 0, 5, 2),
    "_log_softmax": (Family.SOFTMAX, 0, 5, 2),
    "_safe_softmax": (Family.SOFTMAX, 0, 5, 2),
    "_softmax_backward_data": (Family.SOFTMAX, 0, 4, 3),
    "_log_softmax_backward_data": (Family.SOFTMAX, 0, 4, 3),
    **dict.fromkeys(
        _words(
            "sum mean amax amin max min argmax argmin prod norm linalg_vector_norm all any var std var_mean std_mean"
        ),
        (Family.REDUCTION, 0, 1, 1),
    ),
    "cumsum": (Family.REDUCTION, 0, 1, 2),
    "fill": (Family.COPY, 0, 0, 1),
    "zero": (Family.COPY, 0, 0, 1),
}  # fmt: skip
_ADAM_OPERATIONS = 15
"""Decay of the weight 2, first moment 3, second moment 4, root, division and epsilon 3, update 3."""
_FOREACH_OPERATIONS = {"addcmul": 3, "addcdiv": 3, "lerp": 3}


def elementwise(call: Call) -> Work:
    """Work of everything but matrix products; `UNKNOWN` for operators not in the tables."""
    name = call.name.removeprefix("aten::")
    bare = name.removesuffix("_")
    if name.startswith(("triton_poi_", "triton_red_", "triton_per_")):
        return Work(family=Family.FUSED, num_bytes=_total(call.all_tensors))
    if name.startswith(("_foreach_", "_fused_adam", "_fused_sgd", "_fused_adagrad")):
        return _optimizer(call, bare)
    if bare in _SIZED:
        return _sized(call, *_SIZED[bare])
    if name in ("copy_", "embedding", "index_select", "gather", "embedding_dense_backward", "cat"):
        return _moved(call, name)
    return _pointwise(call, bare) if bare in _POINTWISE and not name.startswith("_C") else UNKNOWN


def _sized(call: Call, family: Family, place: int, operations: int, passes: int) -> Work:
    tensor = call.tensor(place)
    if tensor is None or tensor.num_bytes is None:
        return Work(family=family)
    flops = float(tensor.numel * operations)
    return Work(family=family, dtype=tensor.dtype, flops=flops, num_bytes=tensor.num_bytes * passes)


def _pointwise(call: Call, bare: str) -> Work:
    """One operation for each element of the output, which has the inputs' shape, broadcast."""
    inputs = call.all_tensors[: _POINTWISE[bare]]
    if not inputs:
        return Work(family=Family.POINTWISE)
    out = broadcast([each.dims for each in inputs])
    largest = max(inputs, key=lambda each: each.numel)
    read = _total(inputs)
    if out is None or read is None or largest.width is None:
        return Work(family=Family.POINTWISE)
    written = math.prod(out) * (1 if bare in _TO_BOOL else largest.width)
    return Work(
        family=Family.POINTWISE, dtype=largest.dtype, flops=float(math.prod(out)), num_bytes=float(read + written)
    )


def _moved(call: Call, name: str) -> Work:
    """Copies and look-ups: no operations."""
    family = Family.COPY if name in ("copy_", "cat") else Family.EMBEDDING
    tensors = call.all_tensors
    if name == "cat":
        total = _total(list(call.tensors(0)))
        return Work(family=family, flops=0.0, num_bytes=2.0 * total if total else None)
    if len(tensors) < 2:
        return Work(family=family)
    one, other = tensors[:2]
    if name == "copy_":
        total = _total([one, Tensor(dims=one.dims, dtype=other.dtype)])
    elif name == "embedding_dense_backward":
        rows = call.numbers(2)
        total = _total([one, other])
        total = total + rows[0] * one.dims[-1] * (one.width or 0) if rows and total and one.dims else None
    else:
        looked_up = other.numel * (one.dims[-1] if name == "embedding" and one.dims else 1)
        if name == "index_select" and one.dims:
            place = call.numbers(1)
            along = one.dims[place[0]] if place and -len(one.dims) <= place[0] < len(one.dims) else 0
            looked_up = one.numel // along * other.numel if along else -1
        total = (other.num_bytes or 0) + 2 * looked_up * one.width if one.width and looked_up >= 0 else None
    return Work(family=family, dtype=one.dtype, flops=0.0, num_bytes=float(total) if total is not None else None)


def _optimizer(call: Call, bare: str) -> Work:
    """Every list is read once; in place, what is updated is written once."""
    lists = [call.tensors(place) for place in range(len(call.arguments))]
    lists = [each for each in lists if each]
    family = Family.OPTIMIZER
    if not lists or not call.tensors(0):
        return Work(family=family)
    dtype = lists[0][0].dtype
    numel = sum(each.numel for each in lists[0])
    if bare.startswith("_foreach_"):
        operation = bare.removeprefix("_foreach_")
        flops = numel * _FOREACH_OPERATIONS.get(operation, 1)
        moved = _total([each for members in lists for each in members])
        written = _total(list(lists[0]))
    else:
        flops = numel * (_ADAM_OPERATIONS if "adam" in bare else 4)
        # Parameters, gradients, moments; of these all but the gradients are written.
        states = [members for members in lists if [each.dims for each in members] == [each.dims for each in lists[0]]]
        moved = _total([each for members in states for each in members])
        written = _total([each for members in [*states[:1], *states[2:]] for each in members])
    total = moved + written if moved is not None and written is not None else None
    return Work(family=family, dtype=dtype, flops=float(flops), num_bytes=total)


def _total(tensors: list[Tensor]) -> int | None:
    """Bytes of all; None if one is not known or there is none."""
    sizes = [each.num_bytes for each in tensors]
    known = [size for size in sizes if size is not None]
    return sum(known) if sizes and len(known) == len(sizes) else None


def broadcast(shapes: list[Dims]) -> Dims | None:
    """The shape of an elementwise result; None if the shapes do not fit."""
    out: list[int] = []
    for place in range(1, max((len(shape) for shape in shapes), default=0) + 1):
        lengths = {shape[-place] for shape in shapes if len(shape) >= place} - {1}
        if len(lengths) > 1:
            return None
        out.append(lengths.pop() if lengths else 1)
    return tuple(reversed(out))
