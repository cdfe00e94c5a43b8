"""The rules of the house, kept by a machine: floors, sizes, names, and what may be imported when."""

import ast
import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch.schema import Recipe
from stepladder.strategies import Strategies
from stepladder.strategies.catalogue import LABELS, describe_keys, pages, strategy_class

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("profiling", "strategies", "trainer", "launch")  # imports run towards the left only
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_LOOP_LINES = 100
PREFIX = "stepladder" + "::"  # written so that this file does not carry the literal itself

Function = ast.FunctionDef | ast.AsyncFunctionDef


def package_files() -> list[Path]:
    files = [ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "recipes" / "__init__.py"]
    return files + [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def all_files() -> list[Path]:
    return package_files() + [
        path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def module_name(path: Path) -> str:
    """Dotted name below the package; the root itself is the empty string."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in package_files()}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(name: str, *, at_import_time: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Each import of a module: the node, and the package module that it reaches ('' for the root's own names)."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, Function | ast.Lambda) or _is_type_checking(child)
            if not (at_import_time and lazy):
                yield child
                yield from walk(child)

    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                below = ".".join([*base, alias.name])
                yield node, below if below in FILES else ".".join(base)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node, "(outside)"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def num_lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_every_floor_has_modules_to_look_at() -> None:
    assert {name.split(".")[0] for name in FILES} >= set(FLOORS)
    assert len(FILES) > 40


def test_imports_run_down_only() -> None:
    upwards = [
        f"{name} imports {target}"
        for name in FILES
        if name.split(".")[0] in FLOORS
        for _, target in imports(name)
        if (floor := target.split(".")[0]) in FLOORS and FLOORS.index(floor) > FLOORS.index(name.split(".")[0])
    ]
    assert not upwards


def test_imports_inside_the_package_are_relative() -> None:
    """The entry point is the one exception: run as a file, it has no package to be relative to."""
    absolute = [
        f"{name}:{node.lineno}"
        for name in FILES
        if name != "__main__"
        for node, _ in imports(name)
        for target in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if not getattr(node, "level", 0) and target.split(".")[0] in ("stepladder", "recipes", *FLOORS)
    ]
    assert not absolute


def test_no_modules_import_each_other_in_a_circle_when_they_are_loaded() -> None:
    edges = {name: {t for _, t in imports(name, at_import_time=True) if t in FILES and t != name} for name in FILES}
    edges = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in edges.items()}
    assert sum(len(targets) for targets in edges.values()) > 50
    while leaves := [name for name, targets in edges.items() if not targets]:
        edges = {name: targets - set(leaves) for name, targets in edges.items() if name not in leaves}
    assert not edges, f"in or behind a circle: {sorted(edges)}"


READING_HALF = ("profiling.trace.analysis", "profiling.spans", "profiling.errors")
CHECK = """
import sys
from stepladder.launch.cli import main
assert main(["check", "demo"]) == 0
assert main(["diff", "demo", "synthetic"]) == 0
assert main(["strategies"]) == 0
assert main(["strategies", "fsdp2"]) == 0
"""


@pytest.mark.parametrize(
    "code", [*(f"import sys, stepladder.{name}" for name in READING_HALF), CHECK], ids=[*READING_HALF, "check"]
)
def test_reading_and_checking_load_no_torch(code: str) -> None:
    columns = {"numpy", "polars", "pyarrow"}
    heavy = {"torch", "datasets"} | (set() if "profiling.trace" in code else columns)
    loaded = f"import sys; heavy = {heavy} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\n{loaded}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_span_names_are_spelled_once() -> None:
    literals = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in all_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PREFIX)
    ]
    assert [each.split(":")[0] for each in literals] == ["profiling/spans.py"]


def test_the_loop_names_no_strategy() -> None:
    names = {each.name for each in dataclasses.fields(Strategies)}
    names |= {strategy_class(each.type).__name__ for each in dataclasses.fields(Strategies)}
    tree = TREES["trainer.loop"]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    used |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert "program" in used  # the walk sees identifiers at all
    assert not names & used


def configs(kind: type[Any]) -> Iterator[type[Any]]:
    """A config dataclass and all that its fields reach."""
    yield kind
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        hint = Strategies if each.name == "strategies" else hints[each.name]
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from configs(inner)


def test_every_table_of_a_recipe_is_frozen_and_explains_its_keys() -> None:
    tables = list(configs(Recipe))
    assert len(tables) > 20
    for table in tables:
        assert typing.cast(Any, table).__dataclass_params__.frozen, f"{table.__name__} can be changed"
        for key, kind, _, text in describe_keys(table):
            is_table = table in (Recipe, Strategies) or kind in {each.__name__ for each in tables}
            assert text or is_table, f"{table.__name__}.{key} has no text"


def test_every_strategy_answers_the_eight_questions_in_order() -> None:
    found = pages()
    assert {page.name for page in found} >= {each.name for each in dataclasses.fields(Strategies)}
    for page in found:
        assert tuple(page.answers) == LABELS, page.name
        assert all(page.answers.values()), page.name
        assert page.headline, page.name


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for path in package_files()
        if (n := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert not long, "split by idea"


def test_functions_are_short() -> None:
    long = {
        f"{name}.{function.name}": num_lines(function)
        for name, tree in TREES.items()
        for function in functions(tree)
        if num_lines(function) > MAX_FUNCTION_LINES
    }
    assert not long, "split by idea"


def test_the_loop_is_one_function_without_a_class_of_its_own() -> None:
    train = next(function for function in functions(TREES["trainer.loop"]) if function.name == "train")
    assert num_lines(train) < MAX_LOOP_LINES
    assert not [node for node in ast.walk(train) if isinstance(node, ast.ClassDef)]


def test_nothing_is_declared_global() -> None:
    assert not [name for name, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Global)]
