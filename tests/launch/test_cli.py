"""The command says what it means, and every mistake is a sentence that leaves nothing behind."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepladder import __version__
from stepladder.launch import recipe as recipes
from stepladder.launch.cli import main
from stepladder.strategies.plugins import installed

Write = Callable[..., Path]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: whatever a command leaves behind shows there."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, output and the error lines of a command, in this process."""
    try:
        code = main(arguments)
    except SystemExit as left:
        code = int(left.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = call(capsys, "--help")

    assert (code, errors) == (0, [])
    for command in ("run", "check", "diff", "strategies", "recipes", "keys"):
        assert f"\n    {command}" in out
        assert call(capsys, command, "--help")[0] == 0


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version")[:2] == (0, f"stepladder {__version__}\n")


def test_check_says_what_the_recipe_means(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = call(capsys, "check", str(tiny))

    assert (code, errors) == (0, [])
    assert "ranks       1 x cpu" in out
    assert "strategies  adamw > clip" in out
    assert "microbatch 4 x accumulation 1 x data ranks 1 = 4 sequences; x 32 tokens = 128 tokens per step" in out
    assert f"sha256 {recipes.recipe_hash(recipes.read(str(tiny)))[:16]}: no problems" in out


def test_check_prints_five_sentences_for_five_mistakes(recipe_file: Write, capsys: pytest.CaptureFixture[str]) -> None:
    five = """
    extends = "tiny.toml"
    run.num_step = 3
    run.log_every = "1"
    batch.microbatch_size = 0
    strategies.fsdp = {}
    loader.prefetch_factor = 2
    """
    recipe_file()

    code, out, errors = call(capsys, "check", str(recipe_file(five, name="five.toml", alone=True)))

    assert (code, out) == (2, "")
    assert len(errors) == 5
    for key in ("run.num_step", "run.log_every", "batch.microbatch_size", "strategies.fsdp", "loader.prefetch_factor"):
        assert sum(f"five.toml: {key}" in line for line in errors) == 1, key


def test_diff_lists_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "diff", "demo", "demo")[:2] == (0, "no difference\n")
    code, out, _ = call(capsys, "diff", "llama3_8b", "llama3_8b_1_bf16")
    assert (code, out) == (0, 'strategies.fsdp2.param_dtype: "float32" -> "bf16"\n')


def test_strategies_prints_a_table_and_a_page_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, table, errors = call(capsys, "strategies")
    assert (code, errors) == (0, [])
    names = [each.name for each in dataclasses.fields(installed())]
    assert len(names) >= 10
    for name in names:
        assert f"\n{name} " in table
        code, page, _ = call(capsys, "strategies", name)
        assert code == 0
        for label in ("Problem", "Mechanism", "Saves", "Costs", "When", "When not", "Measure", "Source"):
            assert f"\n{label}" in page, f"{name} has no {label}"


def test_an_unknown_strategy_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = call(capsys, "strategies", "fsdp")

    assert (code, out) == (2, "")
    assert errors == ["error: fsdp: no such strategy; did you mean fsdp2?"]


def test_recipes_lists_every_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "recipes")

    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(recipes.shipped())
    assert all(len(line.split()) > 3 for line in out.splitlines())


def test_keys_lists_every_key_of_a_recipe(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "keys")

    assert code == 0
    everything = ["evaluation={}", "checkpoint={}", "profiler={}"]
    for path, _value in recipes.flatten(recipes.resolved(recipes.read(str(tiny), everything))):
        if path == "mesh":  # without degrees: an empty table
            continue
        assert f"| `{path}` |" in out
    for row in out.splitlines()[2:]:
        assert row.count(" | ") == 3
        assert "|  |" not in row, f"a key without meaning: {row}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["check", "demo"], ["diff", "demo", "synthetic"], ["strategies"], ["recipes"], ["keys"]],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_only_says_something_loads_no_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom stepladder.launch.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print('LOADED', [name for name in ('torch', 'numpy', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_help_loads_nothing_of_what_commands_need() -> None:
    """It took twice as long when the options of one command did."""
    script = (
        "import sys\nfrom stepladder.launch.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted(name for name in sys.modules if name.startswith(('stepladder', 'polars'))))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)

    light = {
        "",
        ".launch",
        ".launch.cli",
        ".launch.errors",
        ".profiling",
        ".profiling.trace",
        ".profiling.trace.spelling",
    }
    expected = sorted(f"stepladder{name}" for name in light)
    assert done.stdout.splitlines()[-1] == f"LOADED {expected}"


def test_output_that_nobody_reads_on_is_no_error(stepladder: Command) -> None:
    """`stepladder keys | head -1`."""
    done = subprocess.run(
        f"{sys.executable} -P -m stepladder keys | head -1", shell=True, capture_output=True, text=True, check=True
    )

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


FILES = ["--set", "data.synthetic=false", "--set", "model.decoder.vocab_size=256", "--set"]

# Arguments of `run`, exit code, and what the sentence says. UP: a folder with the files that `surroundings` puts there.
BAD: dict[str, tuple[list[str], int, str]] = {
    "missing recipe": (["nowhere.toml"], 2, "nowhere.toml: no such recipe"),
    "shipped name with a typo": (["deno"], 2, "deno: no such recipe; did you mean demo?"),
    "a folder as recipe": (["UP"], 2, "is a folder; give a TOML file"),
    "binary recipe": (["UP/binary.toml"], 2, "not valid TOML"),
    "invalid TOML": (["UP/broken.toml"], 2, "not valid TOML"),
    "a bad override": (["UP/tiny.toml", "--set", "run.num_steps"], 2, "not of the form"),
    "--out below a file": (["UP/tiny.toml", "--out", "UP/a_file/run"], 2, "cannot be written (Not a directory)"),
    "--out is a file": (["UP/tiny.toml", "--out", "UP/a_file"], 2, "cannot be written (File exists)"),
    "--out cannot be made": (["UP/tiny.toml", "--out", "/proc/stepladder"], 2, "cannot be written (No such file"),
    "--out holds a run": (["UP/tiny.toml", "--out", "UP/taken"], 2, "holds a run already; add --resume"),
    "--resume without --out": (["UP/tiny.toml", "--resume"], 2, "--resume: continue which run?"),
    "--resume of nothing": (["UP/tiny.toml", "--resume", "--out", "new"], 2, "--resume: new holds no run"),
    "--resume without checkpoint": (["UP/tiny.toml", "--resume", "--out", "UP/taken"], 66, "no complete checkpoint"),
    "--resume of a damaged run": (["UP/tiny.toml", "--resume", "--out", "UP/damaged"], 2, "not valid TOML"),
    "--ranks 0": (["UP/tiny.toml", "--ranks", "0"], 2, "--ranks 0: a run needs at least 1 rank"),
    "--ranks -1": (["UP/tiny.toml", "--ranks", "-1"], 2, "--ranks -1: a run needs at least 1 rank"),
    "ranks that nobody owns": (["UP/tiny.toml", "--ranks", "2"], 2, "no active strategy owns a data-parallel axis"),
    "missing data": (["UP/tiny.toml", *FILES, "data.files.paths=['no.txt']"], 2, "paths = 'no.txt': no such file"),
    "empty data": (["UP/tiny.toml", *FILES, "data.files.paths=['UP/empty.txt']"], 2, "there is no text in it"),
    "too little data": (["UP/tiny.toml", *FILES, "data.files.paths=['UP/short.txt']"], 2, "not one sequence"),
    "too long a sequence": (
        ["UP/tiny.toml", *FILES, "data.stdlib={}", "--set", "batch.sequence_length=1000000000"],
        2,
        "not one sequence; give more data or shorter sequences",
    ),
}


@pytest.fixture
def surroundings(inside: Path, tiny: Path) -> Path:
    """What the bad inputs name: the parent of the working directory."""
    up = inside.parent
    (up / "binary.toml").write_bytes(bytes(range(256)) * 40)
    (up / "broken.toml").write_text("[run\n")
    (up / "empty.txt").write_text("")
    (up / "short.txt").write_text("a few bytes")
    (up / "a_file").write_text("")
    (up / "taken").mkdir()
    (up / "taken" / "recipe.resolved.toml").write_text(recipes.to_toml(recipes.read(str(tiny))))
    (up / "damaged" / "checkpoints" / "step-000001").mkdir(parents=True)
    (up / "damaged" / "checkpoints" / "step-000001" / "state.json").write_text("{}")
    (up / "damaged" / "recipe.resolved.toml").write_text("[run\n")
    return up


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(
    case: str, surroundings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a process was started")

    arguments, expected_code, expected = BAD[case]
    monkeypatch.setattr(os, "execve", started)
    before = tree(surroundings)

    code, out, errors = call(capsys, "run", *(each.replace("UP", str(surroundings)) for each in arguments))

    assert code == expected_code
    assert all(line.startswith("data ") for line in out.splitlines())  # what was read before it was found wanting
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert expected in errors[0]
    assert tree(surroundings) == before


def test_bad_input_shows_no_traceback_in_a_process_of_its_own(stepladder: Command, tmp_path: Path, tiny: Path) -> None:
    """The same through the real entry point, for one input of each kind."""
    for arguments, code in (
        [("run", "nowhere"), 2],
        [("run", str(tiny), "--out", "/proc/x/y"), 2],
        [("check", "/"), 2],
    ):
        done = stepladder(*arguments, cwd=tmp_path)

        assert done.returncode == code
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
