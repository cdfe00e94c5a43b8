"""How long the ranks of a pipeline wait: in closed form for equal stages, by simulation for any.

Both count what is idle between the start of the first rank and the end of the last, because the optimizer step waits
for all of them; and neither counts communication.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .actions import Action, Table, TableError
from .layout import SPLITS_BACKWARD, V_SHAPED


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When everything happened, in the units of the stage times."""

    length: float
    """From the first start to the last end."""
    busy: tuple[float, ...]
    """Work of each rank."""

    @property
    def bubble(self) -> float:
        """Share of the ranks' time in which they wait."""
        return 1 - sum(self.busy) / (len(self.busy) * self.length) if self.length else 0.0


def simulate(
    table: Table, forward: Sequence[float], backward_input: Sequence[float], backward_weight: Sequence[float]
) -> Timeline:
    """Run a table with these times for each stage; a whole backward takes the sum of its halves.

    Raises: TableError if the ranks would wait for each other for ever.
    """
    num_stages = len(forward)
    ends: dict[Action, float] = {}
    clocks, busy, at = [0.0] * len(table), [0.0] * len(table), [0] * len(table)
    held: list[list[Action]] = [[] for _ in table]
    progress = True
    while progress:
        progress = False
        for rank, row in enumerate(table):
            while at[rank] < len(row):
                action = row[at[rank]]
                ready = _ready(action, ends, num_stages)
                if ready is None:
                    break
                stage = action.stage
                takes = {
                    "F": forward[stage],
                    "I": backward_input[stage],
                    "W": backward_weight[stage],
                    "B": backward_input[stage] + backward_weight[stage],
                }[action.kind]
                clocks[rank] = max(clocks[rank], ready) + takes
                busy[rank] += takes
                for done in (*held[rank], action) if not action.with_next else ():
                    ends[done] = clocks[rank]  # what an action makes leaves when its pair is done
                held[rank] = [*held[rank], action] if action.with_next else []
                at[rank] += 1
                progress = True
    for rank, row in enumerate(table):
        if at[rank] < len(row):
            raise TableError(f"rank {rank} would wait for ever before {row[at[rank]]}; nobody sends what it needs")
    return Timeline(length=max(clocks, default=0.0), busy=tuple(busy))


def _ready(action: Action, ends: dict[Action, float], num_stages: int) -> float | None:
    """When everything that an action needs is there; None if it is not known yet."""
    stage, kind, microbatch = action.stage, action.kind, action.microbatch
    if kind == "F":
        return 0.0 if stage == 0 else ends.get(Action(stage - 1, "F", microbatch))
    if kind == "W":
        return ends.get(Action(stage, "I", microbatch))
    own = ends.get(Action(stage, "F", microbatch))
    if stage == num_stages - 1 or own is None:
        return own
    return ends.get(Action(stage + 1, "B", microbatch), ends.get(Action(stage + 1, "I", microbatch)))


def formula(schedule: str, num_ranks: int, stages_per_rank: int, num_microbatches: int) -> float | None:
    """Share of time in which the ranks wait, for equal stages and a backward twice as long as the forward.

    p ranks, v stages on each, m microbatches: (p-1) / (vm + p-1). Where the halves of backward are run apart, the
    weights' half fills two thirds of what is left: (p-1) / (3vm + p-1); dualpipev has twice these waits, because torch
    sends the results of an overlapping pair when both are done. None where no closed form is known: a CSV, or a V with
    fewer microbatches than it needs to fill up.
    Source: Narayanan et al. 2021, arXiv:2104.04473 (2.2); Qi et al. 2023, arXiv:2401.10241; Qi et al. 2024,
    arXiv:2405.15362; for torch's tables confirmed by `simulate`.
    """
    if schedule == "csv" or (schedule in V_SHAPED and num_microbatches < 2 * num_ranks - 1):
        return None
    thirds = 3 if schedule in SPLITS_BACKWARD else 1
    waits = (num_ranks - 1) * (2 if schedule == "dualpipev" else 1)
    return waits / (thirds * stages_per_rank * num_microbatches + waits)
