"""A recipe is read strictly, completely, and the same however it is written."""

import random
import re
import string
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from stepladder.launch import recipe as recipes
from stepladder.launch.cli import main
from stepladder.launch.errors import UsageError

Write = Callable[..., Path]


def problems_of(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(UsageError) as caught:
        recipes.read(str(path), overrides)
    return list(caught.value.problems)


def test_a_sound_recipe_gives_its_values_and_the_defaults(tiny: Path) -> None:
    recipe = recipes.read(str(tiny))

    assert (recipe.name, recipe.run.num_steps, recipe.model.decoder.dim) == ("tiny", 8, 32)
    assert recipe.run.seed == 0
    assert recipe.strategies.clip.max_norm == 1.0
    assert recipe.strategies.ddp is None
    assert recipe.checkpoint is None


WRONG: dict[str, tuple[str, str]] = {
    "unknown key": ("run.num_step = 3", "tiny.toml: run.num_step: unknown key; did you mean 'num_steps'?"),
    "unknown table": ("[evaluatoin]", "evaluatoin: unknown key; did you mean 'evaluation'?"),
    "unknown strategy": ("[strategies.fsdp]", "strategies.fsdp: unknown key; did you mean 'fsdp2'?"),
    "nothing like it": ("[batch.qqq]", "batch.qqq: unknown key; batch has microbatch_size, sequence_length,"),
    "string for int": ('run.num_steps = "8"', "run.num_steps = '8': must be a whole number"),
    "float for int": ("run.num_steps = 8.0", "run.num_steps = 8.0: must be a whole number"),
    "bool for int": ("run.num_steps = true", "run.num_steps = true: must be a whole number"),
    "int for bool": ("run.deterministic = 1", "run.deterministic = 1: must be true or false"),
    "bool for float": ("strategies.adamw.learning_rate = true", "learning_rate = true: must be a number"),
    "int for string": ("name = 3", "name = 3: must be a string, in quotes"),
    "below its range": ("run.num_steps = 0", "run.num_steps = 0: must be at least 1"),
    "negative count": ("run.seed = -1", "run.seed = -1: must be at least 0"),
    "more than a generator takes": ("run.seed = 4294967296", "seed = 4294967296: must be less"),
    "at an open bound": ("strategies.clip.max_norm = 0", "max_norm = 0: must be greater than 0"),
    "above its range": ("strategies.adamw.beta2 = 1.0", "must be less than 1"),
    "nan": ("strategies.adamw.learning_rate = nan", "learning_rate = nan: must be"),
    "infinite": ("strategies.adamw.learning_rate = inf", "learning_rate = inf: must be a finite number"),
    "beyond floats": (f"strategies.adamw.learning_rate = 1{'0' * 400}", "must be a finite number"),
    "not among the choices": ('run.device = "gpu"', "run.device = 'gpu': must be one of 'auto', 'cpu', 'cuda'"),
    "choice of another type": ("run.device = 1", "run.device = 1: must be one of 'auto'"),
    "scalar for a list": ("[profiler]\nranks = 0", "profiler.ranks = 0: must be a list, in brackets"),
    "wrong item": ('[profiler]\nranks = [0, "1"]', "profiler.ranks = [0, '1']: must be a list, each a whole number"),
    "bool in a list of ints": ("[profiler]\nranks = [true]", "profiler.ranks = [True]: must be a list, each a whole"),
    "scalar for a table": ("checkpoint = true", "checkpoint = true: must be a table; write checkpoint = {}"),
    "false for a table that is always on": ("run = false", "run = false: must be a table"),
    "list for a table": ("run = []", "run = []: must be a table"),
    "two data tables": ("[data.stdlib]", "data: synthetic, stdlib are on; keep one of stdlib, files,"),
    "no data table": ("data.synthetic = false", "data: none is on; keep one of"),
    "no model table": ("model.decoder = false", "model: none is on; keep one of decoder"),
    "a rule over two keys": ("model.decoder.dim = 30", "dim = 30: not divisible by num_heads = 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_kind_of_mistake_has_its_sentence(case: str, tiny: Path, recipe_file: Write) -> None:
    text, expected = WRONG[case]
    # Over a base, because TOML itself refuses a key that stands twice in one file.
    path = recipe_file(f'extends = "tiny.toml"\n{text}\n', name="over.toml", alone=True)
    expected = expected.replace("tiny.toml", "over.toml")

    found = problems_of(path)

    assert len(found) == 1, found
    assert expected in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize("table", ["model", "data"])
def test_a_missing_table_is_named_with_an_example(table: str, recipe_file: Write, tiny: Path) -> None:
    kept = {"model": "[data.synthetic]", "data": "[model.decoder]"}[table]
    found = problems_of(recipe_file(kept, name="bare.toml", alone=True))

    assert len(found) == 1
    assert f"{table}: missing; add a table such as [{table}." in found[0]


def test_a_bare_infinity_is_the_word(tiny: Path) -> None:
    for spelled in ("inf", '"inf"'):
        clip = recipes.read(str(tiny), [f"strategies.clip.norm_type={spelled}"]).strategies.clip
        assert clip is not None
        assert clip.norm_type == "inf"


def test_whole_numbers_are_accepted_as_floats_and_are_the_same_recipe(tiny: Path) -> None:
    whole = recipes.read(str(tiny), ["strategies.clip.max_norm=2"])
    assert type(whole.strategies.clip.max_norm) is float
    assert recipes.recipe_hash(whole) == recipes.recipe_hash(recipes.read(str(tiny), ["strategies.clip.max_norm=2.0"]))


def test_all_problems_are_found_at_once(tiny: Path) -> None:
    mistakes = ["run.num_steps=0", "run.sed=1", "batch.microbatch_size=x", "name=3", "strategies.adamw=7"]

    assert len(problems_of(tiny, mistakes)) == len(mistakes)
    assert len(problems_of(tiny, mistakes[:3])) == 3


BROKEN = {
    "no TOML": b"[run\n",
    "a key twice": b"name = 'a'\nname = 'b'\n",
    "binary": bytes(range(256)),
    "nested too deep": b"a = " + b"[" * 100_000,
    "a number of 5000 digits": b"[run]\nnum_steps = " + b"1" * 5000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_toml_is_one_sentence(case: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(BROKEN[case])

    found = problems_of(path)

    assert len(found) == 1
    assert found[0].startswith(f"{path}: not valid TOML")


class TestExtends:
    def test_a_chain_lays_each_file_over_the_one_below(self, tiny: Path, recipe_file: Write) -> None:
        recipe_file('extends = "tiny.toml"\nrun.seed = 1\nrun.num_steps = 5\n', name="middle.toml", alone=True)
        top = recipe_file('extends = "middle.toml"\nrun.num_steps = 3\n', name="top.toml", alone=True)

        recipe = recipes.read(str(top))

        assert (recipe.run.seed, recipe.run.num_steps, recipe.model.decoder.dim) == (1, 3, 32)

    def test_a_problem_names_the_file_that_its_value_came_from(self, tiny: Path, recipe_file: Write) -> None:
        recipe_file('extends = "tiny.toml"\nrun.seed = -1\n', name="middle.toml", alone=True)
        top = recipe_file('extends = "middle.toml"\nrun.num_steps = 0\n', name="top.toml", alone=True)

        found = problems_of(top, ["run.log_every=0"])

        assert sorted(sentence.split(": ")[0] for sentence in found) == ["--set", "middle.toml", "top.toml"]

    def test_a_cycle_is_refused(self, recipe_file: Write) -> None:
        recipe_file('extends = "b.toml"\n', name="a.toml", alone=True)
        start = recipe_file('extends = "a.toml"\n', name="b.toml", alone=True)

        (found,) = problems_of(start)

        assert "extends itself, through b.toml -> a.toml -> b.toml" in found

    def test_a_file_may_not_extend_itself(self, recipe_file: Write) -> None:
        assert "extends itself" in problems_of(recipe_file('extends = "a.toml"\n', name="a.toml", alone=True))[0]

    @pytest.mark.parametrize("value", ['"nowhere.toml"', "3", '["tiny.toml"]', '"."'])
    def test_a_base_that_is_no_file_is_refused(self, value: str, tiny: Path, recipe_file: Write) -> None:
        found = problems_of(recipe_file(f"extends = {value}\n", name="a.toml", alone=True))

        assert len(found) == 1
        assert "extends = " in found[0]

    def test_a_shipped_recipe_can_be_a_base(self, recipe_file: Write) -> None:
        recipe = recipes.read(str(recipe_file('extends = "demo"\nrun.num_steps = 3\n', name="a.toml", alone=True)))

        assert recipes.diff(recipes.read("demo"), recipe) == ["run.num_steps: 200 -> 3"]

    def test_false_switches_an_inherited_table_off(self, recipe_file: Write) -> None:
        path = recipe_file('extends = "demo"\nevaluation = false\nstrategies.ddp = false\n', name="a.toml", alone=True)

        recipe = recipes.read(str(path))

        assert recipes.read("demo").evaluation is not None
        assert recipe.evaluation is None
        assert recipe.strategies.ddp is None
        assert recipe.strategies.adamw is not None

    def test_a_table_over_false_switches_it_on_again(self, recipe_file: Write) -> None:
        recipe_file('extends = "demo"\nstrategies.ddp = false\n', name="off.toml", alone=True)
        path = recipe_file('extends = "off.toml"\nstrategies.ddp = {}\n', name="on.toml", alone=True)

        assert recipes.read(str(path)).strategies.ddp is not None


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("run.num_steps=3", 3),
            ("run.num_steps = 3", 3),
            ("run.deterministic=true", True),
            ("run.device=cpu", "cpu"),
            ('run.device="cpu"', "cpu"),
            ("strategies.adamw.learning_rate=1e-2", 1e-2),
            ("profiler.ranks=[0]", (0,)),
            ("name=a-b", "a-b"),
        ],
    )
    def test_values_are_toml_or_bare_words(self, override: str, value: Any, tiny: Path) -> None:
        found: Any = recipes.read(str(tiny), [override])
        for key in override.partition("=")[0].strip().split("."):
            found = getattr(found, key)

        assert (found, type(found)) == (value, type(value))

    def test_strategies_are_switched_on_and_off(self, tiny: Path) -> None:
        recipe = recipes.read(str(tiny), ["strategies.ac={}", "strategies.clip=false", "strategies.amp.dtype=fp16"])

        assert recipe.strategies.ac is not None
        assert recipe.strategies.clip is None
        assert recipe.strategies.amp.dtype == "fp16"

    def test_a_key_below_a_table_that_is_off_switches_it_on(self, tiny: Path) -> None:
        recipe = recipes.read(str(tiny), ["strategies.clip=false", "strategies.clip.max_norm=3"])

        assert recipe.strategies.clip.max_norm == 3.0

    def test_the_last_one_wins(self, tiny: Path) -> None:
        assert recipes.read(str(tiny), ["run.seed=1", "run.seed=2"]).run.seed == 2

    @pytest.mark.parametrize("override", ["run.num_steps", "=3", "run..seed=3", ".=3", ""])
    def test_anything_else_is_refused_with_an_example(self, override: str, tiny: Path) -> None:
        (found,) = problems_of(tiny, [override])

        assert found.startswith(f"--set {override}: not of the form a.b=value; write for example")

    def test_a_problem_names_the_command_line(self, tiny: Path) -> None:
        (found,) = problems_of(tiny, ["run.num_step=3"])

        assert found == "--set: run.num_step: unknown key; did you mean 'num_steps'?"


def everything(tiny: Path) -> Any:
    """A recipe with every optional table and a list in it."""
    tables = ["evaluation={}", "checkpoint={}", "profiler.ranks=[0]", "strategies.ac={}", "mesh.dp_shard=1"]
    return recipes.read(str(tiny), tables)


def test_the_resolved_recipe_reads_back_as_the_same_recipe(tiny: Path, recipe_file: Write) -> None:
    for name, recipe in {"full": everything(tiny)}.items() | {(name, recipes.read(name)) for name in recipes.shipped()}:
        again = recipes.read(str(recipe_file(recipes.to_toml(recipe), name=f"{name}.again.toml", alone=True)))

        assert recipes.resolved(again) == recipes.resolved(recipe), name
        assert all(getattr(again, f.name) == getattr(recipe, f.name) for f in fields(recipe)), name
        assert recipes.recipe_hash(again) == recipes.recipe_hash(recipe), name


def test_the_hash_depends_on_values_only(tiny: Path, recipe_file: Write) -> None:
    def reversed_text(tree: dict[str, Any], path: str = "") -> str:
        """The same tree as dotted keys, in the opposite order, with other spacing and a comment."""
        lines = [f"{where}   =   {value!r} # said otherwise" for where, value in recipes.flatten(tree) if value != {}]
        lines += [f"{where} = {{}}" for where, value in recipes.flatten(tree) if value == {}]
        return "\n\n".join(lines[::-1])

    plain = recipes.recipe_hash(recipes.read(str(tiny)))
    other = recipe_file(reversed_text(tomllib.loads(tiny.read_text())), name="other.toml", alone=True)

    assert recipes.recipe_hash(recipes.read(str(other))) == plain
    assert recipes.recipe_hash(recipes.read(str(tiny), ["run.seed=0"])) == plain  # a default, spelled out
    assert recipes.recipe_hash(recipes.read(str(tiny), ["run.seed=1"])) != plain


def test_a_diff_says_each_change_and_nothing_else(tiny: Path) -> None:
    before = recipes.read(str(tiny))
    after = recipes.read(
        str(tiny), ["run.num_steps=9", "strategies.clip=false", "strategies.accumulation={}", 'name="b"']
    )

    assert recipes.diff(before, before) == []
    assert recipes.diff(before, after) == [
        'name: "tiny" -> "b"',
        "run.num_steps: 8 -> 9",
        f"strategies.clip: {{{clip_said(before)}}} -> off",
        "strategies.accumulation: off -> {num_microbatches = 2}",
    ]
    assert len(recipes.diff(after, before)) == 4


def clip_said(recipe: Any) -> str:
    clip = recipes.resolved(recipe)["strategies"]["clip"]
    return ", ".join(f"{key} = {str(value).lower()}" for key, value in clip.items())


def typos(key: str, chance: random.Random) -> list[str]:
    """One of each kind of one-character mistake, at a random place."""
    at, letter = chance.randrange(len(key)), chance.choice(string.ascii_lowercase)
    swap = chance.randrange(len(key) - 1)
    made = [
        key[:at] + key[at + 1 :],
        key[:at] + letter + key[at:],
        key[:at] + letter + key[at + 1 :],
        key[:swap] + key[swap + 1] + key[swap] + key[swap + 2 :],
    ]
    return [typo for typo in made if typo and typo != key]


def key_lines(text: str) -> list[tuple[int, str]]:
    """(line, key) of every key and of every part of every table header."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines()):
        if line.startswith("["):
            found += [(number, part) for part in line.strip("[] ").split(".")]
        elif "=" in line and not line.startswith("#"):
            found.append((number, line.partition("=")[0].strip()))
    return found


def test_every_typo_in_the_demo_is_refused_and_nearly_every_one_understood(
    recipe_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipes.shipped()["demo"].read_text()
    chance, tried, understood = random.Random(0), 0, 0
    for number, key in key_lines(text):
        for typo in [made for _ in range(2) for made in typos(key, chance)]:
            lines = text.splitlines()
            lines[number] = lines[number].replace(key, typo, 1)

            code = main(["check", str(recipe_file("\n".join(lines), name="typo.toml", alone=True))])

            said = capsys.readouterr()
            assert code == 2, f"{key} -> {typo} was accepted"
            assert "error: " in said.err
            assert not said.out
            tried += 1
            understood += f"{typo}: unknown key; did you mean {key!r}?" in said.err
    assert tried > 200
    assert understood / tried >= 0.95, f"{understood} of {tried} typos were understood"


def test_a_value_may_hold_an_equals_sign_but_no_second_key(recipe_file: Any) -> None:
    path = recipe_file("[data.files]\npaths = ['x']\n")
    for value, shown in (("a=b", "'a=b'"), ("1\nfoo=2", r"'1\nfoo=2'")):
        with pytest.raises(UsageError, match=re.escape(f"run.device = {shown}")):
            recipes.read(str(path), [f"run.device={value}"])
