"""The bias test lets arms without bias pass, lets biased ones pass no more often than it says, and tells its power."""

import math
import statistics
from typing import Any

import numpy as np
import pytest

from stepladder.launch import testimony
from stepladder.launch.compare.guard_bias import ALPHA, LIMITS, NUM_LOOKS, Bias, _bias, biases
from stepladder.launch.compare.quantiles import student_quantile
from stepladder.strategies.changes import Changes

LIMIT = LIMITS[Changes.PRECISION]


def told(losses: Any, *, norm: float | None = 1.0, update: float = 1.0) -> testimony.Testimony:
    def weights(value: float) -> testimony.Fingerprints:
        return testimony.Fingerprints(digests={"w": str(value)}, sketches={"w": (value, 0.0)})

    norms = (norm,) * len(losses)
    return testimony.Testimony(
        losses=tuple(losses),
        grad_norms=norms,
        initial=weights(0.0),
        gradients=weights(1.0),
        final=weights(update),
        drifted=(),
    )


def pairs(biases: list[float], **arm: Any) -> list[tuple[testimony.Testimony, testimony.Testimony]]:
    """Seeds whose losses differ by 1 %, and arms that are off by the given share from the third of four steps on."""
    found = []
    for i, bias in enumerate(biases):
        base = [4.0, 3.5, 3.0 + 0.03 * i, 2.9 + 0.03 * i]
        found.append((told(base), told([9.0, 9.0, *(math.exp(bias) * each for each in base[2:])], **arm)))
    return found


def by_name(found: Any) -> dict[str, Bias]:
    return {bias.what: bias for bias in found}


def test_the_bias_is_the_mean_log_ratio_of_the_second_half_over_seeds_with_its_t_interval() -> None:
    values = [1e-4, 3e-4, -2e-4, 2e-4]
    loss = by_name(biases(pairs(values), LIMIT, alpha=0.025))["loss"]
    assert loss.mean == pytest.approx(statistics.fmean(values))
    assert loss.reach == pytest.approx(student_quantile(0.025, 3) * statistics.stdev(values) / 2)
    assert loss.num_seeds == 4


def test_the_margin_is_what_other_seeds_do_within_its_limits() -> None:
    wide = by_name(biases(pairs([0.0, 1e-5]), LIMIT, alpha=0.025))["loss"]
    assert wide.margin == pytest.approx(10 * LIMIT.loss)
    equal = [(told([2.0, 2.0]), told([2.0, 2.0]))] * 3
    assert by_name(biases(equal, LIMIT, alpha=0.025))["loss"].margin == LIMIT.loss


def test_a_small_bias_that_is_certain_fails_although_other_seeds_do_more() -> None:
    loss = by_name(biases(pairs([1e-3, 1.01e-3, 0.99e-3]), LIMIT, alpha=0.025))["loss"]
    assert loss.refuted
    assert not loss.shown
    assert abs(loss.mean) + loss.reach < loss.margin


def test_gradients_of_another_scale_and_updates_of_another_length_are_found() -> None:
    for arm, what in (({"norm": 2.0}, "length of the gradient"), ({"update": 1.02}, "length of the update")):
        found = by_name(biases(pairs([0.0, 1e-6, -1e-6], **arm), LIMIT, alpha=0.025))
        assert found["loss"].shown
        assert found[what].refuted


def test_gradients_that_nobody_could_measure_are_left_out() -> None:
    found = by_name(biases(pairs([0.0, 1e-6], norm=None), LIMIT, alpha=0.025))
    assert found.keys() == {"loss", "length of the update"}


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
def test_losses_that_are_no_positive_numbers_fail(loss: float) -> None:
    base, arm = told([2.0, 2.0]), told([2.0, loss])
    found = by_name(biases([(base, base), (base, arm)], LIMIT, alpha=0.025))["loss"]
    assert found.refuted
    assert not found.shown


def passing(sd: float, bias: float, seeds: int, experiments: int = 1500) -> tuple[float, float]:
    """Shares of simulated arms that pass, and that a single look with all of the error would let pass."""
    values = np.random.default_rng(1).normal(bias, sd, (experiments, NUM_LOOKS * seeds)).tolist()
    zeros, passed, once = [0.0] * NUM_LOOKS * seeds, 0, 0
    for each in values:
        for look in range(1, NUM_LOOKS + 1):
            found = _bias("loss", zeros[: look * seeds], each[: look * seeds], LIMIT.loss, ALPHA / NUM_LOOKS)
            if found.shown or found.refuted:
                passed += found.shown
                break
        once += _bias("loss", zeros[:seeds], each[:seeds], LIMIT.loss, ALPHA / NUM_LOOKS).shown
    return passed / experiments, once / experiments


@pytest.mark.parametrize("sd", [2e-5, 2e-4])
def test_an_arm_whose_bias_is_the_margin_passes_in_five_of_a_hundred_cases_at_most(sd: float) -> None:
    passed, _ = passing(sd, LIMIT.loss, seeds=4)
    assert passed <= ALPHA + 3 * math.sqrt(ALPHA / 1500)


def test_the_power_that_is_told_is_that_of_simulated_arms_without_bias() -> None:
    sd = 2e-4
    reach = student_quantile(ALPHA / NUM_LOOKS, 3) * sd / 2
    power = Bias(
        what="loss", mean=0, reach=reach, negligible=LIMIT.loss, margin=LIMIT.loss, sd=sd, num_seeds=4
    ).passes_if_unbiased
    _, seen = passing(sd, 0.0, seeds=4)
    assert power == pytest.approx(seen, abs=0.08)
    assert passing(sd, 0.0, seeds=4)[0] > 0.95
