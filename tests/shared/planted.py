"""Real runs with one planted fault each, and what `stepladder trace` advises on them.

A fault is a diff of a recipe where the framework has a key for it, else it is put into the process (`planted/rank.py`),
or between the ranks (`planted/slow_link.c`). The clean runs are the same recipes without.
"""

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepladder.launch.recipe import PACKAGE
from stepladder.profiling.spans import Span
from stepladder.profiling.trace.advice import Fault

PLANTED = Path(__file__).parent.parent / "planted"
TIMEOUT_S = 240
"""Of a run, on a machine that others use."""
FAST_ETHERNET_MB_S = 40
BASE = """
name = "planted"
[run]
num_steps = 13
log_every = 100
device = "cpu"
threads_per_rank = 1
[model.decoder]
dim = 128
num_layers = 4
num_heads = 4
ffn_dim = 352
vocab_size = 256
[data.stdlib]
[batch]
microbatch_size = 4
sequence_length = 128
[strategies.adamw]
[strategies.clip]
[profiler]
skip_first = 2
warmup = 1
active = 10
record_shapes = true
"""
TINY = ("model.decoder.dim=16", "model.decoder.ffn_dim=32", "model.decoder.num_layers=8", "batch.sequence_length=8")
DDP = ("strategies.ddp={}",)
LARGE = ("model.decoder.dim=256", "batch.microbatch_size=1", "batch.sequence_length=64")
"""Much to exchange, little to compute."""
ACCUMULATION = ("strategies.accumulation.num_microbatches=3",)
PIPELINE = (
    "mesh.pp=2", "strategies.pp={}", "strategies.accumulation.num_microbatches=8", "model.decoder.num_layers=6",
    "batch.microbatch_size=1",
)  # fmt: skip
COMPILE = ("strategies.compile.backend=aot_eager", "profiler.active=5", "profiler.skip_first=1", "run.num_steps=7")


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A run, and the fault that its first advice must name; None: no advice at all."""

    fault: Fault | None
    recipe: tuple[str, ...] = ()
    """Overrides of `BASE`."""
    num_ranks: int = 1
    preload: str = ""
    """A C file that is preloaded before libc."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


RUNS = {
    "clean": Planted(fault=None, num_ranks=2, recipe=DDP),
    "clean_alone": Planted(fault=None),
    "clean_pipeline": Planted(fault=None, num_ranks=2, recipe=PIPELINE),
    "starved_loader": Planted(fault=Fault.LOADER),
    "sync_every_step": Planted(fault=Fault.READ_ON_HOST),
    "tiny_kernels": Planted(fault=Fault.TINY_OPERATORS, recipe=TINY),
    "unfused_optimizer": Planted(fault=Fault.OPTIMIZER, recipe=("strategies.adamw.implementation=for-loop",)),
    "straggler_rank": Planted(fault=Fault.STRAGGLER, num_ranks=2, recipe=DDP),
    "slow_link": Planted(
        fault=Fault.SLOW_LINK, num_ranks=2, recipe=DDP, preload="slow_link.c",
        environment={"SLOW_LINK_MB_S": str(FAST_ETHERNET_MB_S)},
    ),
    "small_buckets": Planted(
        fault=Fault.SMALL_BUCKETS, num_ranks=2, recipe=(*LARGE, "strategies.ddp.bucket_mib=1")
    ),
    "accumulation_without_no_sync": Planted(
        fault=Fault.EVERY_MICROBATCH, num_ranks=2, recipe=(*DDP, *LARGE, *ACCUMULATION)
    ),
    "recompilation_every_step": Planted(fault=Fault.RECOMPILATION, recipe=COMPILE),
    "gc_pauses": Planted(fault=Fault.GARBAGE),
    "pageable_copies": Planted(fault=Fault.PAGEABLE),
    "pipeline_imbalance": Planted(
        fault=Fault.UNEVEN_STAGES, num_ranks=2, recipe=(*PIPELINE, "strategies.pp.cuts=[5]")
    ),
}  # fmt: skip
"""Twelve faults, and the clean twins of their layouts."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was advised."""

    advice: list[dict[str, Any]]
    step_ms: float
    took_s: float


def run(name: str, folder: Path) -> Result:
    """Train the run `name` in an empty folder, and ask for advice. Raises: RuntimeError with what a rank said."""
    start_s = time.monotonic()
    planted = RUNS[name]
    train(name, planted, folder)
    traces = folder / "run" / "traces"
    if planted.fault is Fault.PAGEABLE:
        for path in traces.iterdir():
            with_fake_device(path)
    command = [sys.executable, "-P", "-m", PACKAGE, "trace", str(traces), "--json", "-", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{name}: the analysis ended with {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    windows = [row["window_ns"] for row in found["tables"]["steps"]]
    return Result(advice=found["advice"], step_ms=sum(windows) / len(windows) / 1e6, took_s=time.monotonic() - start_s)


def train(name: str, planted: Planted, folder: Path) -> None:
    """One process for each rank, as torchrun would start them."""
    recipe = folder / "recipe.toml"
    recipe.write_text(BASE)
    overrides = [word for each in planted.recipe for word in ("--set", each)]
    command = [sys.executable, "-P", str(PLANTED / "rank.py"), name, "run", str(recipe), *overrides]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(planted.num_ranks),
        "LOCAL_WORLD_SIZE": str(planted.num_ranks), "OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "6",
        "PYTHONSAFEPATH": "1", **planted.environment,
    }  # fmt: skip
    if planted.preload:
        environment["LD_PRELOAD"] = str(compiled(PLANTED / planted.preload, folder))
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(planted.num_ranks):
            said = (folder / f"rank-{rank}.txt").open("wb")
            ranks.append(
                subprocess.Popen(
                    [*command, "--out", str(folder / "run")], stdout=said, stderr=subprocess.STDOUT,
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )  # fmt: skip
            said.close()
        codes = [each.wait(timeout=TIMEOUT_S) for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    for rank, code in enumerate(codes):
        if code:
            raise RuntimeError(f"{name}: rank {rank} ended with {code}: {(folder / f'rank-{rank}.txt').read_text()}")


def compiled(source: Path, folder: Path) -> Path:
    """A C file as a library that can be preloaded. Raises: RuntimeError without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError(f"{source.name}: there is no C compiler; install one, or set CC")
    library = folder / f"{source.stem}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def with_fake_device(path: Path) -> None:
    """Move a trace's operators to a device that is not there.

    A CPU copies nothing to itself, so that pageable memory can only be acted: each outermost operator becomes a launch
    and a kernel of the same time, and what `host_to_device` copies a call that waits for a copy from pageable memory.
    All times are those that were measured.
    """
    trace = json.loads(gzip.decompress(path.read_bytes()))
    complete = [each for each in trace["traceEvents"] if each.get("ph") == "X"]
    copies = [(each["ts"], each["ts"] + each["dur"]) for each in complete if each["name"] == Span.HOST_TO_DEVICE]
    operators = [each for each in complete if each["cat"] == "cpu_op" and each["name"].startswith("aten::")]
    operators.sort(key=lambda each: (each["ts"], -each["dur"]))
    reach, device = 0.0, list[dict[str, Any]]()
    for number, each in enumerate(operators, start=1):
        begin, end = each["ts"], each["ts"] + each["dur"]
        if begin < reach:
            continue
        reach = end
        copy = each["name"] == "aten::copy_" and any(first <= begin < last for first, last in copies)
        call, work = ("cudaMemcpyAsync", "Memcpy HtoD (Pageable -> Device)") if copy else ("cudaLaunchKernel", "")
        host = {"ph": "X", "pid": each["pid"], "tid": each["tid"], "ts": begin, "args": {"correlation": number}}
        there = {"ph": "X", "pid": 0, "tid": 7, "ts": begin, "dur": each["dur"]}
        arguments = {"device": 0, "stream": 7, "correlation": number}
        device += [
            host | {"cat": "cuda_runtime", "name": call, "dur": each["dur"] if copy else min(1.0, each["dur"])},
            there | {"cat": "gpu_memcpy" if copy else "kernel", "name": work or each["name"], "args": arguments},
        ]
    trace["traceEvents"] += device
    path.write_bytes(gzip.compress(json.dumps(trace).encode()))
