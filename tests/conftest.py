"""Shared by all tests: distributed tests as ordinary functions, and the command as a user would call it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks as launch_ranks


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every process of a test uses one thread, and the corpora live in a cache of their own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["STEPLADDER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "STEPLADDER_RUN_FOLDER"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., Any]:
    """`run_ranks(function, num_ranks, *arguments)`: rank 0's answer."""
    return launch_ranks


@pytest.fixture(scope="session")
def stepladder() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`stepladder("check", "demo", cwd=...)`: the command in a process of its own."""

    def call(*arguments: str, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", "-m", "stepladder", *map(str, arguments)],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return call
