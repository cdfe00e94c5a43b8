"""Memory that nothing uses any more goes back to the system."""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return free pages, where the C library can (glibc); else they stay with the process until it needs some.

    What was freed between two things that are in use would otherwise count for the process to its end.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
