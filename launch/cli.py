"""The `stepladder` command."""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiling.trace.spelling import printable
from .errors import ExitCode, RecipeError, UsageError

if TYPE_CHECKING:
    from .plan import Plan

_EPILOG = "A recipe is a TOML file or the name of a shipped one (stepladder recipes). Start here: stepladder run demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. A user's mistake is a sentence on stderr and code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return _carried_out(options, given)
    except UsageError as error:
        _complain(error.problems)
        return ExitCode.USAGE
    except KeyboardInterrupt:  # before there are ranks that could stop after a whole step
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # `stepladder strategies | head`
        sys.stderr.close()
        return ExitCode.DONE


def _carried_out(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Raises: UsageError, of a plugin that cannot be loaded too."""
    try:
        return options.command(options, given)
    except Exception as error:
        from ..strategies.errors import PluginError  # only here: it brings every strategy with it

        if isinstance(error, PluginError):
            raise UsageError(str(error)) from error
        raise


def _complain(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)


_Command = Callable[[argparse.Namespace, Sequence[str]], int]


class _Subcommand(argparse.ArgumentParser):
    """The parser of a command, which gets its arguments when it is the one that was chosen: loading all takes long."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse does."""
        if self.fill:
            self.fill(self)
            self.fill = None
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stepladder",
        description="Train with PyTorch; every optimization is a measured rung.",
        epilog=_EPILOG,
    )
    from .. import __version__

    parser.add_argument("--version", action="version", version=f"stepladder {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Subcommand)
    for name, (about, fill) in _COMMANDS.items():
        commands.add_parser(name, help=about).fill = fill
    return parser


def _only(command: _Command) -> Callable[[argparse.ArgumentParser], None]:
    """A command without arguments."""
    return lambda parser: parser.set_defaults(command=command)


def _in_module(name: str) -> Callable[[argparse.ArgumentParser], None]:
    """Arguments and function of a command that has a module of its own."""

    def fill(parser: argparse.ArgumentParser) -> None:
        module = import_module(f".{name}", __package__)
        module.add_arguments(parser)
        parser.set_defaults(command=module.run)

    return fill


def _run_arguments(run: argparse.ArgumentParser) -> None:
    from .engines import job

    _recipe_arguments(run)
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
    run.set_defaults(command=_run)


def _check_arguments(check: argparse.ArgumentParser) -> None:
    _recipe_arguments(check)
    check.set_defaults(command=_check)


def _diff_arguments(diff: argparse.ArgumentParser) -> None:
    diff.add_argument("before", metavar="RECIPE_A")
    diff.add_argument("after", metavar="RECIPE_B")
    diff.set_defaults(command=_diff)


def _strategies_arguments(strategies: argparse.ArgumentParser) -> None:
    strategies.add_argument("name", nargs="?", help="a strategy, for its page and its keys")
    strategies.set_defaults(command=_strategies)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE", help="change a key"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="ranks on this machine (default: GPUs, or run.cpu_ranks)"
    )


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    from ..trainer.checkpoint.errors import CheckpointError
    from ..trainer.data.check import check_data
    from ..trainer.data.errors import DataError
    from ..trainer.data.tokens import silent
    from .engines import job
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
        plan = _plan(options, num_ranks=num_ranks, started=ranks is not None)
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
            _complain(getattr(error, "problems", (str(error),)))
        return ExitCode.CHECKPOINT if isinstance(error, CheckpointError) else ExitCode.USAGE


def _hand_over(options: argparse.Namespace) -> int:
    """Give the run to a scheduler of other machines."""
    from .engines import job, kubernetes, slurm
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


def _check(options: argparse.Namespace, given: Sequence[str]) -> int:
    from .devices import count_gpus
    from .recipe import recipe_hash

    # A recipe for a larger machine is checked as if on that machine: a laptop must be able to say that it is sound.
    plan = _plan(options, num_ranks=options.ranks, started=count_gpus() == 0)
    sha256 = recipe_hash(plan.recipe)
    print(*plan.summary(), f"recipe      {plan.recipe.name}, sha256 {sha256[:16]}: no problems", sep="\n")
    return ExitCode.DONE


def _plan(options: argparse.Namespace, *, num_ranks: int | None, started: bool) -> "Plan":
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


def _diff(options: argparse.Namespace, given: Sequence[str]) -> int:
    from . import recipe as recipes

    lines = recipes.diff(recipes.read(options.before), recipes.read(options.after))
    print(*lines or ["no difference"], sep="\n")
    return ExitCode.DONE


def _strategies(options: argparse.Namespace, given: Sequence[str]) -> int:
    from . import manual

    print(manual.page(options.name) if options.name else manual.overview())
    return ExitCode.DONE


def _compatibility(options: argparse.Namespace, given: Sequence[str]) -> int:
    from ..strategies import compatibility

    print(compatibility.tables())
    return ExitCode.DONE


def _recipes(options: argparse.Namespace, given: Sequence[str]) -> int:
    from . import manual

    print(manual.shipped_recipes())
    return ExitCode.DONE


def _keys(options: argparse.Namespace, given: Sequence[str]) -> int:
    from . import manual

    print(manual.keys())
    return ExitCode.DONE


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("train a recipe; starts its ranks, or is one of them under torchrun", _run_arguments),
    "check": ("say what a recipe means, or everything that is wrong with it", _check_arguments),
    "diff": ("say in what two recipes differ", _diff_arguments),
    "strategies": ("the table of techniques, or the page of one", _strategies_arguments),
    "trace": ("where the time of a step went, from traces of any PyTorch run", _in_module("trace_command")),
    "compare": ("which of several recipes is faster, by how much, and why", _in_module("compare_command")),
    "climb": ("make a recipe faster by itself, and keep a notebook", _in_module("climb_command")),
    "data": ("pack text into token files, look at what a recipe trains on", _in_module("data_command")),
    "topo": ("how this machine's GPUs are connected, what is slow, what is odd", _in_module("topo_command")),
    "place": ("which rank belongs on which device of which machine, and why", _in_module("place_command")),
    "compatibility": ("what works together, and what instead (Markdown)", _only(_compatibility)),
    "recipes": ("list the shipped recipes", _only(_recipes)),
    "keys": ("every key of a recipe with its type, default and meaning (Markdown)", _only(_keys)),
}
"""In the order of the help: what each is for, and what gives its parser arguments and a function."""
