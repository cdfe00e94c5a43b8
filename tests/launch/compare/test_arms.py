import dataclasses
import itertools
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stepladder.launch import recipe as recipes
from stepladder.launch.compare.arms import ArmSpec, changes_of_table, parse_arm, read_arms, split_changes
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan

Write = Callable[..., Path]
PLAN = partial(make_plan, num_gpus=0)


def problems(recipe: Path, *arms: str, **more: object) -> list[str]:
    """Everything that is wrong with these arms."""
    with pytest.raises(UsageError) as caught:
        read_arms(str(recipe), [parse_arm(each) for each in arms], PLAN, **more)  # type: ignore[arg-type]
    return list(caught.value.problems)


def test_an_arm_is_a_name_and_changes_or_a_recipe() -> None:
    found = parse_arm("fast=strategies.amp={},batch.microbatch_size=2")
    assert found == ArmSpec(name="fast", changes=("strategies.amp={}", "batch.microbatch_size=2"))
    assert parse_arm("other=demo.toml") == ArmSpec(name="other", recipe="demo.toml")
    for wrong in ("fast", "fast=", "=", ""):
        with pytest.raises(UsageError, match=re.escape("NAME=a.b=value")):
            parse_arm(wrong)


def test_commas_in_brackets_and_quotes_belong_to_the_value() -> None:
    parts = ["a.b=1", "c=[1, 2, 3]", "d='x,y'", 'e="[,"', "f={g = 1, h = [2, 3]}", "i=true"]
    for order in itertools.permutations(parts, 3):
        assert split_changes(",".join(order)) == list(order)
        assert split_changes(" , ".join(order) + ",") == list(order)


def test_a_table_says_the_same_as_overrides(tiny: Path) -> None:
    table = {
        "strategies": {"ac": {}, "clip": {"max_norm": 0.5, "norm_type": "inf"}},
        "run": {"deterministic": True, "seed": 3},
        "model": {"decoder": {"vocab_size": 300}},
    }
    changed = recipes.read(str(tiny), changes_of_table(table))
    assert changed.strategies.ac is not None
    assert (changed.strategies.clip.max_norm, changed.strategies.clip.norm_type) == (0.5, "inf")
    assert (changed.run.deterministic, changed.run.seed) == (True, 3)
    assert changed.model.chosen.vocab_size == 300


def test_any_value_of_a_table_is_written_so_that_toml_reads_it_back() -> None:
    texts = ("plain", "it's", 'a "quoted", name', 'one " and, more', "back\\")
    for value in (True, 3, 2.5, [1, [2, 3]], ["a,b", "c"], {}, *texts):
        (change,) = changes_of_table({"a": {"b": value}})
        assert tomllib.loads(change)["a"]["b"] == value
        assert split_changes(change) == [change]


def test_the_baseline_is_the_recipe_itself_and_comes_first(tiny: Path, recipe_file: Write) -> None:
    other = recipe_file("[strategies.ac]\n", name="other.toml")
    specs = [parse_arm("clip=strategies.clip=false"), parse_arm(f"file={other}")]
    arms = read_arms(str(tiny), specs, PLAN, overrides=["run.gc_every=7"])
    assert [arm.name for arm in arms] == ["baseline", "clip", "file"]
    assert all(arm.recipe.run.gc_every == 7 for arm in arms)
    assert arms[0].changes == ()
    assert arms[1].changes == ("strategies.clip: {max_norm = 1.0, norm_type = 2} -> off",)
    assert arms[2].recipe.strategies.ac is not None


def test_microbatches_with_accumulation_are_the_same_workload(tiny: Path) -> None:
    arm = parse_arm("half=batch.microbatch_size=2,strategies.accumulation.num_microbatches=2")
    _, half = read_arms(str(tiny), [arm], PLAN)
    assert half.plan.tokens_per_step == 4 * 32


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("batch.microbatch_size=2", "batch.microbatch_size"),
        ("batch.sequence_length=16", "batch.sequence_length"),
        ("model.decoder.dim=64", "model.decoder.dim"),
        ("data.synthetic.num_samples=32", "data.synthetic.num_samples"),
        ("run.seed=1", "run.seed"),
        ("run.num_steps=9", "run.num_steps"),
        ("evaluation.every=5", "evaluation"),
    ],
)
def test_another_workload_is_refused_unless_it_is_declared(tiny: Path, change: str, key: str) -> None:
    found = problems(tiny, f"arm={change}")
    assert any(f"--changes-workload {key}" in each for each in found), found
    if key == "evaluation":
        return  # it is left out of what is measured, so that nothing remains that could be declared
    keys = [key] if key != "batch.sequence_length" else [key, "batch"]
    arms = read_arms(str(tiny), [parse_arm(f"arm={change}")], PLAN, changes_workload=keys)
    assert len(arms) == 2


def test_other_ranks_are_refused_unless_they_are_declared(tiny: Path) -> None:
    arm = "two=run.cpu_ranks=2,strategies.ddp={},batch.microbatch_size=2"
    (found,) = problems(tiny, arm)
    assert "runs on 2 x cpu, the baseline on 1 x cpu" in found
    assert len(read_arms(str(tiny), [parse_arm(arm)], PLAN, changes_workload=["run.cpu_ranks"])) == 2


def test_all_that_is_wrong_is_said_at_once(tiny: Path) -> None:
    found = problems(
        tiny,
        "nothing=run.log_every=1",
        "unmeasured=checkpoint.every=3",
        "tokens=batch.microbatch_size=8",
        "refused=strategies.pp={}",
        "unknown=strategies.acc={}",
        "baseline=run.gc_every=3",
        "bad name=run.gc_every=4",
        "one=run.gc_every=5",
        "same=run.gc_every=5",
        "ONE=run.gc_every=6",
        changes_workload=["data"],
    )
    said = "\n".join(found)
    assert "arm nothing: differs from the baseline in nothing" in said
    assert "arm unmeasured: differs only in checkpoint, which the measured steps leave out" in said
    assert "arm tokens: 256 tokens per step, the baseline has 128; " in said
    assert "arm refused: " in said
    assert "did you mean 'ac'" in said
    assert "arm baseline: is the recipe itself" in said
    assert "arm 'bad name': not a name" in said
    assert "arm same: is the same as arm one" in said
    assert "arm ONE: is the name of another arm" in said
    assert "--changes-workload data: no arm changes it" in said
    assert len(found) == len(set(found))


def test_the_way_out_of_other_tokens_is_the_number_of_microbatches_that_gives_them(tiny: Path) -> None:
    (found,) = problems(tiny, "small=batch.microbatch_size=1")
    assert "set strategies.accumulation.num_microbatches = 4, or declare" in found


def test_what_is_wrong_with_the_baseline_is_said_once(recipe_file: Write) -> None:
    broken = recipe_file("[strategies.acc]\n")
    found = problems(broken, "a=run.gc_every=3", "b=run.gc_every=4")
    assert len(found) == 1
    assert "did you mean 'ac'" in found[0]


def test_a_comparison_needs_an_arm(tiny: Path) -> None:
    assert "nothing to compare" in problems(tiny)[0]


def test_an_arm_cannot_be_changed(tiny: Path) -> None:
    arm = read_arms(str(tiny), [parse_arm("a=run.gc_every=3")], PLAN)[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        arm.name = "b"  # type: ignore[misc]
