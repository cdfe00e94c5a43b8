"""A comparison as a TOML file: the recipe, the protocol, and a table of changes for each arm."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from .. import recipe as recipes
from ..errors import UsageError
from ..reader import Problems, read_table
from .arms import ArmSpec, changes_of_table
from .calibration import CALIBRATION_PAIRS
from .comparison import Asked
from .declared import Declared, make_protocol, seconds_of, share_of
from .sequential import Protocol

_ARMS = "arms"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of the file beside `arms`; each is an option of the command too."""

    recipe: str
    """The baseline: a TOML file beside this one, or the name of a shipped recipe."""
    set: tuple[str, ...] = ()
    """`a.b=value` each: changes of all arms, the baseline included."""
    ranks: int | None = None
    """Ranks on this machine."""
    pairs: int = 16
    """Pairs at most."""
    margin: str = "1%"
    """Differences smaller than this do not matter."""
    alpha: float = 0.05
    """False verdicts allowed."""
    seed: int = 0
    """Of the order of segments."""
    budget: str | None = None
    """Time for all segments, as 10m."""
    window_steps: int = 20
    """Steps measured in a segment, at least."""
    window_seconds: float = 2.0
    """Time measured in a segment, at least."""
    calibration_pairs: int = CALIBRATION_PAIRS
    """Pairs of the recipe against itself that tell the noise floor."""
    changes_workload: tuple[str, ...] = ()
    """Keys that an arm may change although they change what is trained."""
    price_per_device_hour: float | None = None
    """For the cost of a billion tokens."""
    profile: bool = True
    """Whether a profiled window of each arm says why."""
    guard: bool = True
    """Whether it is shown that each arm is the same training; without that no multiplier is claimed."""

    def asked(self, arms: tuple[ArmSpec, ...], refused: Sequence[str] = ()) -> Asked:
        """The same as a comparison, with what is wrong in it; refused: what was wrong before."""
        found = list(refused)

        def read(value: Callable[[], Any], instead: Any) -> Any:
            try:
                return value()
            except UsageError as error:
                found.extend(error.problems)
                return instead

        if self.ranks is not None and self.ranks < 1:
            found.append(f"--ranks {self.ranks}: a run needs at least 1 rank")
        margin = read(lambda: share_of(self.margin, "--margin"), 0.01)
        protocol = read(lambda: make_protocol(max_pairs=self.pairs, margin=margin, alpha=self.alpha), Protocol())
        budget_s = read(lambda: None if self.budget is None else seconds_of(self.budget, "--budget"), None)
        return Asked(
            recipe=self.recipe,
            arms=arms,
            overrides=self.set,
            declared=Declared(
                protocol=protocol,
                seed=self.seed,
                window_steps=self.window_steps,
                window_s=self.window_seconds,
                calibration_pairs=self.calibration_pairs,
                ranks=self.ranks,
                profile=self.profile,
            ),
            changes_workload=self.changes_workload,
            budget_s=budget_s,
            price_per_device_hour=self.price_per_device_hour,
            guarded=self.guard,
            refused=tuple(found),
        )


def is_experiment(path: Path) -> bool:
    """Whether a TOML file describes a comparison rather than a recipe."""
    try:
        return _ARMS in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def read_experiment(path: Path) -> tuple[Settings, tuple[ArmSpec, ...]]:
    """What a file describes. Raises: UsageError with every problem of its own keys."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); correct it there") from error
    arms = tree.pop(_ARMS, {})
    problems = Problems({key: path.name for key in ("", *tree)})
    settings = cast(Settings | None, read_table(Settings, tree, "", problems))
    found = list(problems.sentences)
    specs: list[ArmSpec] = []
    if not isinstance(arms, dict):
        found.append(f"{path.name}: arms = {arms!r}: must be tables, as [arms.NAME]")
        arms = {}
    for name, given in cast(dict[str, Any], arms).items():
        if isinstance(given, str):
            specs.append(ArmSpec(name=name, recipe=beside(path, given)))
        elif isinstance(given, dict):
            specs.append(ArmSpec(name=name, changes=changes_of_table(cast(dict[str, Any], given))))
        else:
            found.append(f"{path.name}: arms.{name} = {given!r}: must be a table of changes, or a recipe in quotes")
    if found or settings is None:
        raise UsageError(*found)
    return replace(settings, recipe=beside(path, settings.recipe)), tuple(specs)


def beside(path: Path, recipe: str) -> str:
    """A recipe that lies beside the file, else one by its name."""
    beside = path.parent / recipe
    return str(beside) if beside.is_file() or recipe not in recipes.shipped() else recipe
