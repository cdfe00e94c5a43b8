"""A whole comparison, from recipe and arms to results: what the command runs, and what a program can call.

results = compare(Asked(recipe="demo", arms=(ArmSpec(name="bf16", changes=("strategies.amp={}",)),)))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ExitCode, UsageError
from ..plan import plan_here
from .arms import BASELINE, Arm, ArmSpec, MakePlan, read_arms
from .declared import Declared, identity, machine
from .experiment import Experiment, Measure, Told
from .page import leave_page
from .results import Results, Sameness, collect
from .segment import Steps, run_segment
from .store import Store, all_places, default_name, read_json, write_json
from .why import Why, explain, profile_arm, traces_of

_LONGEST_CHECK_S = 7200.0
"""Of one run for the guard, 100 steps at most: it hangs if it takes longer."""

Guard = Callable[[Arm, Arm, Path], Sameness]
"""Checks whether an arm (the second) is the same training as the baseline; may run things in the folder."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compare, and how."""

    recipe: str
    """The baseline: a TOML file, or the name of a shipped recipe."""
    arms: tuple[ArmSpec, ...]
    overrides: tuple[str, ...] = ()
    """`a.b=value` each: changes of all arms, the baseline included."""
    declared: Declared = field(default_factory=Declared)
    changes_workload: tuple[str, ...] = ()
    """Keys that an arm may change although they change what is trained."""
    budget_s: float | None = None
    """Time for all segments together."""
    price_per_device_hour: float | None = None
    calibrate_anew: bool = False
    guarded: bool = True
    """Whether the parity guard runs; without it no multiplier is claimed."""
    out: Path | None = None
    resume: bool = False
    command: tuple[str, ...] = ()
    """The command line, for the record."""
    refused: tuple[str, ...] = ()
    """What was wrong with the options already; it is told together with what is wrong with the arms."""


def compare(
    asked: Asked,
    *,
    told: Told | None = None,
    guard: Guard | None = None,
    measure: Measure | None = None,
    make_plan: MakePlan | None = None,
) -> Results:
    """Run a comparison, or the rest of one.

    guard: another one than `fresh_guard`. measure, make_plan: how segments are measured and recipes planned.
    Raises: UsageError for what cannot be compared, ExperimentError, KeyboardInterrupt.
    """
    told, here = told or Told(), machine()
    arms = arms_of(asked, make_plan)
    store = open_store(asked, arms, here)
    try:
        told.opened(store.path)
        return _compare(asked, arms, store, told, here, guard, measure)
    except OSError as error:
        why = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise UsageError(
            f"{store.path}: the comparison cannot go on ({why}); what was measured is kept: put that right, then go on "
            f"with --out {store.path} --resume"
        ) from error
    finally:
        store.close()


def _compare(
    asked: Asked,
    arms: Sequence[Arm],
    store: Store,
    told: Told,
    here: Mapping[str, Any],
    guard: Guard | None,
    measure: Measure | None,
) -> Results:
    ended = store.read_results() if asked.resume else None
    if ended is not None:
        told.say("the comparison had ended; what is missing of its explanation is added, and no pair")
    keep_log_every = len({arm.recipe.run.log_every for arm in arms}) > 1
    real = partial(_segment, keep_log_every=keep_log_every, num_ranks=asked.declared.ranks)
    experiment = Experiment(
        arms=arms,
        declared=asked.declared,
        store=store,
        measure=measure or real,
        budget_s=ended["budget_s"] if ended else asked.budget_s,
        calibrate_anew=asked.calibrate_anew,
        told=told,
    )
    outcome = experiment.run()
    alive = [arm for arm in arms if arm.name not in outcome.failed]
    reasons = explain_arms(alive, experiment, outcome.steps) if asked.declared.profile else {}
    guard = guard or fresh_guard(asked.declared.ranks)
    parity = check_sameness(alive, store, guard, told) if asked.guarded else {}
    results = collect(
        arms,
        outcome,
        store,
        parity=parity,
        reasons=reasons,
        price_per_device_hour=asked.price_per_device_hour,
        machine=here,
    )
    store.write_results(results.to_json() | {"budget_s": experiment.budget_s, "command": list(asked.command)})
    leave_page(store.path, told.say)
    return results


def arms_of(asked: Asked, make_plan: MakePlan | None = None) -> tuple[Arm, ...]:
    """The arms, fit to run. Raises: UsageError with every problem."""
    found = [*asked.refused, *asked.declared.problems()]
    if asked.resume and asked.out is None:
        found.append("--resume: continue which comparison? give its folder with --out")
    if asked.price_per_device_hour is not None and not 0 <= asked.price_per_device_hour < float("inf"):
        found.append(f"--price-per-device-hour {asked.price_per_device_hour}: must be a number, and not negative")
    try:
        arms = read_arms(
            asked.recipe,
            asked.arms,
            make_plan or partial(plan_here, num_ranks=asked.declared.ranks),
            overrides=asked.overrides,
            changes_workload=asked.changes_workload,
        )
    except UsageError as error:
        raise UsageError(*found, *error.problems) from error
    if found:
        raise UsageError(*found)
    return arms


def open_store(asked: Asked, arms: Sequence[Arm], here: Mapping[str, Any]) -> Store:
    """The folder of the comparison, begun or continued. Raises: UsageError."""
    told = identity(arms, asked.declared, here)
    if asked.resume and asked.out is not None:
        places = all_places([arm.name for arm in arms], asked.declared)
        return Store.resume(asked.out, told, places)
    path = asked.out or default_name(arms[0].recipe.name)
    return Store.begin(path, arms, told, command=asked.command)


def _segment(
    arm: Arm, folder: Path, steps: Steps, *, timeout_s: float | None, keep_log_every: bool, num_ranks: int | None
) -> Any:
    return run_segment(arm, folder, steps, keep_log_every=keep_log_every, num_ranks=num_ranks, timeout_s=timeout_s)


def explain_arms(arms: Sequence[Arm], experiment: Experiment, steps: Steps) -> dict[str, Why]:
    """Profile each arm once, and say of each what makes it different from the baseline; what is known is kept."""
    from ...profiling.errors import TraceError

    store, told, num_ranks = experiment.store, experiment.told, experiment.declared.ranks
    found: dict[str, Why] = {}
    for i, arm in enumerate(arms):
        folder, file = store.path / "why" / arm.name, store.path / "why" / f"{arm.name}.json"
        if kept := read_json(file):
            found[arm.name] = Why.from_json(kept)
            continue
        if not any(traces_of(folder).glob("*.json.gz")):
            told.progress(f"profile: {arm.name}", i / len(arms), float("inf"))
            timeout_s = experiment.patience_s(arm.name)
            ended = profile_arm(arm, folder, skip=steps.max_warmup, num_ranks=num_ranks, timeout_s=timeout_s)
            if ended.code != ExitCode.DONE:
                told.say(f"note: no profile of {arm.name}: {ended.reason or 'the run failed'}")
                continue
        if arm.name == BASELINE:
            continue
        try:
            found[arm.name] = explain(traces_of(store.path / "why" / BASELINE), traces_of(folder))
        except (TraceError, OSError) as error:
            told.say(f"note: nothing to say of why {arm.name} differs: {error}")
            continue
        write_json(file, asdict(found[arm.name]))
    return found


def fresh_guard(num_ranks: int | None) -> Guard:
    """The parity guard, which trains both recipes again in processes of their own; what it has run is kept."""
    from .guard import check_parity
    from .guard_runs import FreshRuns

    def check(baseline: Arm, arm: Arm, folder: Path) -> Sameness:
        runs = FreshRuns(folder=folder, num_ranks=num_ranks, timeout_s=_LONGEST_CHECK_S)
        return check_parity(baseline.recipe, arm.recipe, run=runs, plan=partial(plan_here, num_ranks=num_ranks))

    return check


def check_sameness(arms: Sequence[Arm], store: Store, guard: Guard, told: Told) -> dict[str, Sameness]:
    """What the guard finds out about each arm."""
    found: dict[str, Sameness] = {}
    for i, arm in enumerate(arms[1:]):
        told.progress(f"sameness: {arm.name}", i / max(1, len(arms) - 1), float("inf"))
        found[arm.name] = guard(arms[0], arm, store.path / "sameness")
    return found
