"""How far the reading of traces is, on a terminal: bytes, their rate, and the time that is left."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

_REDRAW_S = 0.1
_MB = 1e6


@contextmanager
def reading_bar() -> Generator[Callable[[int, int], None] | None]:
    """What `analyse` tells its progress; None where nobody looks. Nothing of it stays on the terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    began_s = time.monotonic()
    drawn_s = -_REDRAW_S

    def draw(num_bytes: int, of: int) -> None:
        nonlocal drawn_s
        now_s = time.monotonic()
        if now_s - drawn_s >= _REDRAW_S or num_bytes >= of:
            drawn_s = now_s
            sys.stderr.write(f"\r\x1b[K{progress_line(num_bytes, of, now_s - began_s)}")
            sys.stderr.flush()

    try:
        yield draw
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def progress_line(num_bytes: int, of: int, seconds: float) -> str:
    """The bar after some seconds; what comes behind the last byte is said, not measured."""
    share = min(1.0, num_bytes / of) if of else 1.0
    filled = round(30 * share)
    line = f"[{'#' * filled}{'.' * (30 - filled)}] {num_bytes / _MB:.1f} of {of / _MB:.1f} MB of traces"
    if share == 1.0:
        return f"{line}, analysing"
    if not num_bytes or seconds <= 0:
        return line
    return f"{line}, {num_bytes / _MB / seconds:.1f} MB/s, {(of - num_bytes) * seconds / num_bytes:.0f} s left"
