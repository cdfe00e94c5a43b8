"""Arms that are the same training pass the check that their changes ask for; planted errors are found by it."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from guard_plants import (
    InProcess,
    Tamper,
    dropped_gradient,
    dropped_microbatch,
    faster_learning,
    none,
    stale_weight_once,
    without_causal_mask,
    wrong_loss_scale,
)

from stepladder.launch.compare.guard import Effort, GuardResult, Tier, check_parity
from stepladder.launch.compare.guard_claims import at_float32, differences
from stepladder.launch.compare.guard_runs import RunError, Task
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import parse
from stepladder.launch.schema import Recipe
from stepladder.strategies.changes import Changes

BASE: dict[str, Any] = {
    "run": {"num_steps": 12, "device": "cpu"},
    "model": {
        "decoder": {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 32, "vocab_size": 32}
    },
    "data": {"synthetic": {"num_samples": 8}},
    "batch": {"microbatch_size": 2, "sequence_length": 16},
    "strategies": {"adamw": {"learning_rate": 1e-2}, "clip": {}, "accumulation": {}},
}
EFFORT = Effort(num_steps=8, bias_steps=12, seeds=4)
PLAN = partial(make_plan, num_gpus=0, num_ranks=1, started=True)
ERRORS: dict[str, Tamper] = {
    "learning rate": faster_learning(1.02),
    "dropped microbatch": dropped_microbatch,
    "dropped gradient": dropped_gradient,
    "loss scale": wrong_loss_scale(2.0),
    "causal mask": without_causal_mask,
    "stale weight": stale_weight_once,
}


def recipe(**strategies: Any) -> Recipe:
    return parse(BASE | {"strategies": BASE["strategies"] | strategies}, {})


def guard(arm: Recipe, *, tamper: Tamper = none, baseline: Recipe | None = None, asked: Any = None) -> GuardResult:
    base = recipe() if baseline is None else baseline
    return check_parity(base, arm, run=InProcess(tamper, asked), effort=EFFORT, plan=PLAN)


def test_what_may_change_nothing_gives_the_same_bits() -> None:
    arm = recipe(ac={"mode": "selective"})
    found = guard(replace(arm, run=replace(arm.run, gc_every=3)))
    assert (found.tier, found.passed) == (Tier.BITWISE, True), found.sentence
    assert "the same bits: 8 losses" in found.sentence


def test_other_microbatches_of_the_same_step_round_elsewhere_and_pass_at_float32() -> None:
    arm = parse(BASE | {"batch": BASE["batch"] | {"microbatch_size": 1}}, {})
    arm = replace(arm, strategies=recipe(accumulation={"num_microbatches": 4}, chunked_loss={}).strategies)
    found = guard(arm)
    assert (found.tier, found.passed) == (Tier.FLOAT32, True), found.sentence
    losses = next(check for check in found.checks if check.what == "losses")
    assert 0 < losses.found < losses.allowed


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("change", ["bitwise", "float32"])
def test_an_error_in_the_arm_makes_it_another_training(error: str, change: str) -> None:
    arm = recipe(ac={}) if change == "bitwise" else recipe(chunked_loss={"num_chunks": 4})
    found = guard(arm, tamper=ERRORS[error])
    assert not found.passed
    assert found.checked
    assert found.sentence.startswith("not the same training: ")


def test_bf16_passes_the_bias_test() -> None:
    found = guard(recipe(amp={}))
    assert (found.tier, found.passed) == (Tier.BIAS, True), found.sentence
    assert {bias.what for bias in found.biases} == {"loss", "length of the gradient", "length of the update"}
    assert "of 4 seeds" in found.sentence or "of 8 seeds" in found.sentence


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_beside_bf16_is_found_before_any_seed_is_spent(error: str) -> None:
    asked: list[Task] = []
    found = guard(recipe(amp={}), tamper=ERRORS[error], asked=asked)
    assert not found.passed
    assert {task.num_steps for task in asked} == {EFFORT.num_steps}


def test_an_error_that_begins_later_is_found_over_seeds() -> None:
    found = guard(recipe(amp={}), tamper=faster_learning(1.3, after=EFFORT.num_steps))
    assert not found.passed
    assert [bias.what for bias in found.biases if bias.refuted][-1:] == ["length of the update"]


def test_the_learning_rate_is_another_training_by_declaration_and_nothing_is_run() -> None:
    asked: list[Task] = []
    found = guard(recipe(adamw={"learning_rate": 1.02e-2}), asked=asked)
    assert (found.tier, found.passed, asked) == (Tier.NONE, False, [])
    assert "strategies.adamw.learning_rate may change the algorithm" in found.sentence


def test_tokens_per_step_the_seed_and_the_model_are_another_training() -> None:
    for table, changed in (
        ("batch", {"microbatch_size": 4}),
        ("run", {"seed": 1}),
        ("model", {"decoder": BASE["model"]["decoder"] | {"num_layers": 1}}),
    ):
        arm = parse(BASE | {table: BASE[table] | changed}, {})
        assert guard(arm).tier == Tier.NONE, table


def test_a_difference_of_the_bits_names_the_first_step_that_has_one() -> None:
    found = guard(recipe(ac={}), tamper=stale_weight_once)
    assert "losses that differ (step 6 on): 3, allowed 0" in found.sentence, found.sentence


def test_at_float32_a_recipe_keeps_everything_but_its_precision() -> None:
    narrow = recipe(amp={"dtype": "bf16"}, chunked_loss={}, adamw={"state": "8bit"}, matmul_precision={})
    wide = at_float32(narrow)
    assert (wide.strategies.amp, wide.strategies.matmul_precision) == (None, None)
    assert wide.strategies.adamw == replace(narrow.strategies.adamw, state="float32")
    assert wide.strategies.chunked_loss == narrow.strategies.chunked_loss
    sharded = recipe(fsdp2={"param_dtype": "bf16", "reduce_dtype": "bf16", "prefetch": 2})
    assert at_float32(sharded).strategies.fsdp2 == replace(
        sharded.strategies.fsdp2, param_dtype="float32", reduce_dtype="float32"
    )


def test_a_deep_model_is_checked_with_a_few_of_its_blocks_but_keeps_its_depth_where_bits_count() -> None:
    deep = BASE | {"model": {"decoder": BASE["model"]["decoder"] | {"num_layers": 6}}}
    for strategies, depth in (({"chunked_loss": {}}, 4), ({"ac": {}}, 6)):
        asked: list[Task] = []
        arm = parse(deep | {"strategies": BASE["strategies"] | strategies}, {})
        assert guard(arm, baseline=parse(deep, {}), asked=asked).passed
        assert {task.recipe.model.chosen.num_layers for task in asked} == {depth}


def test_every_difference_is_a_claim_with_its_key() -> None:
    arm = recipe(amp={}, accumulation={"num_microbatches": 4})
    arm = replace(arm, batch=replace(arm.batch, microbatch_size=1), run=replace(arm.run, log_every=1))
    found = {claim.key: claim.changes for claim in differences(PLAN(recipe()), PLAN(arm))}
    assert found == {
        "strategies.amp": Changes.PRECISION,
        "strategies.accumulation.num_microbatches": Changes.REDUCTION_ORDER,
        "batch.microbatch_size": Changes.REDUCTION_ORDER,
        "run.log_every": Changes.NOTHING,
    }


def test_a_run_that_fails_leaves_an_arm_that_was_not_checked() -> None:
    def fail(task: Task) -> Any:
        raise RunError("a run of the arm failed (out of memory); see runs/guard")

    found = check_parity(recipe(), recipe(ac={}), run=fail, effort=EFFORT, plan=PLAN)
    assert (found.passed, found.checked) == (False, False)
    assert found.sentence == "not checked: a run of the arm failed (out of memory); see runs/guard"


def test_a_result_is_json() -> None:
    found = guard(recipe(chunked_loss={}), tamper=wrong_loss_scale(float("inf")))
    told = json.loads(json.dumps(found.json(), allow_nan=False))
    assert told["claims"] == {"strategies.chunked_loss": "the order of sums"}
    assert not told["passed"]


def test_a_recipe_that_cannot_run_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="ddp"):
        guard(recipe(ddp={}, fsdp2={}))
