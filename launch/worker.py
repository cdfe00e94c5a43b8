"""What each rank does: join the others, train, and leave with an exit code that the launcher understands."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..profiling import capture
from ..strategies.check import owned_axes
from ..strategies.errors import StrategyError
from ..trainer.checkpoint.errors import CheckpointError
from ..trainer.own_file import FAILURES
from . import run_folder
from .errors import ExitCode, UsageError
from .failures import ending, explained
from .instruments import Instruments
from .placement.apply import confirm, take_seat
from .plan import Plan
from .ranks import Ranks, StopRequest, barrier, pick_device, process_group
from .session import Session


def work(
    plan: Plan,
    ranks: Ranks,
    *,
    out: Path | None,
    resume: bool,
    command: Sequence[str],
    stop: StopRequest,
    instruments: Instruments | None = None,
    placement: str = "auto",
    affinity: bool = True,
) -> int:
    """Run this rank to its end and return its exit code. Raises: UsageError, DataError, CheckpointError."""
    seated = take_seat(plan, ranks, mode=placement, affinity=affinity)
    ranks = seated.ranks
    for key, (value, _) in plan.environment().items():  # before anything reads it
        os.environ.setdefault(key, value)
    device = pick_device(plan, ranks)
    flies = plan.recipe.profiler is not None and plan.recipe.profiler.flight_recorder
    with ExitStack() as stack:
        if flies:
            capture.keep_collectives(_known_folder(out) / "flight_recorder")
        if ranks.num_ranks > 1 or owned_axes(plan.recipe.strategies):
            stack.enter_context(process_group(device, ranks, seated.store))
        folder = _agree_on_folder(plan, ranks, out=out, resume=resume, command=command)
        said = confirm(seated, device, folder)
        if ranks.rank == 0 and said:
            print(*said, sep="\n", flush=True)
        if flies:
            path, nccl = folder / "flight_recorder", device.type == "cuda"
            stack.enter_context(capture.collectives_of_a_failure(path, rank=ranks.rank, nccl=nccl))
        session = Session(
            plan=plan,
            ranks=ranks,
            device=device,
            folder=folder,
            stop=stop,
            command=command,
            instruments=instruments or Instruments(),
        )
        try:
            code = session.run(resume=resume)
        except (CheckpointError, StrategyError) as error:  # on every rank alike
            code = _refused(error, ranks, folder, out=out, resume=resume)
        except FAILURES as error:
            known = explained(error)
            if ranks.rank == 0:
                code, reason = ending(error)
                run_folder.write_exit(folder, code=code, steps=None, reason=reason)
            if known is None:
                raise
            print(f"error: rank {ranks.rank}: {known}", file=sys.stderr, flush=True)
            os._exit(ExitCode.FAILED)  # the others may be waiting for this rank in a collective: no farewell
        _leave(ranks, code)
    return code


def _known_folder(out: Path | None) -> Path:
    """The run folder before the ranks have met. Raises: UsageError if only their meeting will tell."""
    known = os.environ.get(run_folder.FOLDER_VARIABLE) or out
    if known is None:
        raise UsageError(
            "profiler.flight_recorder = true: under torchrun it must know the run folder before the ranks meet; "
            "give it with --out"
        )
    return Path(known).resolve()


def _refused(error: Exception, ranks: Ranks, folder: Path, *, out: Path | None, resume: bool) -> int:
    """Say why the run cannot be, and take back a folder in which nothing has happened."""
    code, reason = ending(error)
    if ranks.rank == 0:
        run_folder.write_exit(folder, code=code, steps=None, reason=reason)
        print(f"error: {error}", file=sys.stderr)
        # The launcher of several ranks has still to read exit.json; it takes the folder back itself.
        launched = ranks.num_ranks > 1 and run_folder.FOLDER_VARIABLE in os.environ
        if code == ExitCode.USAGE and not resume and not launched:
            run_folder.discard(folder, ours=out is None)
    return code


def _leave(ranks: Ranks, code: int) -> None:
    """End a rank of several at once, when all have come this far.

    gloo's threads sometimes abort while the interpreter tears them down (about 1 run in 13 on two ranks); leaving
    without the teardown avoids it, and everything worth keeping is on disk.
    """
    if ranks.num_ranks == 1:
        return
    barrier(ranks)
    sys.stdout.flush()
    sys.stderr.flush()
    # Our launcher reads exit.json; torchrun would print a traceback for any other code than 0.
    os._exit(ExitCode.DONE if run_folder.FOLDER_VARIABLE in os.environ else code)


def _agree_on_folder(plan: Plan, ranks: Ranks, *, out: Path | None, resume: bool, command: Sequence[str]) -> Path:
    """The run folder: made by the launcher, or by rank 0, and known to all ranks."""
    if made := os.environ.get(run_folder.FOLDER_VARIABLE):
        return Path(made)
    answer: list[Any] = [None, None]
    if ranks.rank == 0:
        try:
            answer = [str(run_folder.begin(plan, out=out, command=command, resume=resume)), None]
        except (UsageError, CheckpointError) as error:
            answer = [None, error]
    if ranks.num_ranks > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(answer)
    if answer[0] is None:
        raise answer[1]
    return Path(answer[0])
