"""The parts in C, for loops that no library has: text to columns (scan.c), simulated times (critical_path/relax.c).

They are built when stepladder is installed, if there is a C compiler; without them the same is done more slowly. They
are called through ctypes, which lets other Python threads run meanwhile.
"""

import ctypes
import functools
import importlib.util

_Pointer = ctypes.c_void_p
_Int = ctypes.c_int64


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None if they were not built."""
    found = importlib.util.find_spec(f"{__package__}._compiled")
    if found is None or found.origin is None:
        return None
    try:
        built = ctypes.CDLL(found.origin)
        built.scan.argtypes = [_Pointer]
        built.gather.argtypes = [_Pointer, _Pointer, _Pointer, _Int, _Pointer, _Pointer]
        built.relax.argtypes = [_Pointer, _Pointer, _Pointer, _Int, _Pointer]
    except (OSError, AttributeError):
        return None
    return built
