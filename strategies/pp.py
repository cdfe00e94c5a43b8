"""Pipeline parallelism: ranks hold consecutive layers and hand activations on, several microbatches at a time.

Problem: the model does not fit on the devices of one node, and links between nodes are too slow for sharding alone.
Mechanism: the blocks are cut into stages of equal cost; a schedule says when each stage runs which microbatch, and only
hidden states and their gradients travel. Zero-bubble schedules fill waits with the gradients of weights.
Saves: parameters, gradients and optimizer state divided by the degree; traffic of 2 B T D values a cut and microbatch.
Costs: a bubble, (p-1)/(v m + p-1) of the time for p ranks with v stages each and m microbatches; gradients stay whole
on each rank until the last microbatch, also with fsdp2; activations of up to p microbatches at once (gpipe: of all).
When: across nodes, with many microbatches a step; more stages on each rank (interleaved, V) where the bubble shows.
When not: fsdp2 within reach of fast links holds the model; fewer than about 4 p microbatches.
Measure: the report's bubble, measured beside the formula; pipeline in the breakdown is the wait of a rank.
Source: Huang et al. 2019, arXiv:1811.06965 (gpipe); Narayanan et al. 2021, arXiv:2104.04473 (1f1b, interleaved); Qi et
al. 2023, arXiv:2401.10241 (zero bubble), 2024, arXiv:2405.15362 (V); DeepSeek-AI 2024, arXiv:2412.19437 (DualPipe).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .base import Owns, Program, Run
from .changes import Changes, MayChange
from .limits import PositiveInt
from .mesh import Axis
from .pipeline import (
    DEFAULT_STAGES_PER_RANK,
    SPLITS_BACKWARD,
    V_SHAPED,
    ScheduleName,
    Table,
    TableError,
    balanced_cuts,
    blocks_of_stages,
    rank_of_stages,
    read_table,
    simulate,
    stage_costs,
    table_problems,
)
from .refusal import Refusal

if TYPE_CHECKING:
    from .facts import Facts
    from .pipeline.meter import BusyMeter
    from .pipeline.runner import Pipeline


@dataclass(frozen=True, kw_only=True)
class PipelineParallel:
    """Cuts the model into stages over `mesh.pp`; strategies.accumulation says how many microbatches a step has."""

    schedule: ScheduleName = "1f1b"
    """In which order stages run microbatches. `gpipe`: all forward, then all backward; `1f1b`: in turns, which keeps
    fewer activations; `interleaved_1f1b`: several stages on a rank, a smaller bubble for more messages;
    `interleaved_zero_bubble`, `zbv`, `dualpipev`: waits are filled with gradients of weights; `csv`: your own."""
    csv: str | None = None
    """File with an action table for `schedule = 'csv'`: a line for each rank, cells as 2F0 (stage, F, B, I or W,
    microbatch)."""
    stages_per_rank: PositiveInt | None = None
    """Stages that each rank holds. Left out: 1, or 2 where the schedule interleaves or runs in a V."""
    cuts: tuple[int, ...] | None = None
    """First block of each stage after the first. Left out: so that the most expensive stage is as cheap as can be, the
    embedding and the output projection counted."""

    changes: ClassVar[MayChange] = MayChange(switch=Changes.REDUCTION_ORDER)
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="compile",
            setting="schedule = 'interleaved_zero_bubble', 'zbv', 'dualpipev', or a csv with I and W",
            holds=lambda pp, run: pp.splits_backward,
            why="a compiled block computes the gradients of inputs and weights in one piece (pytorch #161904)",
            instead="use schedule = 'interleaved_1f1b', or remove strategies.compile",
        ),
        Refusal(
            beside="data documents",
            why="stages hand on hidden states, and not which document they belong to",
            instead="use packing = 'split', which lets attention see across documents",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """The pp axis, and when which microbatch runs; some schedules also take backward apart."""
        split = frozenset({Owns.SPLIT_BACKWARD}) if self.splits_backward else frozenset[Owns]()
        return frozenset({Owns.PP, Owns.FORWARD_BACKWARD}) | split

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of inputs and of weights are computed at different times."""
        if self.schedule != "csv":
            return self.schedule in SPLITS_BACKWARD
        try:
            return any(action.kind in "IW" for row in self.table() for action in row)
        except TableError:  # check says so
            return False

    def table(self) -> Table:
        """The action table of a `csv`. Raises: TableError."""
        return read_table(Path(self.csv or ""))

    def _stages_per_rank(self) -> int:
        if self.schedule == "csv":
            table = self.table()
            return (max((action.stage for row in table for action in row), default=0) + 1) // max(1, len(table))
        return self.stages_per_rank or DEFAULT_STAGES_PER_RANK[self.schedule]

    def check(self, run: Run) -> Iterator[str]:
        """Refuse what cannot be cut or scheduled."""
        if run.degrees[Axis.PP] == 1:
            return  # said already: the axis is too short
        facts = run.facts
        if facts.tied:
            yield (
                "the output projection is the embedding, which would be on the first and on the last stage; "
                "set model.decoder.tie_embeddings = false"
            )
        elif facts.cuts is None:
            yield "the model names no place to cut it; use strategies.fsdp2"
        problems = [*self._csv_problems(run), *self._schedule_problems(run)]
        yield from problems
        if not problems:
            yield from self._cut_problems(run)

    def _csv_problems(self, run: Run) -> Iterator[str]:
        if self.schedule != "csv":
            if self.csv is not None:
                yield f"csv: has no effect with schedule = {self.schedule!r}; remove it or set schedule = 'csv'"
            return
        if self.csv is None:
            yield "schedule = 'csv': names no file; set csv = 'path/to/table.csv'"
            return
        where = f"csv = {self.csv!r}"
        try:
            table = self.table()
            found = list(table_problems(table, num_ranks=run.degrees[Axis.PP], num_microbatches=run.num_microbatches))
            yield from (f"{where}: {problem}" for problem in found)
            if not found:
                ones = [1.0] * (1 + max(action.stage for row in table for action in row))
                simulate(table, ones, ones, ones)
        except TableError as error:
            yield f"{where}: {error}; see the file"
        if self.stages_per_rank is not None:
            yield "stages_per_rank: has no effect with schedule = 'csv', whose table says it; remove it"

    def _schedule_problems(self, run: Run) -> Iterator[str]:
        """Stages on a rank, and microbatches, that the schedule cannot do with."""
        ranks, micro = run.degrees[Axis.PP], run.num_microbatches
        if self.schedule == "csv":
            return
        given = self.stages_per_rank
        if given is not None:
            said = f"stages_per_rank = {given}"
            if self.schedule in ("gpipe", "1f1b") and given != 1:
                yield f"{said}: {self.schedule} has one stage on each rank; use schedule = 'interleaved_1f1b' for more"
            if self.schedule == "interleaved_1f1b" and given == 1:
                yield f"{said}: nothing is interleaved; use schedule = '1f1b', or 2 or more"
            if self.schedule in V_SHAPED and given != 2:
                yield f"{said}: {self.schedule} is a V with two stages on each rank; remove it"
        needed = 2 * ranks if self.schedule == "dualpipev" else ranks
        if micro < needed:
            yield (
                f"schedule = {self.schedule!r}: needs at least {needed} microbatches with mesh.pp = {ranks}, but a "
                f"step has {micro}; set strategies.accumulation.num_microbatches = {needed} or more"
            )
        elif self.schedule.startswith("interleaved") and micro % (micro // ranks):
            rounds = micro // ranks
            yield (
                f"schedule = {self.schedule!r}: takes {micro} microbatches in {rounds} rounds, which does not divide "
                f"them; set strategies.accumulation.num_microbatches = {micro - micro % ranks} or "
                f"{micro - micro % ranks + ranks}"
            )

    def _cut_problems(self, run: Run) -> Iterator[str]:
        num_blocks = len(run.facts.blocks)
        num_stages = run.degrees[Axis.PP] * self._stages_per_rank()
        if num_stages > num_blocks:
            yield (
                f"{'stages_per_rank' if self.stages_per_rank else 'schedule'} = "
                f"{self.stages_per_rank or repr(self.schedule)}: {num_stages} stages, but the model has {num_blocks} "
                f"blocks; use a lower mesh.pp, fewer stages on each rank, or more blocks"
            )
            return
        if self.cuts is None:
            return
        said = f"cuts = {list(self.cuts)}"
        if len(self.cuts) != num_stages - 1:
            yield f"{said}: {num_stages} stages have {num_stages - 1} cuts between them; give that many"
        elif list(self.cuts) != sorted(set(self.cuts)):
            yield f"{said}: must increase, for each stage needs a block; sort them"
        elif self.cuts and not (self.cuts[0] >= 1 and self.cuts[-1] < num_blocks):
            yield f"{said}: first blocks of later stages lie between 1 and {num_blocks - 1}; change those that do not"

    def apply(self, program: Program, run: Run) -> Program:
        """Keep this rank's stages of the model, and of what is said about it; later strategies see nothing else."""
        from .pipeline.meter import BusyMeter

        assert run.device is not None, "pp needs the device"
        return self.make(program.facts, run, BusyMeter(run.device)).install(program)

    def make(self, facts: "Facts", run: Run, meter: "BusyMeter") -> "Pipeline":
        """The pipeline of this rank, not in a program yet; `meter` says which steps are measured."""
        from .pipeline.runner import Pipeline, Shape

        assert run.mesh is not None, "pp needs the device mesh"
        assert facts.cuts is not None, "check has made sure that the model can be cut"
        num_ranks, stages_per_rank = run.degrees[Axis.PP], self._stages_per_rank()
        starts = balanced_cuts(facts.cuts, num_ranks * stages_per_rank) if self.cuts is None else self.cuts
        group = run.mesh[Axis.PP].get_group()
        return Pipeline(
            shape=Shape(
                schedule=self.schedule,
                path=Path(self.csv) if self.csv else None,
                num_ranks=num_ranks,
                stages_per_rank=stages_per_rank,
                num_microbatches=run.num_microbatches,
                blocks=blocks_of_stages(starts, len(facts.blocks)),
                costs=stage_costs(facts.cuts, starts),
                width=facts.cuts.width,
            ),
            held=self._held(group.rank(), num_ranks, stages_per_rank),
            group=group,
            device=meter.device,
            meter=meter,
        )

    def _held(self, rank: int, num_ranks: int, stages_per_rank: int) -> tuple[int, ...]:
        """The stages of a rank along pp, in order."""
        if self.schedule == "csv":
            return tuple(sorted({action.stage for action in self.table()[rank]}))
        owners = rank_of_stages(self.schedule, num_ranks, stages_per_rank)
        return tuple(stage for stage, owner in enumerate(owners) if owner == rank)
