"""`stepladder compare`: which of several recipes is faster, whether that can be believed, and why."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import ExitCode, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes. Options without a default replace what an experiment file says."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe (the baseline), or an experiment as a TOML file")
    parser.add_argument(
        "--arm",
        dest="arms",
        action="append",
        default=[],
        metavar="NAME=A.B=VALUE,...",
        help="changed keys, or a recipe",
    )
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
    from .compare.comparison import compare
    from .compare.experiment import ExperimentError
    from .compare.progress import Progress
    from .compare.text import table

    to_stdout = str(options.json) == "-"
    if options.json is not None and not to_stdout and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no such folder; make it first")
    asked = replace(_asked(options), command=("stepladder", *given))
    progress = Progress(lines=sys.stderr if to_stdout else sys.stdout)
    opened: list[Path] = []
    asked_to_stop: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked_to_stop.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # as Ctrl-C: the running segment ends too
    try:
        results = compare(asked, told=replace(progress.told(), opened=opened.append))
    except ExperimentError as error:
        progress.clear()
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        progress.clear()
        print(f"stopped; to go on: {_again(given, opened)}", file=sys.stderr)
        return ExitCode.TERMINATED if asked_to_stop else ExitCode.INTERRUPTED
    progress.clear()
    told = json.dumps(results.to_json(), indent=1)
    if to_stdout:
        print(told)
    else:
        print("", *table(results), f"results     {results.folder}", sep="\n")
        if options.json is not None:
            options.json.write_text(told + "\n")
    return ExitCode.DONE


def _asked(options: argparse.Namespace) -> Any:
    """The comparison that the command describes: the file's, with what the options say."""
    from .compare.arms import parse_arm
    from .compare.settings import Settings, is_experiment, read_experiment

    settings, arms = Settings(recipe=options.recipe), ()
    if is_experiment(Path(options.recipe)):
        settings, arms = read_experiment(Path(options.recipe))
    lists = ("set", "changes_workload")
    keys = [key for key in vars(settings) if key != "recipe"]
    said = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    said |= {key: (*getattr(settings, key), *said[key]) for key in lists if key in said}
    refused: list[str] = []
    for text in options.arms:
        try:
            arms = (*arms, parse_arm(text))
        except UsageError as error:
            refused += error.problems
    asked = replace(settings, **said).asked(arms, refused)
    return replace(asked, out=options.out, resume=options.resume, calibrate_anew=options.calibrate)


def _again(given: Sequence[str], opened: Sequence[Path]) -> str:
    """The command that continues what was begun."""
    words = ["stepladder", *given]
    if opened and "--resume" not in words:
        words += [*(() if "--out" in words else ("--out", str(opened[0]))), "--resume"]
    return shlex.join(words)
