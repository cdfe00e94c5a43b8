"""Runs the steps of a pipeline: what replaces `accumulate` and the plain forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ...profiling.record import Marker, no_span
from ...profiling.spans import Span
from ..base import Batch, Program
from .actions import Table
from .bubble import formula, simulate
from .meter import BusyMeter
from .schedule import make_schedule, order_table
from .split import pieces_of_stages, split_facts, split_model, stage_name
from .stages import Stage, Step


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a pipeline is laid out; the same on all its ranks."""

    schedule: str
    path: Path | None
    """The action table of a `csv`."""
    num_ranks: int
    stages_per_rank: int
    num_microbatches: int
    blocks: Sequence[range]
    """Of each stage."""
    costs: Sequence[float]
    """Of each stage, forward FLOPs a token."""
    width: int
    """D: features of the hidden states."""

    @property
    def num_stages(self) -> int:
        """All stages of all ranks."""
        return len(self.blocks)

    def order(self) -> Table:
        """What every rank does, in order."""
        return order_table(self.schedule, self.path, self.num_ranks, self.stages_per_rank, self.num_microbatches)


@dataclass(kw_only=True)
class Pipeline:
    """The stages of a rank and their schedule, made at the first step, when the stages are what they will be."""

    shape: Shape
    held: Sequence[int]
    """Stages of this rank."""
    group: ProcessGroup
    device: torch.device
    meter: BusyMeter
    _schedules: dict[torch.Size, tuple[Any, Step]] = field(default_factory=dict[torch.Size, tuple[Any, Step]])

    @property
    def has_loss(self) -> bool:
        """Whether this rank has the last stage."""
        return self.shape.num_stages - 1 in self.held

    def install(self, program: Program) -> Program:
        """The program of this rank's stages alone."""
        pieces = pieces_of_stages(program.facts, self.shape.blocks)
        return replace(
            program,
            model=split_model(program.model, pieces, self.held),
            facts=split_facts(program.facts, pieces, self.held),
            forward_backward=self.forward_backward,
            forward_only=self.forward_only,
            norm_group=self.group,
            reports=(*program.reports, self.report),
        )

    def forward_backward(
        self, program: Program, microbatches: Sequence[Batch], scale: "float | Tensor", mark: Marker
    ) -> Tensor:
        """One step; this rank's sum of losses, which is 0 where the last stage is not."""
        with mark(Span.PIPELINE), self.meter.step():
            schedule, step = self._ready(program, microbatches, scale, mark)
            schedule.step(target=_no_target(microbatches), return_outputs=False)
        return torch.stack(step.losses).sum() if self.has_loss else torch.zeros((), device=self.device)

    def forward_only(self, program: Program, microbatches: Sequence[Batch]) -> Tensor:
        """Forward passes; what is missing in a step's number of microbatches is made up by ones that do not count."""
        number = self.shape.num_microbatches
        blank = microbatches[0]._replace(labels=torch.full_like(microbatches[0].labels, -100))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for begin in range(0, len(microbatches), number):
                some = list(microbatches[begin : begin + number])
                some += [blank] * (number - len(some))
                schedule, step = self._ready(program, some, 1.0, no_span)
                schedule.eval(target=_no_target(some), return_outputs=False)
                for loss in step.losses:
                    total += loss
        return total

    def _ready(
        self, program: Program, microbatches: Sequence[Batch], scale: "float | Tensor", mark: Marker
    ) -> tuple[Any, Step]:
        """The schedule for batches of this shape, its stages told what this step is about."""
        if len(microbatches) != self.shape.num_microbatches:
            raise ValueError(f"a step of this pipeline has {self.shape.num_microbatches} microbatches")
        like = microbatches[0].inputs
        if like.shape not in self._schedules:
            self._schedules[like.shape] = self._make(program, like)
        schedule, step = self._schedules[like.shape]
        step.program, step.scale, step.mark = program, scale, mark
        step.batches = [_with_positions(program.shard_batch(whole)) for whole in microbatches]
        step.losses.clear()
        return schedule, step

    def _make(self, program: Program, like: Tensor) -> tuple[Any, Step]:
        """Stages and schedule for whole batches like this one; it is cut later, but always by as much."""
        step = Step(meter=self.meter, program=program)
        batch_size, length = like.shape
        ids = program.shard_batch(Batch(inputs=like, labels=like)).inputs.to("meta")
        hidden = torch.empty(
            batch_size,
            length // program.sequence_split,
            self.shape.width,
            dtype=program.hidden_dtype or next(program.model.parameters()).dtype,
            device="meta",
            requires_grad=True,
        )
        stages = [
            Stage(
                program.model.get_submodule(stage_name(index)),
                step,
                index=index,
                num_stages=self.shape.num_stages,
                ids=ids,
                hidden=hidden,
                group=self.group,
                device=self.device,
            )
            for index in self.held
        ]
        shape = self.shape
        return make_schedule(shape.schedule, shape.path, stages, shape.num_microbatches, step.loss), step

    def measured_bubble(self) -> float | None:
        """Share of the measured steps in which the ranks did not work; None without such steps. All must call it.

        Waits, messages, and the reduction of gradients are no work.
        """
        import torch.distributed as dist

        work_s, step_s, num_steps = self.meter.totals_s()
        work = torch.tensor(work_s, dtype=torch.float64, device=self.device)
        longest = torch.tensor(step_s, dtype=torch.float64, device=self.device)
        dist.all_reduce(work, group=self.group)
        dist.all_reduce(longest, dist.ReduceOp.MAX, group=self.group)
        return 1 - float(work) / (self.shape.num_ranks * float(longest)) if num_steps else None

    def report(self) -> list[str]:
        """The layout, and the bubble: by formula, for the stages' costs, and as it was. All ranks must call it."""
        shape = self.shape
        measured, num_steps = self.measured_bubble(), self.meter.totals_s()[2]
        share = [100 * cost / sum(shape.costs) for cost in shape.costs]
        expected = simulate(shape.order(), shape.costs, shape.costs, shape.costs).bubble
        ideal = formula(shape.schedule, shape.num_ranks, shape.stages_per_rank, shape.num_microbatches)
        said = [f"{100 * ideal:.1f} % for equal stages"] if ideal is not None else []
        said.append(f"{100 * expected:.1f} % for these costs")
        if measured is not None:
            said.append(f"{100 * measured:.1f} % measured over {num_steps} steps")
        return [
            f"pipeline: {shape.schedule}, {shape.num_stages} stages on {shape.num_ranks} ranks, "
            f"{shape.num_microbatches} microbatches; blocks {' + '.join(str(len(blocks)) for blocks in shape.blocks)}, "
            f"cost {' + '.join(f'{each:.0f}' for each in share)} %; bubble {', '.join(said)}"
        ]


def _with_positions(batch: Batch) -> Batch:
    """Later stages cannot tell positions from the shape of what they get, which may be a part of the sequence."""
    if batch.positions is not None:
        return batch
    return batch._replace(positions=torch.arange(batch.inputs.shape[1], device=batch.inputs.device))


def _no_target(microbatches: Sequence[Batch]) -> Tensor:
    """What torch hands to the loss, a piece for each microbatch; ours has labels, and looks at no target."""
    return torch.zeros(len(microbatches))
