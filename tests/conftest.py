"""Shared by all tests: distributed tests as ordinary functions, and the command as a user would call it."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every process of a test uses one thread, and the corpora live in a cache of their own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["STEPLADDER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "STEPLADDER_RUN_FOLDER"):
        os.environ.pop(name, None)


def _run_ranks(function: Callable[..., Any], num_ranks: int, *arguments: Any, timeout_s: float = 280) -> Any:
    """Call a module-level test function on `num_ranks` gloo processes; return what rank 0 returned.

    The function is found by file and name, so it may live in any test file. It is called as `function(*arguments)` with
    the process group initialised. Raises: AssertionError with the output of the ranks if one of them failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = pickle.dumps((function.__code__.co_filename, function.__name__, arguments))
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", str(HERE / "rank_main.py")],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(num_ranks)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(job)
            process.stdin.close()
            process.stdin = None
        outputs = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, (_, errors)) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{errors.decode()[-4000:]}"
    return pickle.loads(outputs[0][0].rpartition(b"RESULT")[2])


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., Any]:
    """`run_ranks(function, num_ranks, *arguments)`: rank 0's answer."""
    return _run_ranks


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
