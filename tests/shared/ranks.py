"""Distributed tests as ordinary functions: one process a rank, gloo between them.

The processes are forked from one that has imported torch: that takes longer than most of what is tested. It has begun
no thread and no computation, so that a fork is as good as a fresh start, but for one thing: texts have the same hashes
on all ranks. What depends on them shows in the tests that call the command.
"""

import functools
import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

_IMPORTED = (
    "pytest",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.pipelining",
    "stepladder.launch.worker",
)


def run_ranks(function: Callable[..., Any], num_ranks: int, *arguments: Any, timeout_s: float = 280) -> Any:
    """Call a module-level test function on `num_ranks` gloo processes; return what rank 0 returned.

    The function is found by file and name, so it may live in any test file. It is called as `function(*arguments)` with
    the process group initialised. Raises: AssertionError with the output of the ranks if one of them failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = pickle.dumps((function.__code__.co_filename, function.__name__, arguments))
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            _server().Process(
                target=_rank,
                args=(job, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, Path.cwd(), folder / str(rank)),
            )
            for rank in range(num_ranks)
        ]
        end = time.monotonic() + timeout_s
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.join()
        errors = [_said(folder / f"{rank}.err") for rank in range(num_ranks)]
        failed = [rank for rank, code in enumerate(codes) if code != 0]
        # Where one rank fails, the others lose their connections to it: that is not the reason.
        for rank in sorted(failed, key=lambda rank: (codes[rank] is None, "gloo/transport" in errors[rank])):
            ended = f"did not end in {timeout_s:.0f} s" if codes[rank] is None else f"ended with {codes[rank]}"
            raise AssertionError(f"rank {rank} {ended}:\n{errors[rank]}")
        return pickle.loads((folder / "0.result").read_bytes())


def _said(file: Path) -> str:
    return file.read_text(errors="replace")[-4000:] if file.exists() else ""


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def _rank(job: bytes, environment: Mapping[str, str], cwd: Path, place: Path) -> None:
    """One rank: in the environment of who asks, with its output in files."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{place}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        result = _call(job)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    Path(f"{place}.result").write_bytes(pickle.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo sometimes aborts in the interpreter's teardown


def _call(job: bytes) -> Any:
    path, name, arguments = pickle.loads(job)
    spec = importlib.util.spec_from_file_location("test_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch.distributed as dist

    dist.init_process_group("gloo")
    result = getattr(module, name)(*arguments)
    dist.barrier()
    return result
