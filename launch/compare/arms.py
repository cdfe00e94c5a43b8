"""The arms of a comparison: how they are named, and every reason why they cannot be compared.

An arm is a recipe: the baseline with some keys changed, or a file of its own. The baseline is the recipe itself.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import recipe as recipes
from ..drafts import with_further_problems
from ..errors import RecipeError, UsageError
from ..plan import Plan
from ..schema import Recipe
from . import workload

BASELINE = "baseline"
AGAIN = "baseline-again"
"""The baseline as its own counterpart in a calibration."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
_PAIRS = {"[": "]", "{": "}", "(": ")"}

MakePlan = Callable[[Recipe], Plan]


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """An arm as the user wrote it."""

    name: str
    changes: tuple[str, ...] = ()
    """`a.b=value` each, as with `--set`."""
    recipe: str | None = None
    """A recipe of its own, file or shipped, instead of the baseline's."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm that is fit to run."""

    name: str
    plan: Plan
    changes: tuple[str, ...] = ()
    """In what its recipe differs from the baseline, a line each; none for the baseline."""

    @property
    def recipe(self) -> Recipe:
        """What it trains."""
        return self.plan.recipe


def parse_arm(text: str) -> ArmSpec:
    """`NAME=a.b=c,d.e=f` or `NAME=RECIPE`. Raises: UsageError."""
    name, equals, rest = text.partition("=")
    if not equals or not rest.strip():
        raise UsageError(
            f"--arm {text}: not of the form NAME=a.b=value; write for example --arm bf16=strategies.amp={{}}"
        )
    parts = split_changes(rest)
    if len(parts) == 1 and "=" not in parts[0]:
        return ArmSpec(name=name.strip(), recipe=parts[0])
    return ArmSpec(name=name.strip(), changes=tuple(parts))


def split_changes(text: str) -> list[str]:
    """The parts between commas; those in brackets, braces or quotes belong to a value."""
    parts, closing, quote, escaped = [""], list[str](), "", False
    for character in text:
        if escaped or (quote == '"' and character == "\\"):
            escaped = not escaped
        elif quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _PAIRS:
            closing.append(_PAIRS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def changes_of_table(table: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a TOML table as changes of a recipe."""
    return tuple(f"{where}={_toml(value)}" for where, value in recipes.flatten(table))


def _toml(value: Any) -> str:
    """A value as TOML writes it in one line."""
    import tomli_w

    if value == {}:
        return "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def read_arms(
    recipe: str,
    specs: Sequence[ArmSpec],
    make_plan: MakePlan,
    *,
    overrides: Sequence[str] = (),
    changes_workload: Sequence[str] = (),
) -> tuple[Arm, ...]:
    """The baseline and the arms, in order. Raises: UsageError with every problem of all of them.

    overrides: changes of all arms, the baseline included. changes_workload: keys that an arm may change although they
    change what is trained.
    """
    found = list(_name_problems(specs))
    baseline: Arm | None = None
    try:
        baseline = Arm(name=BASELINE, plan=_plan(recipe, overrides, make_plan))
    except UsageError as error:
        found += error.problems
    arms: list[Arm] = []
    for spec in specs:
        try:
            plan = _plan(spec.recipe or recipe, [*overrides, *spec.changes], make_plan)
        except UsageError as error:
            known = found if baseline is None else []  # what is wrong with the baseline is said once
            found += [f"arm {spec.name}: {each}" for each in error.problems if each not in known]
            continue
        if baseline:
            changes = tuple(recipes.diff(baseline.recipe, plan.recipe))
            arms.append(Arm(name=spec.name, plan=plan, changes=changes))
    if baseline:
        found += _arm_problems(baseline, arms, changes_workload)
    if found or baseline is None:
        raise UsageError(*found)
    return (baseline, *arms)


def _plan(recipe: str, overrides: Sequence[str], make_plan: MakePlan) -> Plan:
    try:
        read = recipes.read(recipe, overrides)
    except RecipeError as error:
        raise with_further_problems(error, make_plan) from error
    return make_plan(read)


def _name_problems(specs: Sequence[ArmSpec]) -> Iterator[str]:
    """Names that are none, or taken; and nothing to compare with."""
    if not specs:
        yield "arms: there is nothing to compare the recipe with; add --arm NAME=a.b=value"
    seen = {BASELINE}
    for spec in specs:
        if not NAME.fullmatch(spec.name):
            yield (
                f"arm {spec.name[:60]!r}: not a name; use up to 50 letters, digits, dots, dashes and underscores: "
                "--arm NAME=a.b=value"
            )
        elif spec.name.lower().endswith(".json") or spec.name.lower() == AGAIN:
            yield f"arm {spec.name}: is what the comparison itself calls a file or a segment; choose another name"
        elif spec.name.lower() in seen:
            taken = "is the recipe itself" if spec.name.lower() == BASELINE else "is the name of another arm"
            yield f"arm {spec.name}: {taken}; choose another name"
        seen.add(spec.name.lower())


def _arm_problems(baseline: Arm, arms: Sequence[Arm], declared: Sequence[str]) -> Iterator[str]:
    """Arms that train something else, that change nothing, or that are one another."""
    used: set[str] = set()
    seen: dict[str, str] = {}
    for arm in arms:
        measured = recipes.recipe_hash(workload.measured_part(arm.recipe))
        if not arm.changes:
            yield f"arm {arm.name}: differs from the baseline in nothing; change a key, or remove it"
        elif measured == recipes.recipe_hash(workload.measured_part(baseline.recipe)):
            keys = ", ".join(line.split(":")[0] for line in arm.changes)
            yield (
                f"arm {arm.name}: differs only in {keys}, which the measured steps leave out; change another key, or "
                "remove it"
            )
        elif measured in seen:
            yield f"arm {arm.name}: is the same as arm {seen[measured]}; remove one of them"
        seen.setdefault(measured, arm.name)
        yield from workload.problems(arm.name, baseline.plan, arm.plan, declared, used)
    for key in declared:
        if key not in used:
            yield f"--changes-workload {key}: no arm changes it in a way that would have to be declared; remove it"
