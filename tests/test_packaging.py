"""What a user installs: our names and no others, recipes in the wheel, every dependency pinned."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
GENERIC = ("trainer", "strategies", "profiling", "launch", "recipes")
# Runs in the process that is probed: where each generic name would be imported from, as a file in this repository.
PROBE = f"""
import importlib.util, pathlib, stepladder
root = pathlib.Path(stepladder.__file__).resolve().parent
specs = {{name: importlib.util.find_spec(name) for name in {GENERIC!r}}}
origins = {{name: pathlib.Path(spec.origin).resolve() for name, spec in specs.items() if spec and spec.origin}}
print("OURS", [name for name, origin in origins.items() if root in origin.parents], flush=True)
"""


def test_generic_names_do_not_resolve_to_this_repository_in_a_test() -> None:
    for name in GENERIC:
        spec = importlib.util.find_spec(name)
        assert spec is None or spec.origin is None or ROOT not in Path(spec.origin).resolve().parents, name
    assert importlib.util.find_spec("stepladder.trainer") is not None


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose strategy plugin, loaded by every command that reads a recipe, prints what it could import."""
    folder = tmp_path_factory.mktemp("probe")
    info = folder / "probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[stepladder.strategies]\nprobe = probe_plugin:Probe\n")
    (folder / "probe_plugin.py").write_text(
        PROBE + "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Probe:\n"
        "    after = 'ac'\n"
        "    conflicts = {}\n"
        "    owns = frozenset()\n"
        "    def check(self, run): return iter(())\n"
        "    def apply(self, program, run): return program\n"
    )
    return folder


@pytest.mark.parametrize("start", ["python -m", "torchrun -m"])
def test_started_from_the_repository_root_the_command_imports_only_its_own_names(start: str, probe: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command = [sys.executable, *(torchrun if start == "torchrun -m" else []), "-m", "stepladder", "check", "demo"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(probe)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout
    assert "OURS []" in done.stdout


def test_the_probe_itself_would_see_a_generic_name(probe: Path) -> None:
    """Control: with the root on the path, as `python -c` from the checkout has it, the names do resolve."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        env=os.environ | {"PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"OURS {list(GENERIC)}" in done.stdout


@cache
def _git_files() -> frozenset[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return frozenset(filter(None, listed.stdout.split("\0")))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the files that git knows, built in a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    if not _git_files():
        pytest.skip("not a git checkout")
    for name in _git_files():
        if (ROOT / name).is_file():
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    done = subprocess.run(command, cwd=folder / "tree", capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("stepladder-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {each for each in top if not each.endswith(".dist-info")} == {"stepladder"}
    inside = {name.split("/")[1] for name in names if name.startswith("stepladder/")}
    assert inside == {"__init__.py", "__main__.py", "py.typed", *GENERIC}


def test_the_wheel_holds_every_module_and_every_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"stepladder/{path.relative_to(ROOT).as_posix()}"
        for folder in GENERIC
        for pattern in ("*.py", "*.toml")
        for path in (ROOT / folder).rglob(pattern)
        if path.relative_to(ROOT).as_posix() in _git_files()
    }
    assert len(expected) > 40
    assert not expected - names
    assert {f"stepladder/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")} <= names


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def installed_closure(requirements: list[Requirement]) -> dict[str, Distribution]:
    """Every installed distribution that the requirements reach, markers evaluated for this machine."""
    found: dict[str, Distribution] = {}
    waiting = [(requirement, frozenset({""})) for requirement in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "stepladder" or not _applies(requirement, extras):
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # an extra that this environment does not have, such as the peers of the benchmark
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(text), frozenset({extra})) for text in found[name].requires or ()]
    return found


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def test_every_dependency_is_pinned() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pinned = re.fullmatch(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line)
            assert pinned, f"not pinned with ==: {line}"
            pins[canonicalize_name(pinned[1])] = pinned[2]
    tables = project()["project"]
    # Transformer Engine is built on the user's machine, for its GPUs; no command here installs it.
    extras = [extra for name, extra in tables["optional-dependencies"].items() if name != "te"]
    texts = [*tables["dependencies"], *(each for extra in extras for each in extra)]
    closure = installed_closure([Requirement(text) for text in texts])

    assert {"torch", "numpy", "datasets", "pytest", "ruff", "pyarrow", "sympy"} <= closure.keys()
    assert pins["torch"] == "2.13.0"
    # nvidia-* and triton come with torch's own pins, and differ from platform to platform.
    ours = {name: each for name, each in closure.items() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not ours.keys() - pins.keys(), "add to constraints.txt"
    differs = {name: each.version for name, each in ours.items() if each.version.split("+")[0] != pins[name]}
    assert not differs, "this environment is not the pinned one"


def test_the_ranges_of_the_metadata_admit_the_pins() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    tables = project()["project"]
    # Transformer Engine is built on the user's machine, for its GPUs; no command here installs it.
    extras = [extra for name, extra in tables["optional-dependencies"].items() if name != "te"]
    texts = [*tables["dependencies"], *(each for extra in extras for each in extra)]
    for requirement in map(Requirement, texts):
        if requirement.name != "stepladder":
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)
