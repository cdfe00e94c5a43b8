"""The runs that a check of sameness asks for: each a process group of its own, kept so that none is made twice."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from ..errors import ExitCode
from ..recipe import recipe_hash
from ..schema import Recipe
from ..testimony import Testimony
from .process import run_recipe

Role: TypeAlias = Literal["baseline", "arm"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run that is asked for."""

    recipe: Recipe
    num_steps: int
    """After which it ends, whatever the recipe says."""
    role: Role
    backwards: bool = False
    """With the samples of each step in the opposite order."""


class RunError(Exception):
    """A run that was asked for came to no end; the message says why."""


class Train(Protocol):
    """Trains a recipe in fresh processes."""

    def __call__(self, task: Task) -> Testimony:
        """The exact numbers of the run. Raises: RunError."""
        ...


@dataclass(frozen=True, kw_only=True)
class FreshRuns:
    """Runs on this machine through the command itself, kept in a folder: one that is there is not made again."""

    folder: Path
    num_ranks: int | None = None
    """As `--ranks` has it."""
    timeout_s: float | None = None
    """Of each run; None lets it take its time."""

    def __call__(self, task: Task) -> Testimony:
        """See `Train`."""
        place = self.folder / self.name(task)
        kept = place / "testimony.json"
        if kept.is_file():
            return Testimony.read(kept)
        options = ["--witness", str(kept.absolute()), "--stop-after", str(task.num_steps)]
        options += ["--backwards"] if task.backwards else []
        ended = run_recipe(task.recipe, place, options, num_ranks=self.num_ranks, timeout_s=self.timeout_s)
        if ended.code is None:
            raise RunError(f"a run of the {task.role} took longer than {self.timeout_s:.0f} s; see {place}")
        if ended.code != ExitCode.DONE or not kept.is_file():
            raise RunError(f"a run of the {task.role} failed ({ended.reason or _last_line(ended.output)}); see {place}")
        return Testimony.read(kept)

    def name(self, task: Task) -> str:
        """The folder of a run: equal tasks have equal names."""
        told = json.dumps([recipe_hash(task.recipe), task.num_steps, task.backwards, self.num_ranks])
        return f"{task.role}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"
