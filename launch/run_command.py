"""`stepladder run`: start the ranks of a recipe, be one of them, or hand the run to a scheduler."""

import argparse
import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .engines import job
from .errors import ExitCode, RecipeError, UsageError, complain

if TYPE_CHECKING:
    from .plan import Plan


def add_arguments(run: argparse.ArgumentParser) -> None:
    """The command's options."""
    recipe_arguments(run)
    run.add_argument("--out", type=Path, metavar="FOLDER", help="run folder (default: runs/<name>-<date>-<time>-<id>)")
    run.add_argument("--resume", action="store_true", help="continue the run in --out after its last checkpoint")
    run.add_argument(
        "--requeue", action="store_true", help="as --resume if --out has a checkpoint, else begin: for schedulers"
    )
    run.add_argument("--stop-after", type=int, metavar="N", help="end after N steps; schedules count on run.num_steps")
    run.add_argument("--step-times", type=Path, metavar="FILE", help="leave time and loss of every step, as JSON")
    run.add_argument(
        "--placement", default="auto", metavar="HOW", help="which rank goes where: auto, none, rank-order, or a plan"
    )
    run.add_argument("--no-affinity", action="store_true", help="leave ranks on all CPUs, whatever their seats")
    run.add_argument("--witness", type=Path, help=argparse.SUPPRESS)  # exact numbers, for the guard of `compare`
    run.add_argument("--backwards", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--same-batch", action="store_true", help=argparse.SUPPRESS)  # the step alone, for `data bench`
    job.add_arguments(run)


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe, with which changes, on how many ranks."""
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE", help="change a key"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="ranks on this machine (default: GPUs, or run.cpu_ranks)"
    )


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Carry it out. Raises: UsageError."""
    from ..trainer.checkpoint.errors import CheckpointError
    from ..trainer.data.check import check_data
    from ..trainer.data.errors import DataError
    from ..trainer.data.tokens import silent
    from .instruments import Instruments
    from .ranks import Ranks, StopRequest

    if job.check_options(options):
        return _hand_over(options)
    instruments = Instruments(
        stop_after=options.stop_after,
        step_times=options.step_times,
        witness=options.witness,
        backwards=options.backwards,
        same_batch=options.same_batch,
    )
    instruments.check()
    for said in ("resume", "requeue"):
        if getattr(options, said) and options.out is None:
            raise UsageError(f"--{said}: continue which run? give its folder with --out")
    ranks = Ranks.from_environment()
    resume = options.resume or (options.requeue and _has_begun(options.out, first=ranks is None or ranks.rank == 0))
    stop = StopRequest(alone=ranks is not None and ranks.num_ranks == 1)
    if ranks is not None:
        stop.listen()  # before torch is loaded: a Ctrl-C in those two seconds must not become a traceback
        gc.disable()  # importing torch makes a million objects that stay; the session collects by steps
    try:
        num_ranks = ranks.num_ranks if ranks else options.ranks
        plan = planned(options, num_ranks=num_ranks, started=ranks is not None)
        say = print if ranks is None or ranks.rank == 0 else silent
        check_data(plan.recipe.data, plan.recipe.batch.sequence_length, plan.held_out_sequences, say)
        if ranks is None:
            from .placement.apply import read_plan
            from .start import start

            read_plan(options.placement)  # a bad file is found before anything starts
            return start(plan, given, out=options.out, resume=resume)
        from .worker import work

        command = ["stepladder", *given]
        return work(
            plan,
            ranks,
            out=options.out,
            resume=resume,
            command=command,
            stop=stop,
            instruments=instruments,
            placement=options.placement,
            affinity=not options.no_affinity,
        )
    except (CheckpointError, DataError, UsageError) as error:
        if ranks is None or ranks.local_rank == 0:  # every rank of a host finds the same; one says so
            complain(getattr(error, "problems", (str(error),)))
        return ExitCode.CHECKPOINT if isinstance(error, CheckpointError) else ExitCode.USAGE


def _hand_over(options: argparse.Namespace) -> int:
    """Give the run to a scheduler of other machines."""
    from .engines import kubernetes, slurm
    from .outputs import show_text

    wanted = job.job_of(options)
    if options.kubernetes:
        made = kubernetes.manifest(wanted, image=options.image, runtime=options.runtime)
        show_text(kubernetes.to_yaml(made).rstrip("\n"))
        return ExitCode.DONE
    text = slurm.script(wanted, options.sbatch)
    show_text(text.rstrip() if options.dry_run else "\n".join(slurm.submit(wanted, text)))
    return ExitCode.DONE


def _has_begun(out: Path, *, first: bool) -> bool:
    """Whether there is a checkpoint to go on from; the `first` rank clears away a run that has none."""
    from ..trainer.checkpoint.errors import CheckpointError
    from ..trainer.checkpoint.manager import last_checkpoint
    from .run_folder import start_anew

    try:
        last_checkpoint(out / "checkpoints")
    except CheckpointError:
        if first:
            start_anew(out)
        return False
    return True


def planned(options: argparse.Namespace, *, num_ranks: int | None, started: bool) -> "Plan":
    """The plan of the recipe that the command names. Raises: UsageError with every problem there is."""
    from . import recipe as recipes
    from .drafts import with_further_problems
    from .plan import plan_here

    plan = partial(plan_here, num_ranks=num_ranks, started=started)
    if options.ranks is not None and options.ranks < 1:
        raise UsageError(f"--ranks {options.ranks}: a run needs at least 1 rank")
    try:
        recipe = recipes.read(options.recipe, options.overrides)
    except RecipeError as error:
        raise with_further_problems(error, plan) from error
    return plan(recipe)
