"""A recipe with mistakes is looked through to its end: all problems at once, none that only follows from another."""

import tomllib
from typing import Any

import pytest

from stepladder.launch.drafts import with_further_problems
from stepladder.launch.errors import RecipeError, UsageError
from stepladder.launch.plan import Plan, make_plan
from stepladder.launch.recipe import parse
from stepladder.launch.schema import Recipe

SOUND = """
[run]
num_steps = 50
cpu_ranks = 2
[model.decoder]
[data.synthetic]
[batch]
microbatch_size = 8
sequence_length = 32
tokens_per_step = 512
[strategies.ddp]
[strategies.adamw]
[strategies.schedule]
warmup_steps = 10
"""


def problems(text: str) -> list[str]:
    def plan(recipe: Recipe) -> Plan:
        return make_plan(recipe, num_gpus=0)

    try:
        plan(parse(tomllib.loads(text), {}))
    except RecipeError as error:
        return list(with_further_problems(error, plan).problems)
    except UsageError as error:
        return list(error.problems)
    return []


def test_the_sound_recipe_has_no_problem() -> None:
    assert problems(SOUND) == []


def test_mistakes_of_every_kind_are_told_together() -> None:
    text = SOUND.replace("num_steps = 50", "num_steps = 5\nlog_evry = 1")
    text = text.replace("[model.decoder]", "[model.decoder]\ndim = 100\nnum_heads = 8")
    text = text.replace("[strategies.ddp]", "[strategies.ddp]\nbucket_mib = 0\n[strategies.fsdp2]\nprefetch = 40")
    text = text.replace("[strategies.adamw]", "[strategies.adamw]\nlearning_rate = 'high'")

    found = problems(text)

    for part in ("log_evry", "dim = 100", "bucket_mib = 0", "learning_rate = 'high'", "each wants to own", "prefetch"):
        assert sum(part in each for each in found) == 1, f"{part}: {found}"
    assert sum("warmup_steps = 10" in each for each in found) == 1
    assert len(found) == 7


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("microbatch_size = 8", "microbatch_size = '8'"),  # else: the product is not tokens_per_step
        ("microbatch_size = 8", "microbatch_siz = 8\nmicrobatch_size = 0"),
        ("num_steps = 50", "num_step = 9"),
        ("warmup_steps = 10", "warmup_steps = 'ten'"),
        ("[strategies.ddp]", "[strategies.dpd]"),  # else: nobody owns the axis
        ("[strategies.adamw]", "[strategies.adamv]"),  # else: nobody owns the optimizer
        ("cpu_ranks = 2", "cpu_ranks = 0"),  # else: the product is not tokens_per_step
    ],
)
def test_what_follows_from_a_mistake_is_not_told_as_another(before: str, after: str) -> None:
    found = problems(SOUND.replace(before, after))

    expected = after.count("\n") + 1
    assert len(found) == expected, found


def test_a_recipe_without_a_model_still_tells_what_it_can(stepladder: Any, tmp_path: Any) -> None:
    (tmp_path / "r.toml").write_text("[data.synthetic]\n[run]\nnum_steps = 'x'\n")

    answer = stepladder("check", "r.toml", cwd=tmp_path)

    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 2
    assert "Traceback" not in answer.stderr
