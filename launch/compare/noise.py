"""How step times scatter on real machines, as parameters, and experiments drawn from them.

Logarithm of a step time = effect of the arm + of the process (drawn anew at each start) + drift from segment to
segment + autocorrelated noise of the steps + now and then a slow step, or a whole disturbed segment. Small logarithmic
effects are relative ones: 0.01 is one percent.

Sources. Noise of steps: quantiles over 727 series of iteration times in Megatron-LM's golden values (robust deviation
0.39, 0.59, 1.0, 2.0, 7.3 percent and lag-1 correlation -0.13, -0.03, 0.19, 0.46, 0.69 at the quantiles 10, 25, 50, 75,
90). Deviation of processes, drift, slow steps: assumptions of an earlier simulation of designs; a drift of 1-2 percent
over the day is reported for Llama 3, of 1-3 percent for torchtitan.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS_PER_SEGMENT = 20
_CHUNK = 1000
"""Experiments drawn at a time, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Scatter of one machine; all sizes are relative."""

    step_sd: float = 0.010
    """Of a step in a quiet stretch, without slow steps."""
    correlation: float = 0.3
    """Of a step's noise with that of the next."""
    slow_step_share: float = 0.03
    slow_step_mean: float = 0.10
    """Slow steps take longer by an exponentially distributed share with this mean."""
    process_sd: float = 0.007
    """Of a process: what a start draws anew (memory layout, clocks, placement)."""
    drift_sd: float = 0.010
    """Of a random walk over the segments, at its end."""
    trend: float = 0.0
    """Change from the first segment to the last, in a line."""
    second_slower: float = 0.0
    """By how much the second segment of each pair is slower (heat, what the first one left in memory)."""
    disturbed_share: float = 0.0
    """Of the segments; they take longer as a whole (a neighbour's job)."""
    disturbed_mean: float = 0.10
    """By an exponentially distributed share with this mean."""
    disturbed_length: float = 1.0
    """Segments that a disturbance lasts, on average; its size stays."""
    slow_share: float = 0.0
    """Of the processes; from where their memory came to lie, say, they are slower by a fixed amount."""
    slow_by: float = 0.0
    """This amount."""
    toggle_sd_share: float = 0.23
    """Part of `process_sd` that stays with an arm when arms are toggled inside one process (deduced: toggled estimates
    scatter by 0.21 percent over 16 pairs where the steps alone explain 0.135)."""

    @property
    def pair_sd(self) -> float:
        """Of the difference of two neighbouring segments, undisturbed; by drawing, as a median has no closed form."""
        medians = segment_medians(self, np.random.default_rng(0), num_experiments=500, num_segments=32)
        differences = medians[:, 1::2] - medians[:, 0::2]
        low, high = np.quantile(differences, (0.1587, 0.8413))
        return float(high - low) / 2


NOISE_SETTINGS = {
    "quiet": NoiseModel(step_sd=0.0059, process_sd=0.003, drift_sd=0.005),
    "typical": NoiseModel(),
    "noisy": NoiseModel(step_sd=0.0196, correlation=0.46, process_sd=0.012, drift_sd=0.02),
    "very noisy": NoiseModel(step_sd=0.0728, correlation=0.69, process_sd=0.02, drift_sd=0.03),
    "trend": NoiseModel(trend=0.05),
    "second slower": NoiseModel(second_slower=0.01),
    "disturbed": NoiseModel(disturbed_share=0.10),
    "neighbours": NoiseModel(disturbed_share=0.25, disturbed_length=4),
}
"""From the quiet quarter of the series to the tenth with the most noise; then typical noise and one more trouble."""

TWO_SPEEDS = {
    "1 in 4 by 5 %": NoiseModel(step_sd=0.001, process_sd=0.001, drift_sd=0.0, slow_share=0.25, slow_by=0.05),
    "3 in 10 by 10 %": NoiseModel(step_sd=0.001, process_sd=0.001, drift_sd=0.0, slow_share=0.30, slow_by=0.10),
    "4 in 10 by 26 %": NoiseModel(step_sd=0.001, process_sd=0.001, drift_sd=0.0, slow_share=0.40, slow_by=0.26),
    "half by 5 %, typical": NoiseModel(slow_share=0.50, slow_by=0.05),
}
"""Processes that fall into two heaps, so that the pairs fall into three."""


def steps(noise: NoiseModel, generator: np.random.Generator, *shape: int) -> Array:
    """Noise of the steps alone; the last axis is time."""
    drawn = generator.standard_normal(shape)
    fresh = math.sqrt(1 - noise.correlation**2)
    for step in range(1, shape[-1]):
        drawn[..., step] = noise.correlation * drawn[..., step - 1] + fresh * drawn[..., step]
    drawn *= noise.step_sd
    slow = generator.random(shape) < noise.slow_step_share
    drawn[slow] += generator.exponential(noise.slow_step_mean, int(slow.sum()))
    return drawn


def machine(noise: NoiseModel, generator: np.random.Generator, num_experiments: int, num_segments: int) -> Array:
    """What the machine does over the segments of an experiment, whatever runs in them: drift, trend, disturbances."""
    shape = (num_experiments, num_segments)
    drift = np.cumsum(generator.standard_normal(shape), axis=1) * (noise.drift_sd / math.sqrt(num_segments))
    drift += noise.trend * np.linspace(0, 1, num_segments)
    drift[:, 1::2] += noise.second_slower
    return drift + disturbances(noise, generator, shape) if noise.disturbed_share else drift


def disturbances(noise: NoiseModel, generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    """How much longer each segment takes because of disturbances, which come and go as a Markov chain."""
    ends = 1 / noise.disturbed_length
    begins = ends * noise.disturbed_share / (1 - noise.disturbed_share)
    sizes, found = generator.exponential(noise.disturbed_mean, shape), np.zeros(shape)
    disturbed = generator.random(shape[0]) < noise.disturbed_share
    size = np.where(disturbed, sizes[:, 0], 0.0)
    found[:, 0] = size
    for segment in range(1, shape[1]):
        drawn = generator.random(shape[0])
        stays = disturbed & (drawn >= ends)
        disturbed = stays | (~disturbed & (drawn < begins))
        size = np.where(stays, size, np.where(disturbed, sizes[:, segment], 0.0))
        found[:, segment] = size
    return found


def segment_medians(
    noise: NoiseModel,
    generator: np.random.Generator,
    *,
    num_experiments: int,
    num_segments: int,
    steps_per_segment: int = STEPS_PER_SEGMENT,
) -> Array:
    """Logarithm of each segment's median step, every segment a fresh process: (experiments, segments)."""
    found = machine(noise, generator, num_experiments, num_segments)
    found += noise.process_sd * generator.standard_normal(found.shape)
    if noise.slow_share:
        found += math.log1p(noise.slow_by) * (generator.random(found.shape) < noise.slow_share)
    for start in range(0, num_experiments, _CHUNK):
        part = found[start : start + _CHUNK]
        part += np.median(steps(noise, generator, *part.shape, steps_per_segment), axis=-1)
    return found


def paired_differences(medians: Array, generator: np.random.Generator) -> Array:
    """Candidate minus baseline for each pair of neighbouring segments, in balanced random order: (experiments, pairs).

    Two arms of equal speed; add the logarithm of a ratio for another.
    """
    second_minus_first = medians[:, 1::2] - medians[:, 0::2]
    num_experiments, num_pairs = second_minus_first.shape
    sign = np.repeat(generator.choice((-1.0, 1.0), (num_experiments, (num_pairs + 1) // 2)), 2, axis=1)
    sign[:, 1::2] *= -1
    return second_minus_first * sign[:, :num_pairs]
