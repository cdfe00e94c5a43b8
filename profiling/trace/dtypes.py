"""How many bytes an element has, by any name that traces give its type."""

import re

_BYTES = {
    "float": 4,
    "double": 8,
    "half": 2,
    "bfloat16": 2,
    "byte": 1,
    "char": 1,
    "bool": 1,
    "short": 2,
    "int": 4,
    "long": 8,
    "unsigned char": 1,
    "signed char": 1,
    "short int": 2,
    "long int": 8,
    "long long": 8,
    "unsigned short": 2,
    "unsigned int": 4,
    "unsigned long": 8,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "complexhalf": 4,
    "complexfloat": 8,
    "complexdouble": 16,
    "complex<half>": 4,
    "complex<float>": 8,
    "complex<double>": 16,
}
_PLAIN = {"byte": "uint8", "unsigned char": "uint8", "char": "int8", "signed char": "int8", "long int": "long"}
_IN_NAME = re.compile(r"(?:Functor|Op)<(?:at::native::)?((?:c10::)?(?:float|double|BFloat16|Half))\b")
_OPAQUE = re.compile(r"OpaqueType<(\d+)")


def plain(dtype: str) -> str:
    """A name in one spelling: lower case, without a namespace; "bfloat16" for "c10::BFloat16"."""
    lower = dtype.replace("c10::", "").lower().strip()
    return _PLAIN.get(lower, lower)


def bytes_of(dtype: str | None) -> int | None:
    """Bytes of an element: of `Float`, `c10::BFloat16`, `Float8_e4m3fn`, `long int`; None if unknown.

    Two elements of 4 bits share a byte, which is what PyTorch counts as one.
    """
    if not dtype:
        return None
    name = dtype.replace("c10::", "").lower().strip()
    if name.startswith(("float8", "float4")) or name in ("uint8", "int8"):
        return 1
    return _BYTES.get(name)


def in_kernel_name(name: str) -> str | None:
    """The type of the elements that a templated kernel of PyTorch works on, as its name says; None if it does not."""
    match = _IN_NAME.search(name)
    if match:
        return plain(match[1])
    match = _OPAQUE.search(name)
    return {"1": "uint8", "2": "uint16", "4": "uint32", "8": "uint64"}.get(match[1]) if match else None
