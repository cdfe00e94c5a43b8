"""How distributed tests are started, and how they fail."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist


def fails_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError("this is why")
    dist.barrier()


def sleeps() -> None:
    time.sleep(60)


def crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def surroundings() -> tuple[str, str | None, str]:
    return os.getcwd(), os.environ.get("SAID"), os.environ["OMP_NUM_THREADS"]


def test_the_rank_that_failed_first_is_named_with_its_reason(run_ranks: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 ended with 1:.*this is why"):
        run_ranks(fails_on, 2, 1)


def test_ranks_that_hang_or_crash_are_told_apart(run_ranks: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="did not end in 2 s"):
        run_ranks(sleeps, 2, timeout_s=2)
    with pytest.raises(AssertionError, match="ended with -11"):
        run_ranks(crashes, 1)


def test_ranks_see_what_the_test_sees(
    run_ranks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAID", "yes")
    monkeypatch.chdir(tmp_path)
    assert run_ranks(surroundings, 2) == (str(tmp_path), "yes", "1")
