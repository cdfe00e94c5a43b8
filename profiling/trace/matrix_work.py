"""Operations and bytes of matrix products: GEMM, attention, convolution, forward and backward."""

import math
from typing import NamedTuple

from .shapes import Call, Dims, Tensor
from .work import Family, Work

# Positions of the two factors, and of what is added.
_GEMMS: dict[str, tuple[int, int, int | None]] = {
    "aten::mm": (0, 1, None),
    "aten::bmm": (0, 1, None),
    "aten::mv": (0, 1, None),
    "aten::dot": (0, 1, None),
    "aten::linear": (0, 1, None),
    "aten::addmm": (1, 2, 0),
    "aten::addmv": (1, 2, 0),
    "aten::_addmm_activation": (1, 2, 0),
    "aten::baddbmm": (1, 2, 0),
    "aten::_int_mm": (0, 1, None),
    "aten::_scaled_mm": (0, 1, None),
    "aten::_grouped_mm": (0, 1, None),
    "aten::_scaled_grouped_mm": (0, 1, None),
}


class _Attention(NamedTuple):
    query: int
    """Position; key and value follow."""
    causal: int
    """Position of the flag, or of the kind of mask."""
    heads_first: bool
    """[batch, heads, length, head]; else [batch, length, heads, head]."""
    backward: bool = False
    to_the_end: bool = False
    """The last query sees all keys; else the first query sees one."""


_ATTENTIONS: dict[str, _Attention] = {
    "aten::_scaled_dot_product_flash_attention": _Attention(0, 4, True),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _Attention(0, 4, True),
    "aten::_scaled_dot_product_efficient_attention": _Attention(0, 6, True),
    "aten::_scaled_dot_product_cudnn_attention": _Attention(0, 6, True),
    "aten::_flash_attention_forward": _Attention(0, 8, False),
    "aten::_efficient_attention_forward": _Attention(0, 9, False),
    "aten::_scaled_dot_product_flash_attention_backward": _Attention(1, 11, True, True),
    "aten::_scaled_dot_product_efficient_attention_backward": _Attention(1, 11, True, True),
    "aten::_scaled_dot_product_cudnn_attention_backward": _Attention(1, 14, True, True),
    "aten::_flash_attention_backward": _Attention(1, 11, False, True),
    "aten::_efficient_attention_backward": _Attention(1, 14, False, True),
    "flash_attn::_flash_attn_forward": _Attention(0, 5, False, False, True),
    "flash_attn::_flash_attn_backward": _Attention(1, 11, False, True, True),
}
# Positions of stride, padding, dilation, and of whether it is transposed.
_CONVOLUTIONS: dict[str, tuple[int, int, int, int | None]] = {
    "aten::convolution": (3, 4, 5, 6),
    "aten::_convolution": (3, 4, 5, 6),
    "aten::cudnn_convolution": (3, 2, 4, None),
    "aten::cudnn_convolution_relu": (3, 4, 5, None),
    "aten::miopen_convolution": (4, 3, 5, None),
    "aten::miopen_depthwise_convolution": (4, 3, 5, None),
    "aten::_conv_depthwise2d": (4, 5, 6, None),
}


def matrix_work(call: Call) -> Work | None:
    """Work of a matrix product; None for any other operator."""
    if call.name in _GEMMS:
        return _gemm(call, *_GEMMS[call.name]) or Work(family=Family.GEMM)
    if call.name in _ATTENTIONS:
        return _attention(call, _ATTENTIONS[call.name]) or Work(family=Family.ATTENTION)
    if call.name in _CONVOLUTIONS:
        return _convolution(call, *_CONVOLUTIONS[call.name]) or Work(family=Family.CONVOLUTION)
    if call.name == "aten::convolution_backward":
        return _convolution_backward(call) or Work(family=Family.CONVOLUTION)
    return None


def _gemm(call: Call, left: int, right: int, added: int | None) -> Work | None:
    a, b = call.tensor(left), call.tensor(right)
    if a is None or b is None or not a.dims or not b.dims or a.width is None:
        return None
    sizes = _sizes(call.name, a.dims, b.dims)
    if sizes is None:
        return None
    batch, m, n, k = sizes
    # Factors of 8 bits have results of 16, or of 32 if they are whole numbers.
    width = a.width if a.width > 1 else 4 if call.name == "aten::_int_mm" else 2
    out = batch * m * n * width
    if "grouped" in call.name and len(a.dims) == len(b.dims) == 2:
        groups = call.tensor(2 if call.name == "aten::_grouped_mm" else 4)
        out *= groups.numel if groups else 1
    extra = call.tensor(added) if added is not None else None
    num_bytes = (a.num_bytes or 0) + (b.num_bytes or 0) + out + ((extra.num_bytes or 0) if extra else 0)
    flops = 2.0 * batch * m * n * k
    return _matrix(Family.GEMM, a.dtype, flops, flops, num_bytes, (("m", m), ("n", n), ("k", k)))


def _sizes(name: str, a: Dims, b: Dims) -> tuple[int, int, int, int] | None:
    """Batch, rows, columns, and the length of the sums; None if the shapes do not fit."""
    if "grouped" in name:
        if len(a) < 2 or len(b) < 2:
            return None
        both = len(a) == len(b) == 3
        return (a[0] if both else 1), a[-2], b[-1], a[-1]
    if name == "aten::linear":
        return (1, math.prod(a[:-1]), b[0], a[-1]) if len(b) == 2 and b[1] == a[-1] else None
    if len(b) == 1:
        return (1, math.prod(a[:-1]), 1, a[-1]) if b[0] == a[-1] else None
    if len(a) != len(b) or a[:-2] != b[:-2] or a[-1] != b[-2]:
        return None
    return math.prod(a[:-2]), a[-2], b[-1], a[-1]


def seen(queries: int, keys: int, *, to_the_end: bool) -> int:
    """Pairs of a query and a key that it may look at, with a causal mask aligned at the start or at the end."""
    if to_the_end:
        skipped = min(queries, max(queries - keys, 0))  # queries before the first key see nothing
        rows = queries - skipped
        return rows * keys - rows * (rows - 1) // 2
    rows = min(queries, keys)
    return rows * (rows + 1) // 2 + (queries - rows) * keys


def _attention(call: Call, where: _Attention) -> Work | None:
    """Two products of [length, head] forward; backward four, and the scores a fifth time."""
    query, key, value = (call.tensor(where.query + place) for place in range(3))
    if query is None or key is None or value is None or query.width is None:
        return None
    if not len(query.dims) == len(key.dims) == len(value.dims) == 4:
        return None  # lengths of packed sequences stand in a tensor's values
    batch, heads, queries, head = query.dims if where.heads_first else (query.dims[i] for i in (0, 2, 1, 3))
    keys = key.dims[2 if where.heads_first else 1]
    value_head = value.dims[3]
    tensors = [query, key, value]
    written = query.numel // max(head, 1) * value_head * query.width
    num_bytes = sum(each.num_bytes or 0 for each in tensors) + written
    causal = call.flag(where.causal)
    if causal is None:
        return Work(family=Family.ATTENTION, dtype=query.dtype)
    kind = call.numbers(where.causal) if "efficient_attention" in call.name and not where.heads_first else None
    to_the_end = where.to_the_end or kind == [2]
    pairs = seen(queries, keys, to_the_end=to_the_end) if causal else queries * keys
    one = 2.0 * batch * heads * pairs
    sides = (("head", head), ("value_head", value_head))
    if not where.backward:
        flops = one * (head + value_head)
        return _matrix(Family.ATTENTION, query.dtype, flops, flops, num_bytes, sides)
    gradients = sum(each.num_bytes or 0 for each in tensors)
    flops = one * (3 * head + 2 * value_head)
    return _matrix(
        Family.ATTENTION, query.dtype, flops, one * 2 * (head + value_head), num_bytes + written + gradients, sides
    )


def _convolution(call: Call, stride: int, padding: int, dilation: int, transposed: int | None) -> Work | None:
    x, weight = call.tensor(0), call.tensor(1)
    if x is None or weight is None or len(x.dims) != len(weight.dims) or len(x.dims) < 3 or x.width is None:
        return None
    if transposed is not None and call.flag(transposed):
        return None
    steps = [call.numbers(place) for place in (stride, padding, dilation)]
    spatial = len(x.dims) - 2
    values = [each * spatial if each and len(each) == 1 else each for each in steps]
    by, pad, apart = (each if each and len(each) == spatial and min(each) >= 0 else None for each in values)
    if by is None or pad is None or apart is None or 0 in by:
        return None
    out = [
        (length + 2 * pad[i] - apart[i] * (weight.dims[2 + i] - 1) - 1) // by[i] + 1
        for i, length in enumerate(x.dims[2:])
    ]
    flops = 2.0 * x.dims[0] * math.prod(out) * weight.numel
    result = x.dims[0] * weight.dims[0] * math.prod(out) * x.width
    num_bytes = (x.num_bytes or 0) + (weight.num_bytes or 0) + result
    return _matrix(Family.CONVOLUTION, x.dtype, flops, flops, num_bytes, _channels(weight))


def _convolution_backward(call: Call) -> Work | None:
    """As much as forward for each of the gradients of the input and of the weight that is asked for."""
    gradient, x, weight = (call.tensor(place) for place in range(3))
    if gradient is None or x is None or weight is None or len(weight.dims) < 3 or x.width is None:
        return None
    asked, transposed = call.flags(10), call.flag(7)
    if len(asked) != 3 or transposed is None:
        return None
    moving = x if transposed else gradient
    flops = 2.0 * moving.dims[0] * math.prod(moving.dims[2:]) * weight.numel * sum(asked[:2])
    sizes = [each.num_bytes or 0 for each in (gradient, x, weight)]
    read = sizes[0] + (sizes[1] if asked[1] else 0) + (sizes[2] if asked[0] else 0)
    written = (sizes[1] if asked[0] else 0) + (sizes[2] if asked[1] else 0)
    return _matrix(Family.CONVOLUTION, x.dtype, flops, flops, read + written, _channels(weight))


def _channels(weight: Tensor) -> tuple[tuple[str, int], ...]:
    return (("channels out", weight.dims[0]), ("channels in", weight.dims[1]))


def _matrix(
    family: Family, dtype: str, flops: float, model_flops: float, num_bytes: float, sides: tuple[tuple[str, int], ...]
) -> Work:
    return Work(
        family=family, dtype=dtype, flops=flops, model_flops=model_flops, num_bytes=float(num_bytes), sides=sides
    )
