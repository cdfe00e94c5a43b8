"""Learning rates against closed forms, at every step and every corner."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from stepladder.strategies.base import Program, Run
from stepladder.strategies.schedule import Schedule


def rates(schedule: Schedule, num_steps: int) -> list[float]:
    return [schedule.multiplier(step, num_steps) for step in range(num_steps)]


def test_warm_up_is_a_straight_line_from_its_first_step_to_the_peak() -> None:
    for kind in ("warmup-stable-decay", "cosine", "linear"):
        found = rates(Schedule(kind=kind, warmup_steps=4), 40)  # pyright: ignore
        assert found[:4] == [0.25, 0.5, 0.75, 1.0]
        assert max(found) == 1.0
    assert rates(Schedule(kind="warmup-stable-decay", warmup_steps=1), 20)[0] == 1.0


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_and_linear_fall_from_the_peak_to_the_final_fraction(warmup: int, final: float) -> None:
    num_steps = 25
    cosine = rates(Schedule(warmup_steps=warmup, final_fraction=final), num_steps)
    linear = rates(Schedule(kind="linear", warmup_steps=warmup, final_fraction=final), num_steps)
    falling = num_steps - warmup
    for step in range(warmup, num_steps):
        done = (step - warmup + 1) / falling
        assert linear[step] == pytest.approx(1 - (1 - final) * done)
        assert cosine[step] == pytest.approx(final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    assert cosine[-1] == pytest.approx(final, abs=1e-12)
    assert linear[-1] == pytest.approx(final, abs=1e-12)


@pytest.mark.parametrize(("decay", "length"), [(None, 4), (1, 1), (10, 10), (35, 35)])
def test_warmup_stable_decay_holds_the_peak_and_falls_at_the_end(decay: int | None, length: int) -> None:
    num_steps, warmup = 40, 5
    schedule = Schedule(kind="warmup-stable-decay", warmup_steps=warmup, decay_steps=decay, final_fraction=0.2)
    found = rates(schedule, num_steps)
    assert found[warmup : num_steps - length] == [1.0] * (num_steps - length - warmup)
    assert found[num_steps - length :] == pytest.approx([1 - 0.8 * (i + 1) / length for i in range(length)])
    assert found[-1] == pytest.approx(0.2)


def test_short_runs_and_steps_beyond_the_end_stay_in_range() -> None:
    for kind in ("warmup-stable-decay", "cosine", "linear"):
        for num_steps in (1, 2, 3, 10):
            for warmup in range(num_steps):
                schedule = Schedule(kind=kind, warmup_steps=warmup)  # pyright: ignore
                found = [schedule.multiplier(step, num_steps) for step in range(num_steps + 5)]
                assert all(0.0999 <= rate <= 1.0 for rate in found[warmup:]), (kind, num_steps, warmup)
                assert found[num_steps - 1 :] == pytest.approx([0.1] * 6), (kind, num_steps, warmup)


@pytest.mark.parametrize(("reference", "scale"), [(None, 1.0), (1000, 1.0), (250, 4.0), (4000, 0.25)])
def test_the_rate_scales_with_the_batch(
    reference: int | None, scale: float, make_program: Callable[..., Program], make_run: Callable[..., Run]
) -> None:
    schedule = Schedule(warmup_steps=3, reference_tokens_per_step=reference)
    run: Any = make_run(num_steps=10, tokens_per_step=1000)
    rate = schedule.apply(make_program(device="meta"), run).learning_rate
    assert [rate(step) for step in range(10)] == pytest.approx([scale * each for each in rates(schedule, 10)])


def test_without_a_schedule_the_rate_is_constant(make_program: Callable[..., Program]) -> None:
    assert {make_program(device="meta").learning_rate(step) for step in range(5)} == {1.0}
