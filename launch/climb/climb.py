"""A whole climb, from a recipe and a budget to a faster recipe: what the command runs, and what a program can call.

found = climb(Asked(recipe="demo", arms=(), budget_s=1800))
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..compare.bench import Bench, Tools, open_bench, real_measure
from ..compare.comparison import Asked
from ..compare.declared import machine
from ..errors import UsageError
from ..recipe import recipe_hash
from . import profile as profiles
from .climber import Climb, Climber, TakeProfile
from .notebook import Notebook
from .screening import Screens

_SKIP = 10
"""Steps before a profiled window."""


def climb(
    asked: Asked,
    *,
    only: Sequence[str] = (),
    tools: Tools | None = None,
    take_profile: TakeProfile | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Climb:
    """Climb from a recipe within `asked.budget_s`, all included; or go on with a climb that was interrupted.

    only: keys, or tables of keys, that may be changed; all that stay the same training if there are none.
    take_profile, clock: instead of a profiled run, and of the clock that guard and profiles are timed by.
    Raises: UsageError, ExperimentError if the recipe itself cannot run, KeyboardInterrupt.
    """
    tools, declared = tools or Tools(), asked.declared
    problems = [*asked.refused, *declared.problems()]
    if asked.resume and asked.out is None:
        problems.append("--resume: continue which climb? give its folder with --out")
    if asked.budget_s is None:
        problems.append("--budget: a climb has no other end; give for example --budget 30m")
    if asked.changes_workload:
        problems.append("--changes-workload: a climb never changes what is trained; leave it")
    try:
        base = Bench(path=Path(), asked=asked, tools=tools).recipe(asked.recipe, asked.overrides)
    except UsageError as error:
        raise UsageError(*problems, *error.problems) from error
    if problems:
        raise UsageError(*problems)
    told = {"recipe": recipe_hash(base), "only": list(only), "guarded": asked.guarded, "machine": machine()}
    bench = open_bench("climb", asked, told, tools)
    try:
        # Segments log as their recipe says, since that may be what is slow.
        measure = tools.measure or real_measure(declared.ranks, keep_log_every=True)
        screens = Screens(path=bench.path / "screens", declared=declared, measure=measure)
        bench.tools = replace(tools, measure=screens.as_pilots())
        return Climber(
            bench=bench,
            screens=screens,
            notebook=Notebook(path=bench.path),
            take_profile=take_profile or partial(profiles.take, skip=_SKIP, num_ranks=declared.ranks),
            clock=clock,
            only=tuple(only),
        ).run()
    finally:
        bench.close()
