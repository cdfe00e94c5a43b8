"""Strategies on a model whose loop somebody else has written.

[Note: whose mean]
The trainer divides the sum of losses by the number of labels of all ranks. A loop of one's own has the mean loss of its
microbatch instead, and expects of the gradient what DistributedDataParallel gives: the mean over ranks. `backward`
makes it so whichever strategy reduces, and the mean over the microbatches of a step as well.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...strategies import active
from ...strategies.assemble import assemble
from ...strategies.base import Batch, Owns, Program, Run
from ...strategies.check import environment, owned_axes, owners, problems
from ...strategies.clip import measure_norm
from ...strategies.facts import Facts
from ...strategies.mesh import Axis, MeshConfig, build_mesh, data_ranks, resolve_degrees
from ...strategies.plugins import installed
from ...trainer.step import accumulate
from .. import devices
from ..errors import UsageError
from ..ranks import Ranks
from ..reader import Problems, read_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

_NEED_THE_LOOP = {
    "pp": "it replaces forward and backward",
    "cp": "it cuts the batch",
    "tp": "it takes the loss apart",
    "ep": "it must know the model's experts",
    "chunked_loss": "it replaces the loss",
    "distill": "it replaces the loss",
    "cuda_graph": "it captures forward and backward",
    "local_sgd": "it must know how long the training is",
}
_ENDLESS = 1 << 40


@dataclass(kw_only=True)
class Applied:
    """A model with strategies in it, and the four calls that a loop makes."""

    program: Program
    device: "torch.device"
    rank: int
    num_ranks: int
    """Ranks that see different samples."""
    optimizer: "Optimizer | None"
    """Of the strategy that owns it; None if you bring your own, made from `model.parameters()`."""
    num_steps_done: int = 0
    _made_the_group: bool = False
    _base_rates: list[float] = field(default_factory=list[float])
    _num_forward: int = 0

    @property
    def model(self) -> "nn.Module":
        """What to call; its parameters are those of the optimizer."""
        return self.program.model

    @contextmanager
    def microbatch(self) -> Generator[None]:
        """Enter around forward and backward of one microbatch: the last of a step reduces the gradients."""
        is_last = (self._num_forward + 1) % self.program.num_microbatches == 0
        with self.program.before_microbatch(is_last), self.program.forward_context():
            yield
        self._num_forward += 1

    def backward(self, loss: "Tensor") -> None:
        """Backward of a microbatch's mean loss: gradients become the mean over microbatches and ranks."""
        import torch

        program = self.program
        scale = program.gradient_divisor / (self.num_ranks * program.num_microbatches)
        with torch.autocast(self.device.type, enabled=False):
            program.loss_scaling.scale(loss * scale).backward()

    def step(self, optimizer: "Optimizer | None" = None) -> "Tensor | None":
        """Clip, take the optimizer's step, release the gradients; returns their norm if somebody clips.

        Raises: UsageError without an optimizer, or in the middle of a step's microbatches.
        """
        program, optimizer = self.program, optimizer or self.optimizer
        if optimizer is None:
            raise UsageError("step(): there is no optimizer; add adamw to the strategies, or hand in your own")
        if self._num_forward % program.num_microbatches:
            raise UsageError(
                f"step(): after microbatch {self._num_forward % program.num_microbatches} of "
                f"{program.num_microbatches}; a step has all of them"
            )
        self._base_rates = self._base_rates or [float(group["lr"]) for group in optimizer.param_groups]
        rate = program.learning_rate(self.num_steps_done)
        for group, base in zip(optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * rate
        for finish in program.after_backward:
            finish()
        program.loss_scaling.unscale(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = program.clip_gradients(program, parameters, want_norm=False)
        program.loss_scaling.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        for follow in program.after_step:
            follow()
        self.num_steps_done += 1
        return norm

    def close(self) -> None:
        """Leave the process group, if `apply` has made it: at the end of a script that has come to its end."""
        if self._made_the_group:
            import torch.distributed as dist

            self._made_the_group = False
            dist.destroy_process_group()

    def reports(self) -> list[str]:
        """What the strategies have to say at the end."""
        return [line for report in self.program.reports for line in report()]


def apply(
    model: "nn.Module",
    *,
    strategies: Mapping[str, Any],
    mesh: Mapping[str, int] | None = None,
    device: "torch.device | str | None" = None,
    facts: Facts | None = None,
    num_steps: int | None = None,
    microbatch_size: int = 1,
    seed: int = 0,
) -> Applied:
    """Your model with strategies in it, as a recipe's `[strategies]` names them: `{"ddp": {}, "amp": {}, "adamw": {}}`.

    The process group is yours if there is one, else it is made from torchrun's environment. The weights of rank 0
    count. mesh: degrees of axes, as a recipe's `[mesh]`. facts: what strategies may know of the model; its blocks are
    detected if left out. num_steps: for strategies that must know it. Raises: UsageError with every problem.
    """
    chosen = _read(strategies)
    device_type = str(device or ("cuda" if devices.count_gpus() else "cpu")).partition(":")[0]
    ranks = _ranks()
    known = facts or _detected(model)
    degrees, found = resolve_degrees(_mesh(mesh or {}), ranks.num_ranks, owned_axes(chosen))
    run = Run(
        device_type="cuda" if device_type == "cuda" else "cpu",
        degrees=degrees,
        facts=known,
        num_steps=num_steps or _ENDLESS,
        tokens_per_step=0,
        seed=seed,
        active=frozenset(name for name, _ in active(chosen)),
        owners=owners(chosen),
        strategies=chosen,
        num_microbatches=chosen.accumulation.num_microbatches if chosen.accumulation else 1,
        microbatch_size=microbatch_size,
        capability=devices.compute_capability() if device_type == "cuda" and chosen.fp8 else None,
    )
    found += [each for each in problems(chosen, run) if "owns the optimizer" not in each]
    for name, why in _NEED_THE_LOOP.items():
        if name in run.active:
            found.append(f"strategies.{name}: {why}, so it works in stepladder's own loop only; write a recipe")
    if chosen.schedule is not None and num_steps is None:
        found.append("strategies.schedule: counts on the length of the training; give num_steps")
    if found:
        raise UsageError(*found)
    return _applied(model, chosen, run, ranks, device)


def _applied(model: "nn.Module", chosen: Any, run: Run, ranks: Ranks, device: "torch.device | str | None") -> Applied:
    """The checked strategies on the model."""
    import torch

    where = torch.device(device) if device is not None else _own_device(run.device_type, ranks)
    for key, (value, _) in environment(chosen, run).items():  # before anything reads it
        os.environ.setdefault(key, value)
    together = ranks.num_ranks > 1 or bool(owned_axes(chosen))
    made = together and _meet(where, ranks)
    run = replace(run, mesh=build_mesh(run.device_type, run.degrees) if together else None, device=where)
    if Axis.DP_SHARD not in owned_axes(chosen):  # what is sharded goes there piece by piece
        model = model if any(each.is_meta for each in model.parameters()) else model.to(where)
    if ranks.num_ranks > 1:
        _spread(model, where)
    program = Program(
        model=model, facts=run.facts, loss=_no_loss, forward_backward=accumulate, clip_gradients=measure_norm
    )
    program = assemble(program, chosen, run)
    make = program.make_optimizer if Owns.OPTIMIZER in run.owners else None
    return Applied(
        program=program,
        device=where,
        rank=ranks.rank,
        num_ranks=data_ranks(run.degrees),
        optimizer=make(program.model) if make else None,
        _made_the_group=made,
    )


def _no_loss(output: "Tensor", batch: Batch) -> "Tensor":
    raise AssertionError("a loop of one's own has a loss of its own")


def _read(strategies: Mapping[str, Any]) -> Any:
    """The tables as strategies. Raises: UsageError."""
    said = Problems({})
    chosen = read_table(installed(), strategies, "strategies", said)
    if said.sentences:
        raise UsageError(*said.sentences)
    return chosen


def _mesh(degrees: Mapping[str, int]) -> MeshConfig:
    said = Problems({})
    mesh: MeshConfig = read_table(MeshConfig, degrees, "mesh", said)
    if said.sentences:
        raise UsageError(*said.sentences)
    return mesh


def _detected(model: "nn.Module") -> Facts:
    """What a module shows of itself."""
    from ...trainer.models.detect import find_blocks

    number = sum(parameter.numel() for parameter in model.parameters())
    return Facts(blocks=find_blocks(model), num_parameters=number, unit="sample", sequence_length=1, has_modes=True)


def _ranks() -> Ranks:
    """Which of its like this process is: by the process group, or torchrun's environment, or alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
        return Ranks(rank=dist.get_rank(), local_rank=local, num_ranks=dist.get_world_size())
    return Ranks.from_environment() or Ranks(rank=0, local_rank=0, num_ranks=1)


def _own_device(device_type: str, ranks: Ranks) -> "torch.device":
    import torch

    if device_type == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", ranks.local_rank % max(1, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def _meet(device: "torch.device", ranks: Ranks) -> bool:
    """Make the process group, and say so; false if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        return False
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if ranks.num_ranks == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=bound)
    else:
        dist.init_process_group(backend, device_id=bound)
    return True


def _spread(model: "nn.Module", device: "torch.device") -> None:
    """Give every rank the weights and buffers of rank 0, one tensor at a time on the device."""
    import torch
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_meta:
                there = tensor.detach().to(device)
                dist.broadcast(there, 0)
                tensor.copy_(there)
