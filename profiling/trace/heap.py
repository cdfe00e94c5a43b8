"""Memory that nothing uses any more goes back to the system."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def give_back() -> None:
    """Return free pages, where the C library can (glibc); else they stay with the process until it needs some.

    What was freed between two things that are in use would otherwise count for the process to its end.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def tidily(make: Callable[P, T]) -> Callable[P, T]:
    """The same function, behind which nothing stays but what it gives."""

    @wraps(make)
    def tidy(*args: P.args, **kwargs: P.kwargs) -> T:
        made = make(*args, **kwargs)
        give_back()
        return made

    return tidy
