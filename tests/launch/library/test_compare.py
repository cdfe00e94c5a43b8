"""Two functions are compared by the protocol of recipes: on a clock of the test's own, and on a real one."""

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import stepladder
from stepladder.launch.compare.judge import Kind
from stepladder.launch.errors import UsageError

MODULE: Any = importlib.import_module("stepladder.launch.library.compare")


class Clock:
    """Time passes only in the functions that are timed, each call a little longer or shorter than the last."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.random = random.Random(7)
        self.calls: list[str] = []

    def function(self, name: str, takes_s: float, *, noise: float = 0.02) -> Callable[[], None]:
        def call() -> None:
            self.now_s += takes_s * (1 + noise * self.random.gauss(0, 1))
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(MODULE, "time", SimpleNamespace(perf_counter=lambda: made.now_s))
    return made


def test_a_faster_function_is_found_with_its_ratio(clock: Clock) -> None:
    found = stepladder.compare(clock.function("a", 0.002), clock.function("b", 0.0016))
    assert found.verdict.kind is Kind.FASTER
    assert found.verdict.low is not None
    assert found.verdict.high is not None
    assert found.verdict.low < 0.8 < found.verdict.high
    assert found.speedup == pytest.approx(1.25, rel=0.01)
    assert found.first_s == pytest.approx(0.002, rel=0.01)
    assert str(found).startswith("the second is faster: 1.2")
    assert "all in one process" in str(found)


def test_a_slower_one_too(clock: Clock) -> None:
    found = stepladder.compare(clock.function("a", 0.002), clock.function("b", 0.0022))
    assert found.verdict.kind is Kind.SLOWER


def test_equal_functions_are_the_same(clock: Clock) -> None:
    found = stepladder.compare(clock.function("a", 0.002), clock.function("b", 0.002), margin=0.02)
    assert found.verdict.kind is Kind.SAME


def test_a_machine_that_slows_down_does_not_favour_who_comes_first(clock: Clock) -> None:
    drifting = SimpleNamespace(factor=1.0)

    def slower_and_slower(name: str) -> Callable[[], None]:
        def call() -> None:
            drifting.factor *= 1.000002
            clock.now_s += 0.002 * drifting.factor * (1 + 0.02 * clock.random.gauss(0, 1))

        return call

    found = stepladder.compare(slower_and_slower("a"), slower_and_slower("b"), margin=0.02)
    assert drifting.factor > 1.005
    assert found.verdict.kind in (Kind.SAME, Kind.UNDECIDED)


def test_segments_take_turns_and_short_calls_are_timed_together(clock: Clock) -> None:
    stepladder.compare(clock.function("a", 1e-5), clock.function("b", 0.8e-5))
    turns = [name for i, name in enumerate(clock.calls) if i == 0 or clock.calls[i - 1] != name]
    assert turns.count("b") >= 2
    assert len(clock.calls) > 100 * len(turns)


MAKERS = """
import time

def adds(): return lambda: sum(range(2000))
def number(): return 3
def dies(): import os; os._exit(5)
def sleeps(): return lambda: time.sleep(0.002)
def sleeps_longer(): return lambda: time.sleep(0.004)
"""


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module, which processes can import."""
    (tmp_path / "makers_of_a_user.py").write_text(MAKERS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("makers_of_a_user")


@pytest.mark.slow
def test_a_segment_of_its_own_process_is_measured_there(makers: Any) -> None:
    run = MODULE._in_a_process
    length = run(makers.adds, None, 0.02)
    assert length.calls_per_step > 1
    assert 1e-7 < run(makers.adds, length, 0.02) < 0.1
    with pytest.raises(UsageError, match="returns int, and not the function that is to be timed"):
        run(makers.number, None, 0.02)
    with pytest.raises(UsageError, match="its process ended with 5"):
        run(makers.dies, None, 0.02)
    with pytest.raises(UsageError, match="cannot be sent to a process"):
        run(lambda: makers.adds, None, 0.02)


@pytest.mark.slow
def test_fresh_processes_find_who_sleeps_less(makers: Any) -> None:
    found = stepladder.compare(makers.sleeps_longer, makers.sleeps, fresh=True, segment_s=0.1)
    assert found.fresh
    assert found.verdict.kind is Kind.FASTER
    assert 1.3 < found.speedup < 2.2


def test_settings_that_allow_no_verdict_are_refused() -> None:
    for keys, said in (({"max_pairs": 2}, "too few"), ({"margin": 0.0}, "margin"), ({"segment_s": 0.0}, "segment_s")):
        with pytest.raises(UsageError, match=said):
            stepladder.compare(print, print, **keys)
