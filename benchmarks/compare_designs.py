"""How else two arms are compared: designs in use, run on the same noise as ours. Each says which experiments differ."""

import math
from collections.abc import Callable

import numpy as np

from stepladder.launch.compare.estimate import Array
from stepladder.launch.compare.noise import STEPS_PER_SEGMENT, NoiseModel, machine, segment_medians, steps
from stepladder.launch.compare.quantiles import student_quantile
from stepladder.launch.compare.sequential import Protocol

ALPHA = 0.05
SEGMENTS_EACH = 8
"""Length of one long run of an arm, in segments."""
PAIRS = 16
THRESHOLD = 0.05

Design = Callable[[NoiseModel, np.random.Generator, int], Callable[[float], Array]]
"""Draws experiments of two equal arms; the result tells which find a difference, given an effect to be added."""


def paired_t(differences: Array) -> Callable[[float], Array]:
    """Student's t-test over the pairs."""
    num_pairs = differences.shape[1]
    centre, sd = differences.mean(axis=1), differences.std(axis=1, ddof=1)
    limit = student_quantile(ALPHA / 2, num_pairs - 1) * sd / math.sqrt(num_pairs)
    return lambda effect: np.abs(centre + effect) > limit


def long_runs(noise: NoiseModel, generator: np.random.Generator, num_experiments: int) -> tuple[Array, Array]:
    """Log step times of one long run of A, then one of B: (experiments, steps) each."""
    level = machine(noise, generator, num_experiments, 2 * SEGMENTS_EACH)
    level += np.repeat(noise.process_sd * generator.standard_normal((num_experiments, 2)), SEGMENTS_EACH, axis=1)
    times = np.repeat(level, STEPS_PER_SEGMENT, axis=1)
    half = times.shape[1] // 2
    a, b = (steps(noise, generator, num_experiments, half) for _ in "AB")
    return times[:, :half] + a, times[:, half:] + b


def a_then_b(noise: NoiseModel, generator: np.random.Generator, num_experiments: int) -> Callable[[float], Array]:
    """One run of A, one of B, Welch's t-test over the steps (as many as eight segments each)."""
    a, b = long_runs(noise, generator, num_experiments)
    error = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / a.shape[1])
    centre, limit = b.mean(axis=1) - a.mean(axis=1), student_quantile(ALPHA / 2, 2 * a.shape[1] - 2)
    return lambda effect: np.abs(centre + effect) > limit * error


def threshold(noise: NoiseModel, generator: np.random.Generator, num_experiments: int) -> Callable[[float], Array]:
    """One run of A, one of B, the medians of the steps further apart than 5 percent."""
    a, b = long_runs(noise, generator, num_experiments)
    centre = np.median(b, axis=1) - np.median(a, axis=1)
    return lambda effect: np.abs(np.expm1(centre + effect)) > THRESHOLD


def toggled(noise: NoiseModel, generator: np.random.Generator, num_experiments: int) -> Callable[[float], Array]:
    """Arms switched inside one process, 16 pairs in balanced random order, t-test over pairs.

    Nothing is started anew, so that what the process has drawn for each arm stays, however many pairs are taken.
    """
    medians = machine(noise, generator, num_experiments, 2 * PAIRS)
    medians += np.median(steps(noise, generator, *medians.shape, STEPS_PER_SEGMENT), axis=-1)
    stays = noise.toggle_sd_share * noise.process_sd * generator.standard_normal((num_experiments, 1))
    sign = np.repeat(generator.choice((-1.0, 1.0), (num_experiments, PAIRS // 2)), 2, axis=1)
    sign[:, 1::2] *= -1
    return paired_t((medians[:, 1::2] - medians[:, 0::2]) * sign + stays)


def fixed_order(noise: NoiseModel, generator: np.random.Generator, num_experiments: int) -> Callable[[float], Array]:
    """Fresh processes, 16 pairs, A always first, t-test over pairs."""
    medians = segment_medians(noise, generator, num_experiments=num_experiments, num_segments=2 * PAIRS)
    return paired_t(medians[:, 1::2] - medians[:, 0::2])


def peeking(differences: Array, protocol: Protocol) -> Callable[[float], Array]:
    """Our pairs, and a t-test at 5 percent at each look, the first one that says so wins."""
    tests = [paired_t(differences[:, :num_pairs]) for num_pairs in protocol.looks]
    return lambda effect: np.any([test(effect) for test in tests], axis=0)


NAIVE: dict[str, Design] = {
    "A then B, t over steps": a_then_b,
    "A then B, 5% threshold": threshold,
    "toggled in one process": toggled,
    "fixed order A B": fixed_order,
}
