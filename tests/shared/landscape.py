"""A made-up machine for comparisons: how long a step takes is a formula of the recipe, with a little noise."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.compare.arms import Arm
from stepladder.launch.compare.estimate import summarise
from stepladder.launch.compare.segment import Measured, Steps
from stepladder.launch.instruments import StepTimes
from stepladder.launch.schema import Recipe

TINY = """
name = "tiny"
run.device = "cpu"
[model.decoder]
dim = 32
num_layers = 2
num_heads = 4
ffn_dim = 64
vocab_size = 64
[data.synthetic]
[batch]
microbatch_size = 4
sequence_length = 32
[strategies.adamw]
[strategies.clip]
"""
"""A recipe that is never run."""


def quicker_collecting(recipe: Recipe) -> float:
    """Seconds of a step that is a fifth shorter where garbage is collected in each: something that tells two arms."""
    return 0.1 * (0.8 if recipe.run.gc_every == 1 else 1.0)


def on_made_up_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for a test, and no time for the prospects, which other tests look at."""
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("stepladder.launch.compare.experiment.minimum_detectable_effect", lambda *_, **__: 0.01)


class Killed(BaseException):
    """What a SIGKILL does to the loop: nothing after it happens."""


@dataclass
class Landscape:
    """Measures by formulas of the recipe: seconds of a step, and what fails (None: nothing does)."""

    step_s: Callable[[Recipe], float]
    failure: Callable[[Recipe], str | None] = lambda recipe: None
    memory_gib: Callable[[Recipe], float] = lambda recipe: 1.0
    seconds: float = 10.0
    noise: float = 0.002
    kill_at: int | None = None
    order: list[str] = field(default_factory=list[str])
    """Folders of the segments that were run, below the comparison."""

    def __call__(self, arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None) -> Measured:
        if self.kill_at is not None and len(self.order) == self.kill_at:
            folder.mkdir(parents=True)
            raise Killed
        place = "out/" + folder.as_posix().rpartition("/out/")[2]
        self.order.append(place)
        if kind := self.failure(arm.recipe):
            return Measured(arm=arm.name, seconds=self.seconds, failure=kind, reason=f"{kind} it was")
        drawn = random.Random(hashlib.sha256(place.encode()).digest())
        level = self.step_s(arm.recipe) * (1 + drawn.gauss(0, self.noise))
        step_s = [level * (1 + drawn.gauss(0, self.noise)) for _ in range(steps.num_steps)]
        times = StepTimes(
            step_s=tuple(step_s),
            losses=(1.0,) * steps.num_steps,
            began_at=2.0,
            memory_gib=self.memory_gib(arm.recipe),
            waited_s=0.0,
            num_ranks=1,
            device="cpu",
            tokens_per_step=arm.plan.tokens_per_step,
            flops_per_token=1.0,
            peak_flops=None,
        )
        segment = summarise(step_s, num_steps=steps.window, max_warmup_steps=steps.max_warmup)
        return Measured(arm=arm.name, seconds=self.seconds, segment=segment, times=times, startup_s=2.0)


@dataclass(frozen=True)
class Parity:
    """A finding of the guard."""

    passed: bool
    checked: bool = True
    tier: str = "float32 proxy"
    sentence: str = "as it was made up"

    def json(self) -> dict[str, Any]:
        return vars(self)


@dataclass
class Judge:
    """A guard that lets pass what a formula of the two recipes says."""

    passes: Callable[[Recipe, Recipe], bool] = lambda baseline, arm: True
    asked: list[tuple[Recipe, Recipe]] = field(default_factory=list[tuple[Recipe, Recipe]])

    def __call__(self, baseline: Arm, arm: Arm, folder: Path) -> Parity:
        self.asked.append((baseline.recipe, arm.recipe))
        return Parity(passed=self.passes(baseline.recipe, arm.recipe))
