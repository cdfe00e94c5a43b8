"""Leave-one-out: what a finished stack loses without each of its pieces, in one comparison with an arm for each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...strategies import active
from ...strategies.changes import Changes, declared, defaults
from ..errors import UsageError
from ..recipe import recipe_hash
from ..schema import Recipe
from .arms import BASELINE, ArmSpec, changes_of_table
from .bench import Bench, Tools, changes_logging, open_bench
from .comparison import Asked
from .declared import machine
from .experiment import ExperimentError
from .rungs import FAILED, NOT_TRIED, REFUSED, Multiplier, Point, Row, Rung, finding_of


@dataclass(frozen=True, kw_only=True)
class LeftOut(Row):
    """A stack without one of its pieces. `multiplier`: how many times faster it is with it."""

    when_added: Multiplier | None = None
    interaction: Multiplier | None = None
    """Beyond 1, the piece wins more in company than it did when it was added."""
    interacts: bool = False
    """Whether the interval of that excludes 1."""

    def judged(self) -> "LeftOut":
        """With the interaction, where both multipliers are known."""
        now = self.multiplier or self.measured
        if now is None or self.when_added is None:
            return self
        interaction = now.over(self.when_added)
        return replace(self, interaction=interaction, interacts=interaction.differs_from_one)

    @property
    def measured(self) -> Multiplier | None:
        """How many times faster the stack is with the piece, guard or not."""
        return None if self.ratio is None else Multiplier(times=self.ratio["ratio"], **self._bounds)

    @property
    def _bounds(self) -> dict[str, float]:
        return {} if self.ratio is None else {"low": self.ratio["low"], "high": self.ratio["high"]}


def leave_one_out(
    bench: Bench,
    base: Path,
    stack: Path,
    pieces: Sequence[Rung],
    *,
    place: str,
    left_s: float | None,
    guarded: bool,
) -> list[LeftOut]:
    """The stack without each of the rungs that were put on the base, in one comparison. Raises: UsageError."""
    without: dict[str, tuple[str, ...]] = {}
    for piece in pieces:
        others = [change for each in pieces if each is not piece for change in each.set]
        without[piece.name] = tuple(others)
    return _compared(bench, base, stack, pieces, without, place=place, left_s=left_s, guarded=guarded)


def _compared(
    bench: Bench,
    base: Path,
    stack: Path,
    pieces: Sequence[Rung],
    without: dict[str, tuple[str, ...]],
    *,
    place: str,
    left_s: float | None,
    guarded: bool,
) -> list[LeftOut]:
    """without: by piece, the changes of the base that give the stack without it."""
    specs, refused = dict[str, ArmSpec](), dict[str, str]()
    for i, piece in enumerate(pieces, start=1):
        arm = f"{i:02d}-without"
        try:
            recipe = bench.recipe(base, without[piece.name])
        except UsageError as error:
            refused[piece.name] = "; ".join(error.problems)
            continue
        spec = ArmSpec(name=arm, recipe=str(bench.write_stack(f"without-{i:02d}", recipe)))
        if problems := bench.refusals(stack, spec):
            refused[piece.name] = "; ".join(problem.removeprefix(f"arm {arm}: ") for problem in problems)
        else:
            specs[piece.name] = spec
    bench.tools.told.say(f"leave one out: the finished stack without each of {', '.join(specs) or 'nothing'}")
    found, failure = dict[str, dict[str, Any]](), (NOT_TRIED, "the budget is spent")
    if specs and (left_s is None or left_s > 0):
        try:
            results = bench.compare(place, stack, list(specs.values()), left_s=left_s, guarded=guarded, profiled=False)
            arms = {arm.name: arm for arm in results.arms}
            for name, spec in specs.items():
                recipe = bench.recipe(str(spec.recipe))
                values = finding_of(arms[spec.name], recipe, guarded=guarded)
                found[name] = values | {"folder": place, "seconds": results.spent_s / len(specs)}
        except UsageError as error:
            if not error.problems[0].startswith("--budget"):
                raise
            failure = (NOT_TRIED, f"the budget is spent ({error.problems[0]})")
        except ExperimentError as error:
            failure = (FAILED, str(error))
    return [_left_out(i, piece, found, refused, failure) for i, piece in enumerate(pieces, start=1)]


def _left_out(
    index: int, piece: Rung, found: dict[str, dict[str, Any]], refused: dict[str, str], failure: tuple[str, str]
) -> LeftOut:
    """The row of one piece."""
    common: dict[str, Any] = {"index": index, "name": piece.name, "set": piece.set}
    if piece.name in refused:
        return LeftOut(verdict=REFUSED, reason=refused[piece.name], **common)
    if piece.name not in found:
        return LeftOut(verdict=failure[0], reason=failure[1], **common)
    values: dict[str, Any] = found[piece.name] | {"kept": True}
    claimed: Multiplier | None = values.pop("multiplier")
    row = LeftOut(**common, **values)
    return replace(row, multiplier=row.measured if claimed else None)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What each piece of a stack is worth."""

    base: Point | None
    """The whole stack."""
    pieces: tuple[LeftOut, ...]
    folder: Path
    results: dict[str, Any]


def ablate(asked: Asked, rungs: Sequence[Rung] = (), *, tools: Tools | None = None) -> Ablation:
    """Leave-one-out of the stack of all rungs; without any, of the pieces of the recipe itself. Raises: UsageError."""
    tools = tools or Tools()
    bare = Bench(path=Path(), asked=asked, tools=tools)
    problems = [*asked.refused, *asked.declared.problems()]
    if asked.resume and asked.out is None:
        problems.append("--resume: continue which one? give its folder with --out")
    try:
        stack = bare.recipe(asked.recipe, [*asked.overrides, *(change for rung in rungs for change in rung.set)])
    except UsageError as error:
        raise UsageError(*problems, *error.problems) from error
    pieces = tuple(rungs) or tuple(pieces_of(stack))
    if not pieces:
        problems.append(
            f"--ablate: {asked.recipe} has no piece that could be left out; give a ladder, or a recipe with strategies"
        )
    if problems:
        raise UsageError(*problems)
    told = {"stack": recipe_hash(stack), "pieces": [[piece.name, list(piece.set)] for piece in pieces]}
    bench = open_bench("ablation", asked, {**told, "guarded": asked.guarded, "machine": machine()}, tools)
    bench.keep_log_every = changes_logging(change for piece in pieces for change in piece.set)
    try:
        finished = bench.write_stack("finished", stack)
        limits: dict[str, Any] = {"place": "comparison", "left_s": asked.budget_s, "guarded": asked.guarded}
        if rungs:
            base = bench.write_stack("00-base", bench.recipe(asked.recipe, asked.overrides))
            found = leave_one_out(bench, base, finished, pieces, **limits)
        else:
            found = _compared(bench, finished, finished, pieces, {each.name: each.set for each in pieces}, **limits)
        return _finished(bench, finished, found)
    finally:
        bench.close()


def _finished(bench: Bench, stack: Path, found: Sequence[LeftOut]) -> Ablation:
    from .store import read_json

    kept = read_json(bench.path / "comparison" / "results.json") or {"arms": []}
    whole = next((arm for arm in kept["arms"] if arm["name"] == BASELINE and arm["step_s"]), None)
    point = None
    if whole:
        step_s, run = whole["step_s"], bench.recipe(stack).run
        known = {key: whole[key] for key in ("p95_s", "tokens_per_s", "mfu", "memory_gib")}
        point = Point(step_s=step_s, run_s=step_s * run.num_steps, compile_s=whole["first_compile_s"], **known)
    told = {"base": vars(point) if point else None, "leave_one_out": [each.to_json() for each in found]}
    ended = kept.get("ended", "nothing was measured")
    results = bench.write_results("ablation", told, spent_s=bench.spent_s, ended=ended)
    return Ablation(base=point, pieces=tuple(found), folder=bench.path, results=results)


def pieces_of(recipe: Recipe) -> Iterator[Rung]:
    """What can be left out of a recipe that stays the same training: strategies, else their keys, and the loader's.

    A piece is the change that takes it out.
    """
    strategy: Any
    for name, strategy in active(recipe.strategies):
        may, usual = declared(strategy), defaults(type(strategy))
        if isinstance(may.switch, Changes) and may.switch is Changes.ALGORITHM:
            for key, default in usual.items():
                changed = getattr(strategy, key) != default and default is not None
                if changed and may.rule(key) is not Changes.ALGORITHM:
                    yield _back(f"strategies.{name}.{key}", default)
        else:
            yield Rung(name=name, set=(f"strategies.{name}=false",))
    for each in fields(recipe.loader):
        value = getattr(recipe.loader, each.name)
        if value != each.default and each.default is not None:
            yield _back(f"loader.{each.name}", each.default)


def _back(key: str, default: Any) -> Rung:
    """A key as it would be if nobody had set it."""
    name = re.sub(r"^(strategies|loader)\.", "", key)
    table: dict[str, Any] = {key: default}
    return Rung(name=name, set=changes_of_table(table))
