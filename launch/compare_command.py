"""`stepladder compare`: which of several recipes is faster, whether that can be believed, and why."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .comparing import Done, carry_out
from .errors import UsageError

if TYPE_CHECKING:
    from .compare.comparison import Asked
    from .compare.experiment import Told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes. Options without a default replace what an experiment file says."""
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a recipe (the baseline), or an experiment as a TOML file"
    )
    parser.add_argument(
        "--arm",
        dest="arms",
        action="append",
        default=[],
        metavar="NAME=A.B=VALUE,...",
        help="changed keys, or a recipe",
    )
    parser.add_argument("--ladder", metavar="FILE", help="stack one change after another, and keep what helps")
    parser.add_argument(
        "--rung", dest="rungs", action="append", default=[], metavar="NAME=A.B=VALUE,...", help="one rung of a ladder"
    )
    parser.add_argument("--ablate", action="store_true", help="take each piece out of a finished stack")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="A.B=1,2", help="every combination of the values of some keys"
    )
    parser.add_argument("--report", metavar="FOLDER", type=Path, help="make the page of finished results anew, no more")
    add_protocol(parser)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """Options of everything that measures in pairs."""
    parser.add_argument("--set", action="append", metavar="A.B=VALUE", help="change a key in all arms")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks on this machine")
    parser.add_argument("--pairs", type=int, metavar="N", help="pairs of segments at most (16)")
    parser.add_argument("--budget", metavar="TIME", help="time for all segments, as 90s, 10m or 1h")
    parser.add_argument("--margin", metavar="SHARE", help="differences smaller than this do not matter (1%%)")
    parser.add_argument("--alpha", type=float, metavar="P", help="false verdicts allowed (0.05)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the order of segments (0)")
    parser.add_argument("--window-steps", type=int, metavar="N", help="steps measured in a segment, at least (20)")
    parser.add_argument("--window-seconds", type=float, metavar="S", help="time measured in a segment, at least (2)")
    parser.add_argument("--calibrate", action="store_true", help="measure the noise floor again, though one is kept")
    parser.add_argument("--calibration-pairs", type=int, metavar="N", help="pairs of equal arms for it (8)")
    parser.add_argument(
        "--changes-workload", action="append", metavar="KEY", help="a key that may change what is trained"
    )
    parser.add_argument("--price-per-device-hour", type=float, metavar="P", help="for the cost of 1e9 tokens")
    parser.add_argument("--no-profile", dest="profile", action="store_false", default=None, help="do not look for why")
    parser.add_argument(
        "--no-guard",
        dest="guard",
        action="store_false",
        default=None,
        help="do not check sameness, claim no multiplier",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: comparisons/<name>-<date>-<time>-<id>")
    parser.add_argument(
        "--resume", action="store_true", help="continue the comparison in --out; finished segments stay"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results; - for standard output")


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Compare, and print the table. Raises: UsageError."""
    if options.report is not None:
        from .compare.page import make_anew

        return make_anew(options)
    modes = {"--ladder": options.ladder or options.rungs, "--ablate": options.ablate, "--grid": options.grid}
    asked_for = [mode for mode, on in modes.items() if on]
    if options.ablate and options.ladder:
        asked_for.remove("--ladder")  # the ladder says what the pieces are
    if len(asked_for) > 1:
        raise UsageError(f"{' and '.join(asked_for)}: each is a comparison of its own; give one of them")
    if asked_for and options.arms:
        raise UsageError(f"--arm beside {asked_for[0]}: it makes its own arms; remove --arm")
    work = {"--ladder": _ladder, "--ablate": _ablation, "--grid": _grid}[asked_for[0]] if asked_for else _comparison
    return carry_out(lambda told: work(options, given, told), options, given)


def _comparison(options: argparse.Namespace, given: Sequence[str], told: "Told") -> Done:
    """Arms against the recipe."""
    from .compare.comparison import compare
    from .compare.settings import Settings, is_experiment, read_experiment
    from .compare.text import table

    settings, arms = Settings(recipe=_recipe(options)), ()
    if is_experiment(Path(_recipe(options))):
        settings, arms = read_experiment(Path(options.recipe))
    results = compare(asked_for(options, given, settings, arms), told=told)
    return Done(results=results.to_json(), lines=table(results), folder=results.folder)


def _ladder(options: argparse.Namespace, given: Sequence[str], told: "Told") -> Done:
    """One change after another."""
    from .compare.bench import Tools
    from .compare.ladder import climb_ladder
    from .compare.ladder_text import ladder_table

    settings, rungs = _read_ladder(options)
    found = climb_ladder(asked_for(options, given, settings), rungs, tools=Tools(told=told))
    return Done(results=found.results, lines=ladder_table(found), folder=found.folder)


def _ablation(options: argparse.Namespace, given: Sequence[str], told: "Told") -> Done:
    """A finished stack without each of its pieces."""
    from .compare.ablate import ablate
    from .compare.bench import Tools
    from .compare.ladder_text import ablation_table

    settings, rungs = _read_ladder(options)
    found = ablate(asked_for(options, given, settings), rungs, tools=Tools(told=told))
    return Done(results=found.results, lines=ablation_table(found), folder=found.folder)


def _grid(options: argparse.Namespace, given: Sequence[str], told: "Told") -> Done:
    """Every combination of some values."""
    from .compare.bench import Tools
    from .compare.grid import measure_grid, parse_grid
    from .compare.ladder_text import grid_table
    from .compare.settings import Settings

    asked = asked_for(options, given, Settings(recipe=_recipe(options)))
    found = measure_grid(asked, parse_grid(options.grid), tools=Tools(told=told))
    return Done(results=found.results, lines=grid_table(found), folder=found.folder)


def _read_ladder(options: argparse.Namespace) -> Any:
    """Settings and rungs: of the file, with the rungs of the command after them."""
    from .compare.ladder_file import find_ladder, is_ladder, parse_rung, read_ladder
    from .compare.settings import Settings

    further = tuple(parse_rung(text) for text in options.rungs)
    if options.ladder:
        settings, rungs = read_ladder(find_ladder(options.ladder), recipe=options.recipe)
        return settings, (*rungs, *further)
    if is_ladder(Path(_recipe(options))):
        settings, rungs = read_ladder(Path(options.recipe))
        return settings, (*rungs, *further)
    return Settings(recipe=_recipe(options)), further


def _recipe(options: argparse.Namespace) -> str:
    """The recipe that was given. Raises: UsageError."""
    if options.recipe is None:
        raise UsageError("RECIPE: which recipe is the baseline? name one, or give --ladder a file that does")
    return str(options.recipe)


def asked_for(options: argparse.Namespace, given: Sequence[str], settings: Any, arms: Any = ()) -> "Asked":
    """What the command describes: the settings of a file, with what the options say."""
    from .compare.arms import parse_arm

    lists = ("set", "changes_workload")
    keys = [key for key in vars(settings) if key != "recipe"]
    said = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    said |= {key: (*getattr(settings, key), *said[key]) for key in lists if key in said}
    refused: list[str] = []
    for text in getattr(options, "arms", ()):
        try:
            arms = (*arms, parse_arm(text))
        except UsageError as error:
            refused += error.problems
    asked = replace(settings, **said).asked(arms, refused)
    calibrate = options.calibrate
    command = ("stepladder", *given)
    return replace(asked, out=options.out, resume=options.resume, calibrate_anew=calibrate, command=command)
