"""`stepladder climb`: make a recipe faster by itself, and keep a notebook of what was tried."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import compare_command
from .comparing import Done, carry_out
from .errors import UsageError

if TYPE_CHECKING:
    from .climb.climber import Climb
    from .compare.experiment import Told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes; what measures in pairs has its options."""
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe to begin with")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY", help="a key, or a table of keys, that may be changed"
    )
    compare_command.add_protocol(parser)


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Climb, and print what was kept. Raises: UsageError."""
    from .climb.climb import climb
    from .compare.bench import Tools
    from .compare.settings import Settings

    if options.pairs is None:
        options.pairs = 8  # a change that eight pairs do not find is left to a comparison of its own
    if options.budget is None:
        raise UsageError("--budget: a climb has no other end; give for example --budget 30m")
    asked = compare_command.asked_for(options, given, Settings(recipe=options.recipe))

    def work(told: "Told") -> Done:
        found = climb(asked, only=options.only, tools=Tools(told=told))
        return Done(results=found.results, lines=lines(found), folder=found.folder)

    return carry_out(work, options, given)


def lines(found: "Climb") -> Iterator[str]:
    """The table of what was tried, and where the recipe is."""
    from .compare.ladder_text import stack_table

    yield from stack_table(found.base, found.steps, found.final)
    yield ""
    yield f"notebook    {found.folder / 'notebook.md'}"
    yield f"recipe      {found.recipe}"
    spent_s: float = found.results["spent_s"]
    yield f"{found.results['ended']}; {spent_s / 60:.1f} minutes with profiles and guard"
