"""The grid: every combination of the values of a few keys against the recipe, in one comparison."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..plan import plan_here
from ..recipe import recipe_hash
from ..schema import Recipe
from .arms import ArmSpec
from .bench import Bench, Tools, changes_logging, open_bench
from .comparison import Asked
from .declared import machine
from .equal_tokens import completed, parse_axis
from .experiment import ExperimentError
from .results import Results
from .rungs import FAILED, REFUSED, Point, Row, finding_of
from .workload import measured_part

MAX_COMBINATIONS = 64
THE_RECIPE = "the recipe"
"""What is said of the combination that the recipe has already."""


@dataclass(frozen=True, kw_only=True)
class GridRow(Row):
    """One combination."""

    values: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid that has been measured."""

    base: Point | None
    rows: tuple[GridRow, ...]
    best: str | None
    """The fastest combination that may be claimed, if any is faster than the recipe."""
    folder: Path
    results: dict[str, Any]


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`a.b=1,2` each: the values of keys. Raises: UsageError with every problem."""
    axes, found = dict[str, tuple[str, ...]](), list[str]()
    for text in texts:
        try:
            key, values = parse_axis(text)
        except ValueError:
            found.append(f"--grid {text}: not of the form a.b=1,2; write for example --grid loader.num_workers=0,2")
            continue
        if key in axes:
            found.append(f"--grid {text}: {key} has values already; give them all in one --grid {key}=...")
        axes[key] = values
    num = math.prod(len(values) for values in axes.values())
    if num > MAX_COMBINATIONS:
        found.append(
            f"--grid: {num} combinations, and {MAX_COMBINATIONS} are allowed; leave values out, or climb instead"
        )
    if found:
        raise UsageError(*found)
    return axes


def measure_grid(asked: Asked, axes: Mapping[str, Sequence[str]], *, tools: Tools | None = None) -> Grid:
    """Measure all combinations. A combination that cannot run is a row with its reason. Raises: UsageError."""
    tools = tools or Tools()
    problems = [*asked.refused, *asked.declared.problems()]
    if asked.resume and asked.out is None:
        problems.append("--resume: continue which one? give its folder with --out")
    bare = Bench(path=Path(), asked=asked, tools=tools)
    try:
        base = bare.recipe(asked.recipe, asked.overrides)
    except UsageError as error:
        raise UsageError(*problems, *error.problems) from error
    if problems:
        raise UsageError(*problems)
    told = {"recipe": recipe_hash(base), "keys": {key: list(values) for key, values in axes.items()}}
    bench = open_bench("grid", asked, {**told, "guarded": asked.guarded, "machine": machine()}, tools)
    bench.keep_log_every = changes_logging(axes)
    try:
        return _measured(bench, base, axes)
    finally:
        bench.close()


def combinations(
    base: Recipe, axes: Mapping[str, Sequence[str]], tools: Tools, ranks: int | None
) -> list[tuple[str, ...]]:
    """The changes of each combination. Microbatches of another size keep the tokens of a step."""
    plan = (tools.make_plan or partial(plan_here, num_ranks=ranks))(base)
    products = itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items()))
    return [completed(each, plan) for each in products]


def _measured(bench: Bench, base: Recipe, axes: Mapping[str, Sequence[str]]) -> Grid:
    baseline = bench.write_stack("00-base", base)
    values = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    changes = combinations(base, axes, bench.tools, bench.asked.declared.ranks)
    rows, specs = list[GridRow](), list[ArmSpec]()
    seen = {recipe_hash(measured_part(base)): THE_RECIPE}
    for i, (given, change) in enumerate(zip(values, changes, strict=True), start=1):
        common: dict[str, Any] = {"index": i, "name": f"{i:02d}", "set": change, "values": given}
        spec = ArmSpec(name=f"{i:02d}", changes=change)
        try:
            same = seen.get(own := recipe_hash(measured_part(bench.recipe(baseline, change))))
        except UsageError as error:
            rows.append(GridRow(verdict=REFUSED, reason="; ".join(error.problems), **common))
            continue
        if same == THE_RECIPE:
            rows.append(GridRow(verdict=THE_RECIPE, reason="what the others are held against", **common))
        elif problems := (f"is the same as {same}",) if same else bench.refusals(baseline, spec):
            reason = "; ".join(problems).replace(f"arm {spec.name}: ", "")
            rows.append(GridRow(verdict=REFUSED, reason=reason, **common))
        else:
            seen[own] = spec.name
            specs.append(spec)
            rows.append(GridRow(verdict="", reason="", **common))
    if not specs:
        raise UsageError("--grid: no combination can be measured", *(f"{row.name}: {row.reason}" for row in rows))
    asked = bench.asked
    try:
        results = bench.compare(
            "comparison", baseline, specs, left_s=asked.budget_s, guarded=asked.guarded, profiled=asked.declared.profile
        )
    except ExperimentError as error:
        rows = [row if row.verdict else replace(row, verdict=FAILED, reason=str(error)) for row in rows]
        return _finished(bench, axes, rows, None, str(error))
    arms = {arm.name: arm for arm in results.arms}
    base_point = Point.of(results.arms[0], base)
    for i, row in enumerate(rows):
        if row.verdict == THE_RECIPE:
            rows[i] = replace(row, point=base_point)
        elif not row.verdict:
            found = finding_of(arms[row.name], bench.recipe(baseline, row.set), guarded=asked.guarded)
            rows[i] = replace(
                row, **(found | {"seconds": results.spent_s / len(specs), "folder": "comparison"} | {"kept": False})
            )
    return _finished(bench, axes, rows, results, results.outcome.ended)


def _finished(
    bench: Bench, axes: Mapping[str, Sequence[str]], rows: Sequence[GridRow], results: Results | None, ended: str
) -> Grid:
    claimed = [row for row in rows if row.verdict == "faster" and row.multiplier and row.point]
    best = max(claimed, key=lambda row: row.multiplier.times if row.multiplier else 0.0, default=None)
    rows = [replace(row, kept=row is best) for row in rows]
    base = Point.of(results.arms[0], bench.recipe(bench.path / "stacks" / "00-base.toml")) if results else None
    told = {
        "keys": {key: list(values) for key, values in axes.items()},
        "base": vars(base) if base else None,
        "rows": [row.to_json() for row in rows],
        "best": best.name if best else None,
    }
    written = bench.write_results("grid", told, spent_s=bench.spent_s, ended=ended)
    return Grid(base=base, rows=tuple(rows), best=best.name if best else None, folder=bench.path, results=written)
