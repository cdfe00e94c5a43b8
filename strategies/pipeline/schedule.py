"""torch's schedules by our names, and the order in which each runs its stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch.distributed.pipelining import schedules as torchs

from .actions import Action, Table, read_table, table_of

_SINGLE = {"gpipe": torchs.ScheduleGPipe, "1f1b": torchs.Schedule1F1B}
_MULTI = {
    "interleaved_1f1b": torchs.ScheduleInterleaved1F1B,
    "interleaved_zero_bubble": torchs.ScheduleInterleavedZeroBubble,
    "zbv": torchs.ScheduleZBVZeroBubble,
    "dualpipev": torchs.ScheduleDualPipeV,
}


def make_schedule(
    name: str, path: Path | None, stages: Sequence[Any], num_microbatches: int, loss: Callable[[Any, Any], Any]
) -> Any:
    """The schedule object that runs this rank's stages.

    `path` is the table of a `csv`. Gradients are not divided by the number of microbatches: the loss is a sum.
    """
    if name in _SINGLE:
        return _SINGLE[name](stages[0], num_microbatches, loss_fn=loss, scale_grads=False)
    if name in _MULTI:
        return _MULTI[name](list(stages), num_microbatches, loss_fn=loss, scale_grads=False)
    assert path is not None, "check has made sure that a csv has a path"
    # Private, as torch has no public way to run a table of one's own.
    runtime: Any = torchs._PipelineScheduleRuntime(  # pyright: ignore[reportPrivateUsage]
        list(stages), num_microbatches, loss_fn=loss, scale_grads=False
    )
    runtime._load_csv(str(path))
    return runtime


def order_table(name: str, path: Path | None, num_ranks: int, stages_per_rank: int, num_microbatches: int) -> Table:
    """What every rank does, in order, without a process group."""
    if path is not None:
        return read_table(path)
    if name == "gpipe":
        both = [("F", i) for i in range(num_microbatches)] + [("B", i) for i in range(num_microbatches)]
        return [[Action(rank, kind, i) for kind, i in both] for rank in range(num_ranks)]
    if name == "1f1b":
        # Written out, because the table that torch keeps for it is not the one that it runs (2.13 names a microbatch
        # too many on the last rank).
        return [_one_forward_one_backward(rank, num_ranks, num_microbatches) for rank in range(num_ranks)]
    stages = [
        _Placeholder(num_stages=num_ranks * stages_per_rank, group_size=num_ranks) for _ in range(stages_per_rank)
    ]
    return table_of(_MULTI[name](cast(Any, stages), num_microbatches, scale_grads=False).pipeline_order)


def _one_forward_one_backward(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    ahead = min(num_microbatches, num_ranks - rank)
    row = [Action(rank, "F", i) for i in range(ahead)]
    for i in range(num_microbatches):
        row.append(Action(rank, "B", i))
        if ahead + i < num_microbatches:
            row.append(Action(rank, "F", ahead + i))
    return row


@dataclass
class _Placeholder:
    """As much of a stage as a schedule looks at to write its table."""

    num_stages: int
    group_size: int
    group_rank: int = 0
    submod: None = None
    is_last: Literal[False] = False
    stage_index_to_group_rank: Any = None
