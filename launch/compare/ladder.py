"""The ladder: one change after another on the best stack so far, and a rung stays only if it helps and stays the same.

At the end the finished stack is held against the base in pairs of its own, because a product of multipliers that were
kept for being large is a little too large itself; and each kept rung is taken out of it once, to see which of them need
one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..recipe import recipe_hash
from .ablate import LeftOut, leave_one_out
from .arms import NAME, ArmSpec
from .bench import Bench, Tools, Tried, changes_logging, open_bench
from .comparison import Asked
from .declared import machine
from .rungs import Multiplier, Point, Row, Rung, finding_of, product

STACK = "stack"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A ladder that has been climbed."""

    base: Point | None
    rungs: tuple[Row, ...]
    final: Row | None
    """The finished stack against the base; None if nothing was kept."""
    leave_one_out: tuple[LeftOut, ...]
    stack: Path
    """The finished recipe."""
    folder: Path
    results: dict[str, Any]
    """As `results.json` holds them."""


def climb_ladder(asked: Asked, rungs: Sequence[Rung], *, tools: Tools | None = None) -> Ladder:
    """Climb, or go on climbing. asked: recipe, protocol and budget; its arms are not used.

    Raises: UsageError for what cannot be climbed, KeyboardInterrupt.
    """
    tools = tools or Tools()
    check(asked, rungs, tools)
    bench = open_bench("ladder", asked, _declared(asked, rungs, tools), tools)
    bench.keep_log_every = changes_logging(change for rung in rungs for change in rung.set)
    try:
        return _climbed(bench, rungs)
    finally:
        bench.close()


def _declared(asked: Asked, rungs: Sequence[Rung], tools: Tools) -> dict[str, Any]:
    base = Bench(path=Path(), asked=asked, tools=tools).recipe(asked.recipe, asked.overrides)
    told = {"recipe": recipe_hash(base), "rungs": [[rung.name, list(rung.set)] for rung in rungs]}
    return {**told, "budget_s": asked.budget_s, "guarded": asked.guarded, "machine": machine()}


def check(asked: Asked, rungs: Sequence[Rung], tools: Tools) -> None:
    """Find what cannot be before anything runs. Raises: UsageError with every problem."""
    found = [*asked.refused, *asked.declared.problems()]
    if asked.resume and asked.out is None:
        found.append("--resume: continue which one? give its folder with --out")
    if asked.changes_workload:
        found.append(
            "--changes-workload: rungs stand on one another, so that each must train the same tokens; leave it"
        )
    if not rungs:
        found.append("rungs: there are none; add [[rungs]] with a name and what it sets")
    names = [rung.name for rung in rungs]
    found += [f"rung {name}: the name of two; rename one" for name in sorted(set(names)) if names.count(name) > 1]
    found += [
        f"rung {name[:60]!r}: not a name; use up to 50 letters, digits, dots, dashes and underscores"
        for name in names
        if not NAME.fullmatch(name)
    ]
    bench = Bench(path=Path(), asked=asked, tools=tools)
    stacked = list(asked.overrides)
    try:
        bench.recipe(asked.recipe, stacked)
    except UsageError as error:
        raise UsageError(*found, *error.problems) from error
    for rung in rungs:
        stacked += rung.set
        if not rung.set:
            found.append(f"rung {rung.name}: sets nothing; add set = {{ ... }}, or remove it")
        try:
            bench.recipe(asked.recipe, stacked)
        except UsageError as error:
            found += [f"rung {rung.name}, on those before it: {problem}" for problem in error.problems]
            break
    if found:
        raise UsageError(*found)


def _climbed(bench: Bench, rungs: Sequence[Rung]) -> Ladder:
    say = bench.tools.told.say
    base = bench.write_stack("00-base", bench.recipe(bench.asked.recipe, bench.asked.overrides))
    stack, point, rows, kept = base, None, list[Row](), list[Rung]()
    spent = list[float]()
    for index, rung in enumerate(rungs, start=1):
        say(f"rung {index} of {len(rungs)}, {rung.name}: {', '.join(rung.set)}")
        place = f"rungs/{index:02d}-{rung.name}"
        tried = bench.try_rung(index, rung, stack, place=place, left_s=bench.left_s(*spent))
        point = point or tried.base
        row = cumulated(tried.row, rows)
        if row.kept:
            stack = bench.write_stack(f"{index:02d}-{rung.name}", bench.recipe(stack, rung.set))
            kept.append(rung)
        rows.append(row)
        spent.append(row.seconds)
        say(f"rung {index}, {rung.name}: {'kept' if row.kept else 'dropped'}; {row.reason}")
    finished = bench.write_stack("finished", bench.recipe(stack))
    final = whole_stack(bench, base, finished, left_s=bench.left_s(*spent)).row if kept else None
    spent.append(final.seconds if final else 0.0)
    added = {row.name: row.multiplier for row in rows}
    left_out, ended = tuple[LeftOut, ...](), "every rung was tried"
    if len(kept) > 1:
        left_out = tuple(
            replace(each, when_added=added[each.name]).judged()
            for each in leave_one_out(
                bench, base, finished, kept, place="leave-one-out", left_s=bench.left_s(*spent), guarded=False
            )
        )
    if any(row.verdict == "not tried" for row in (*rows, *left_out)):
        ended = f"the budget of {bench.asked.budget_s or 0:.0f} s is spent"
    told = {
        "base": vars(point) if point else None,
        "rungs": [row.to_json() for row in rows],
        "final": final.to_json() if final else None,
        "leave_one_out": [each.to_json() for each in left_out],
        "stack": str(finished.relative_to(bench.path)),
    }
    results = bench.write_results("ladder", told, spent_s=bench.spent_s, ended=ended)
    return Ladder(
        base=point,
        rungs=tuple(rows),
        final=final,
        leave_one_out=left_out,
        stack=finished,
        folder=bench.path,
        results=results,
    )


def cumulated(row: Row, before: Sequence[Row]) -> Row:
    """The row with the product of all that was kept up to it."""
    if not row.kept:
        return row
    return replace(row, cumulative=product([each.multiplier for each in (*before, row) if each.kept]))


def whole_stack(bench: Bench, base: Path, finished: Path, *, left_s: float | None, place: str = "final") -> Tried:
    """The finished stack against the base: measured, profiled and guarded as a whole."""
    common: dict[str, Any] = {"index": 0, "name": STACK}
    if left_s is not None and left_s <= 0:
        return Tried(row=Row(verdict="not tried", reason="the budget is spent", **common))
    arm, declared = ArmSpec(name=STACK, recipe=str(finished)), bench.asked.declared
    bench.tools.told.say("the finished stack against the base, in pairs of its own")
    try:
        results = bench.compare(
            place, base, [arm], left_s=left_s, guarded=bench.asked.guarded, profiled=declared.profile
        )
    except UsageError as error:
        if not error.problems[0].startswith("--budget"):
            raise
        return Tried(row=Row(verdict="not tried", reason=f"the budget is spent ({error.problems[0]})", **common))
    found = finding_of(results.arms[1], bench.recipe(finished), guarded=bench.asked.guarded)
    multiplier: Multiplier | None = found["multiplier"]
    row = Row(**common, **found, cumulative=multiplier, seconds=results.spent_s, folder=place)
    return Tried(row=row, results=results)
