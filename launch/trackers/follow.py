"""The trackers of a run, entered around its training."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from ...trainer.metrics import MetricsFile
from .. import run_folder
from ..console import Console
from ..errors import ExitCode
from ..recipe import resolved
from ..schema import Recipe
from .feed import Tracker, beginning_of
from .redact import redacted

Follow = Callable[[Mapping[str, Any]], None]
_OF_ENVIRONMENT = ("recipe_sha256", "command", "platform", "processor", "cpu_cores", "python", "versions", "git")


def metrics_file(stack: ExitStack, recipe: Recipe, folder: Path, console: Console, first_step: int) -> MetricsFile:
    """`metrics.jsonl` of a run that begins after `first_step`, with the recipe's trackers behind it."""
    followed_by = _followers(stack, recipe, folder, console, first_step)
    metrics = MetricsFile(path=folder / "metrics.jsonl", followers=followed_by)
    if first_step and console.active:
        metrics.rewind(first_step)
    return metrics


def _followers(stack: ExitStack, recipe: Recipe, folder: Path, console: Console, first_step: int) -> tuple[Follow, ...]:
    """Start the recipe's trackers; returns who must be told of each record, on rank 0. They end with the stack."""
    if recipe.trackers is None or not console.active:
        return ()
    tables: dict[str, Any] = resolved(recipe)["trackers"]
    config = redacted({"recipe": resolved(recipe), "environment": _environment(folder)})
    trackers = [
        Tracker(beginning_of(name, table, folder=folder, first_step=first_step, config=config))
        for name, table in tables.items()
    ]

    def follow(record: Mapping[str, Any]) -> None:
        for tracker in trackers:
            tracker.tell(record)
            console.say(*tracker.news())

    def close(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ended = run_folder.read_exit(folder)
        code = int(ended["code"]) if ended else int(ExitCode.FAILED)
        for tracker in trackers:
            console.say(*tracker.close(code, hurry=kind is not None))

    stack.push(close)
    return (follow,)


def _environment(folder: Path) -> dict[str, Any]:
    """What of `environment.json` is of use beside a curve."""
    try:
        known = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: known[key] for key in _OF_ENVIRONMENT if key in known}
