"""The bar while traces are read: on a terminal alone, in bytes, and nothing of it stays."""

import io
import sys

import pytest

from stepladder.launch.reading_bar import progress_line, reading_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_bytes_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with reading_bar() as tell:
        assert tell is not None
        tell(1_000_000, 4_000_000)
        tell(1_100_000, 4_000_000)  # too soon after the first to be drawn
        tell(4_000_000, 4_000_000)
    said = stream.getvalue()
    assert said.count("of 4.0 MB of traces") == 2
    assert "1.1 of" not in said
    assert said.endswith("\r\x1b[K")
    assert "\n" not in said


def test_a_pipe_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with reading_bar() as tell:
        assert tell is None
    assert stream.getvalue() == ""


def test_rate_and_time_left_follow_from_what_is_done() -> None:
    assert progress_line(10_000_000, 40_000_000, 2.0).endswith("] 10.0 of 40.0 MB of traces, 5.0 MB/s, 6 s left")
    assert progress_line(0, 40_000_000, 1.0).endswith("] 0.0 of 40.0 MB of traces")
    assert progress_line(40_000_000, 40_000_000, 2.0).endswith("40.0 MB of traces, analysing")
    assert progress_line(0, 0, 0.0).endswith("analysing")
    assert progress_line(20, 40, 1.0).startswith(f"[{'#' * 15}{'.' * 15}]")
