"""Errors that a guard must find, put into the program of an arm; and runs of it, in this process or on fresh ranks."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from stepladder.launch import session
from stepladder.launch.compare.guard_runs import RunError, Task
from stepladder.launch.instruments import Instruments
from stepladder.launch.plan import make_plan
from stepladder.launch.ranks import Ranks, StopRequest
from stepladder.launch.recipe import recipe_hash, to_toml
from stepladder.launch.testimony import Testimony
from stepladder.strategies.base import Program

Tamper = Callable[[Program], Program]
RANK = Path(__file__).parent.parent / "planted" / "guard_rank.py"


def none(program: Program) -> Program:
    return program


def faster_learning(by: float, *, after: int = 0) -> Tamper:
    def tamper(program: Program) -> Program:
        rate = program.learning_rate
        return replace(program, learning_rate=lambda step: rate(step) * (by if step >= after else 1))

    return tamper


def _around(program: Program, change: Callable[[Sequence[Any], Any], tuple[Sequence[Any], Any]]) -> Program:
    inner = program.forward_backward

    def forward_backward(program: Program, microbatches: Sequence[Any], scale: Any, mark: Any) -> Any:
        return inner(program, *change(microbatches, scale), mark)

    return replace(program, forward_backward=forward_backward)


def dropped_microbatch(program: Program) -> Program:
    """The loss of the last one is not seen either."""
    return _around(program, lambda microbatches, scale: (microbatches[:-1], scale))


def dropped_gradient(program: Program) -> Program:
    """The last microbatch is computed, so that the loss is right; its gradient is lost."""
    inner = program.forward_backward

    def forward_backward(program: Program, microbatches: Sequence[Any], scale: Any, mark: Any) -> Any:
        loss = inner(program, microbatches[:-1], scale, mark)
        return loss + program.forward_only(program, microbatches[-1:])

    return replace(program, forward_backward=forward_backward)


def wrong_loss_scale(by: float) -> Tamper:
    return lambda program: _around(program, lambda microbatches, scale: (microbatches, by * scale))


def skipped_all_reduce(program: Program) -> Program:
    """Of DDP: each rank learns from its own samples."""
    model: Any = program.model
    return replace(program, before_microbatch=lambda is_last: model.no_sync())


def without_causal_mask(program: Program) -> Program:
    def attend(self: Any, q: Any, k: Any, v: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        return F.scaled_dot_product_attention(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))

    for module in program.model.modules():
        if type(module).__name__ == "CausalAttention":
            module.forward = types.MethodType(attend, module)
    return program


def stale_weight_once(program: Program) -> Program:
    """After step 5 one weight is as it was a step before."""
    kept: list[torch.Tensor] = []

    def follow() -> None:
        weight = next(program.model.parameters())
        kept.append(weight.detach().clone())
        if len(kept) == 5:
            with torch.no_grad():
                weight.copy_(kept[3])

    return replace(program, after_step=(*program.after_step, follow))


PLANTS: dict[str, Tamper] = {
    "none": none,
    "learning_rate": faster_learning(1.02),
    "dropped_microbatch": dropped_microbatch,
    "dropped_gradient": dropped_gradient,
    "wrong_loss_scale": wrong_loss_scale(2.0),
    "skipped_all_reduce": skipped_all_reduce,
    "without_causal_mask": without_causal_mask,
    "stale_weight_once": stale_weight_once,
}


@contextlib.contextmanager
def planted(tamper: Tamper) -> Any:
    """Have sessions run a tampered program."""
    build = session.build_program
    session.build_program = lambda *arguments: tamper(build(*arguments))
    try:
        yield
    finally:
        session.build_program = build


@dataclass(frozen=True)
class InProcess:
    """Runs in this process, or on all the ranks of its group, the arm's tampered with.

    Counts what it is asked for in `asked`. Runs of baselines are kept, for many checks share them.
    """

    tamper: Tamper = none
    asked: Any = None

    def __call__(self, task: Task) -> Testimony:
        if self.asked is not None:
            self.asked.append(task)
        if task.role == "arm":
            return _run(task, self.tamper)
        kept = _untouched()
        key = recipe_hash(task.recipe), task.num_steps, task.backwards
        if key not in kept:
            kept[key] = _run(task, none)
        return kept[key]


@cache
def _untouched() -> dict[Any, Testimony]:
    return {}


def _run(task: Task, tamper: Tamper) -> Testimony:
    torch.set_num_threads(1)
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    plan = make_plan(task.recipe, num_gpus=0, num_ranks=num_ranks, started=True)
    with tempfile.TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()), planted(tamper):
        shared = [made]
        if num_ranks > 1:
            dist.broadcast_object_list(shared)
        path = Path(shared[0]) / "testimony.json"
        session.Session(
            plan=plan,
            ranks=Ranks(rank=rank, local_rank=rank, num_ranks=num_ranks),
            device=torch.device("cpu"),
            folder=Path(made),
            stop=StopRequest(),
            command=[],
            instruments=Instruments(stop_after=task.num_steps, witness=path, backwards=task.backwards),
        ).run(resume=False)
        told = Testimony.read(path)
        if num_ranks > 1:
            dist.barrier()  # before the folder goes
        return told


@dataclass(frozen=True)
class Processes:
    """Runs of the real command on gloo ranks, those of the arm with a plant."""

    folder: Path
    num_ranks: int
    plant: str = "none"

    def __call__(self, task: Task) -> Testimony:
        place = Path(tempfile.mkdtemp(prefix=f"{task.role}-", dir=self.folder))
        (place / "recipe.toml").write_text(to_toml(task.recipe))
        told = place / "testimony.json"
        plant = self.plant if task.role == "arm" else "none"
        command = [sys.executable, "-P", str(RANK), plant, "run", str(place / "recipe.toml"), "--out", place / "run"]
        command += ["--witness", told, "--stop-after", task.num_steps, *(["--backwards"] if task.backwards else [])]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.num_ranks)}
        ranks = [
            subprocess.Popen(
                list(map(str, command)),
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(self.num_ranks)
        ]
        try:
            outputs = [rank.communicate(timeout=250)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if not told.exists():
            raise RunError("\n".join(outputs)[-3000:])
        return Testimony.read(told)
