"""Worlds of any size in one process: torch's fake process group, whose collectives return at once with garbage.

Shapes, groups and memory are those of the real world; values are not, and a missing partner hangs nobody.
"""

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from stepladder.launch.plan import Plan, make_plan
from stepladder.launch.recipe import parse
from stepladder.strategies.assemble import apply_all
from stepladder.strategies.base import Program, Run
from stepladder.strategies.clip import measure_norm
from stepladder.strategies.materialise import build_on_meta
from stepladder.strategies.mesh import build_mesh
from stepladder.trainer.models.decoder import next_token_loss
from stepladder.trainer.step import accumulate


def as_rank(rank: int, num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 600) -> Any:
    """What `function(*arguments)` returns on one rank of a fake world; see `on_ranks`."""
    return on_ranks([rank], num_ranks, function, *arguments, timeout_s=timeout_s)[rank]


def on_ranks(
    ranks: Iterable[int], num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 600
) -> dict[int, Any]:
    """What `function(*arguments)` returns on each of some ranks of a fake world.

    Each in a process of its own, for DTensor remembers by mesh what a rank has found; as many at once as there are
    cores. Raises: AssertionError if one fails or does not come back in time.
    """
    found: dict[int, Any] = {}
    waiting = sorted(set(ranks))
    while waiting:
        together, waiting = waiting[: os.cpu_count()], waiting[os.cpu_count() or 1 :]
        started = {rank: _start(rank, num_ranks, function, arguments) for rank in together}
        try:
            for rank, (_, pipe) in started.items():
                found[rank] = _receive(pipe, f"rank {rank} of {num_ranks}", timeout_s)
        finally:
            for process, _ in started.values():
                process.kill()
                process.join()
    return found


def _start(rank: int, num_ranks: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    context = multiprocessing.get_context("fork")  # torch is loaded already
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, rank, num_ranks, function, arguments))
    process.start()
    there.close()
    return process, here


def _receive(pipe: Any, who: str, timeout_s: float) -> Any:
    assert pipe.poll(timeout_s), f"{who}: no answer in {timeout_s:g} s"
    try:
        result, problem = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise AssertionError(f"{who} died") from None
    assert not problem, f"{who}:\n{problem}"
    return result


def _answer(pipe: Any, rank: int, num_ranks: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import traceback

    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.set_num_threads(1)
    result, problem = None, ""
    try:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
        result = function(*arguments)
    except BaseException:
        problem = traceback.format_exc()
    pipe.send_bytes(pickle.dumps((result, problem)))


def plan_of(tree: dict[str, Any], num_ranks: int) -> Plan:
    """The plan of a recipe for so many ranks. Raises: UsageError with every problem."""
    return make_plan(parse(tree, {}), num_gpus=0, num_ranks=num_ranks, started=True)


def on_meta(plan: Plan) -> Program:
    """The rank's program with all strategies applied and without a single weight."""
    # The GPUs' own mesh would need GPUs; the strategies are handed everything else as it would be.
    run: Run = replace(plan.run(), mesh=build_mesh("cpu", plan.degrees), device=torch.device("cpu"))
    program = Program(
        model=build_on_meta(plan.recipe.model.chosen.build),
        facts=plan.facts,
        loss=next_token_loss,
        forward_backward=accumulate,
        clip_gradients=measure_norm,
    )
    return apply_all(program, plan.recipe.strategies, run)


def local(tensor: Any) -> torch.Tensor:
    """The rank's own part of a tensor."""
    return getattr(tensor, "_local_tensor", tensor)


def num_bytes(tensor: Any) -> int:
    """Bytes of this rank's part."""
    return local(tensor).numel() * local(tensor).element_size()
