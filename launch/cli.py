"""The `stepladder` command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from .errors import ExitCode, UsageError, complain

_EPILOG = "A recipe is a TOML file or the name of a shipped one (stepladder recipes). Start here: stepladder run demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. A user's mistake is a sentence on stderr and code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return _carried_out(options, given)
    except UsageError as error:
        complain(error.problems)
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


def _check_arguments(check: argparse.ArgumentParser) -> None:
    from .run_command import recipe_arguments

    recipe_arguments(check)
    check.set_defaults(command=_check)


def _diff_arguments(diff: argparse.ArgumentParser) -> None:
    diff.add_argument("before", metavar="RECIPE_A")
    diff.add_argument("after", metavar="RECIPE_B")
    diff.set_defaults(command=_diff)


def _strategies_arguments(strategies: argparse.ArgumentParser) -> None:
    strategies.add_argument("name", nargs="?", help="a strategy, for its page and its keys")
    strategies.set_defaults(command=_strategies)


def _check(options: argparse.Namespace, given: Sequence[str]) -> int:
    from .devices import count_gpus
    from .recipe import recipe_hash
    from .run_command import planned

    # A recipe for a larger machine is checked as if on that machine: a laptop must be able to say that it is sound.
    plan = planned(options, num_ranks=options.ranks, started=count_gpus() == 0)
    sha256 = recipe_hash(plan.recipe)
    print(*plan.summary(), f"recipe      {plan.recipe.name}, sha256 {sha256[:16]}: no problems", sep="\n")
    return ExitCode.DONE


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
    "run": ("train a recipe; starts its ranks, or is one of them under torchrun", _in_module("run_command")),
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
