"""Distributed tests as ordinary functions: one process a rank, gloo between them."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAIN = Path(__file__).parent.parent / "rank_main.py"


def run_ranks(function: Callable[..., Any], num_ranks: int, *arguments: Any, timeout_s: float = 280) -> Any:
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
            [sys.executable, "-P", str(MAIN)],
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
    failed = [(rank, each) for rank, each in enumerate(processes) if each.returncode != 0]
    # Where one rank fails, the others lose their connections to it: that is not the reason.
    failed.sort(key=lambda each: b"Connection closed by peer" in outputs[each[0]][1])
    for rank, process in failed:
        errors = outputs[rank][1].decode()[-4000:]
        raise AssertionError(f"rank {rank} ended with {process.returncode}:\n{errors}")
    return pickle.loads(outputs[0][0].rpartition(b"RESULT")[2])
