"""Whether comparisons can be believed: simulated experiments with the noise of real machines, and usual designs beside.

`simulation` (default, about a minute on one core): 10,000 experiments of equal arms for each noise setting, with drift
and autocorrelation: false verdicts, power, cost with early stopping, coverage of the interval, the minimum detectable
effect put to the test, several arms. Writes results/compare_simulation.json; the last line is the verdict.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from compare_designs import NAIVE, peeking

from stepladder.launch.compare.calibration import CALIBRATION_PAIRS, Calibration
from stepladder.launch.compare.estimate import Array, bootstrap_interval, centre_and_error
from stepladder.launch.compare.noise import NOISE_SETTINGS, TWO_SPEEDS, NoiseModel, paired_differences, segment_medians
from stepladder.launch.compare.power import minimum_detectable_effect
from stepladder.launch.compare.quantiles import student_quantile
from stepladder.launch.compare.sequential import Found, Looks, Outcomes, Protocol, Scales, decide, measure, noise_floor

EXPERIMENTS = 10_000
EFFECTS = (0.01, 0.02, 0.03, 0.05)
FALSE_VERDICTS_ALLOWED = 0.05
POWER_WANTED = 0.90
"""At 3 percent with typical noise."""
FOUND_AT_MINIMUM = 0.80
"""At the minimum detectable effect, in every kind of noise."""
CANDIDATES = 3
COVERAGE_EXPERIMENTS = 1000
RESULTS = Path(__file__).resolve().parent / "results"


def draw(noise: NoiseModel, generator: np.random.Generator, num_pairs: int) -> Array:
    """Differences of the pairs of experiments with equal arms."""
    medians = segment_medians(noise, generator, num_experiments=EXPERIMENTS, num_segments=2 * num_pairs)
    return paired_differences(medians, generator)


def calibrations(noise: NoiseModel, generator: np.random.Generator) -> Scales:
    """What a calibration of its own tells each experiment about its pairs."""
    return Scales.of(draw(noise, generator, CALIBRATION_PAIRS))


def differs(outcomes: Outcomes) -> Array:
    return (outcomes.found == Found.FASTER) | (outcomes.found == Found.SLOWER)


def coverage(looks: Looks, outcomes: Outcomes, protocol: Protocol, scales: Scales) -> float:
    """Share of the intervals, as a verdict gives them when it stops, that hold the truth, which is zero."""
    held = np.zeros(EXPERIMENTS, dtype=bool)
    for index, num_pairs in enumerate(looks.num_pairs):
        reach = np.maximum(
            student_quantile(protocol.alpha / 2, num_pairs - 1) * looks.error[:, index],
            noise_floor(scales.pair_sd, scales.num_pairs, num_pairs, protocol.alpha),
        )
        here = outcomes.look[:, 0] == index
        held[here] = (np.abs(looks.centre[:, index]) <= reach)[here]
    return float(held.mean())


def detectable(scale: Array, protocol: Protocol) -> Array:
    """The minimum detectable effect that each experiment is told, by interpolation over its calibration."""
    grid = np.geomspace(np.quantile(scale, 0.001), scale.max(), 20)
    told = [
        minimum_detectable_effect(
            Calibration(pair_sd=float(each), num_pairs=CALIBRATION_PAIRS, source="simulated"), protocol
        )
        for each in grid
    ]
    return np.interp(scale, grid, told)


def of_setting(noise: NoiseModel, protocol: Protocol, seed: int) -> dict[str, Any]:
    """All figures of one noise setting, ours and the other designs'."""
    generator = np.random.default_rng(seed)
    differences, scales = draw(noise, generator, protocol.max_pairs), calibrations(noise, generator)
    looks = measure(differences, protocol.looks)
    equal = decide([looks], protocol, scales)
    by_effect = {effect: decide([looks.shifted(math.log1p(effect))], protocol, scales) for effect in EFFECTS}
    told = detectable(scales.pair_sd, protocol)
    at_told = decide([looks.shifted(np.log1p(told))], protocol, scales)
    at_margin = decide([looks.shifted(math.log1p(protocol.margin))], protocol, scales)
    trusting = decide([looks], protocol, replace(scales, pair_sd=np.zeros(EXPERIMENTS), largest=np.zeros(EXPERIMENTS)))
    naive = {name: design(noise, generator, EXPERIMENTS) for name, design in NAIVE.items()}
    naive["ours, 5% at each look"] = peeking(differences, protocol)
    return {
        "pair_sd": noise.pair_sd,
        "false_verdicts": float(differs(equal).mean()),
        "false_verdicts_without_calibration": float(differs(trusting).mean()),
        "same": float((equal.found == Found.SAME).mean()),
        "false_same_at_margin": float((at_margin.found == Found.SAME).mean()),
        "interval_coverage": coverage(looks, equal, protocol, scales),
        "power": {str(effect): float((found.found == Found.SLOWER).mean()) for effect, found in by_effect.items()},
        "mean_pairs": {"0": float(equal.pairs(looks).mean())}
        | {str(effect): float(found.pairs(looks).mean()) for effect, found in by_effect.items()},
        "minimum_detectable_effect": float(np.median(told)),
        "found_at_minimum": float((at_told.found == Found.SLOWER).mean()),
        "others": {name: of_design(finds) for name, finds in naive.items()},
    }


def of_design(finds: Callable[[float], Array]) -> dict[str, Any]:
    return {
        "false_verdicts": float(finds(0.0).mean()),
        "power": {str(effect): float(finds(math.log1p(effect)).mean()) for effect in EFFECTS},
    }


def several_arms(noise: NoiseModel, protocol: Protocol, seed: int) -> dict[str, float]:
    """Candidates beside one baseline in mirrored rounds: any false verdict, and what a true one among them changes."""
    generator = np.random.default_rng(seed)
    arms = CANDIDATES + 1
    medians = segment_medians(
        noise, generator, num_experiments=EXPERIMENTS, num_segments=arms * protocol.max_pairs
    ).reshape(EXPERIMENTS, protocol.max_pairs, arms)
    order = np.argsort(generator.random((EXPERIMENTS, (protocol.max_pairs + 1) // 2, arms)), axis=-1)
    order = np.stack([order, arms - 1 - order], axis=2).reshape(EXPERIMENTS, -1, arms)[:, : protocol.max_pairs]
    by_arm = np.take_along_axis(medians, order, axis=-1)
    looks = [measure(by_arm[..., arm] - by_arm[..., 0], protocol.looks) for arm in range(1, arms)]
    scales = calibrations(noise, generator)

    def judge(effects: tuple[float, ...]) -> Array:
        shifted = [each.shifted(math.log1p(effect)) for each, effect in zip(looks, effects, strict=True)]
        return differs(decide(shifted, protocol, scales))

    one = judge((0.03, *[0.0] * (CANDIDATES - 1)))
    return {
        "candidates": CANDIDATES,
        "any_false_verdict": float(judge((0.0,) * CANDIDATES).any(axis=1).mean()),
        "found_3_percent": float(one[:, 0].mean()),
        "any_false_verdict_beside_it": float(one[:, 1:].any(axis=1).mean()),
    }


def two_speeds(protocol: Protocol, seed: int) -> dict[str, dict[str, float]]:
    """Processes in two heaps: false verdicts with the signed ranks and without, and what is found."""
    rows = dict[str, dict[str, float]]()
    for index, (name, noise) in enumerate(TWO_SPEEDS.items()):
        generator = np.random.default_rng(seed + index)
        looks = measure(draw(noise, generator, protocol.max_pairs), protocol.looks)
        scales = calibrations(noise, generator)
        without = replace(scales, largest=np.zeros(EXPERIMENTS))
        rows[name] = {
            "false_verdicts": float(differs(decide([looks], protocol, scales)).mean()),
            "false_verdicts_without_ranks": float(differs(decide([looks], protocol, without)).mean()),
        } | {
            f"found_{effect:.0%}": float(
                (decide([looks.shifted(math.log1p(effect))], protocol, scales).found == Found.SLOWER).mean()
            )
            for effect in (0.03, 0.10)
        }
        print(f"two speeds, {name}: " + ", ".join(f"{key} {each:.1%}" for key, each in rows[name].items()), flush=True)
    return rows


def intervals(noise: NoiseModel, seed: int) -> list[dict[str, float | None]]:
    """Coverage at a fixed number of pairs: ours, and percentiles of resampled pairs, which are too short for few."""
    generator = np.random.default_rng(seed)
    differences = draw(noise, generator, 16)
    rows: list[dict[str, float | None]] = []
    for num_pairs in (2, 3, 4, 5, 6, 8, 16):
        used = differences[:, :num_pairs]
        centre, error = centre_and_error(used)
        ours = np.abs(centre) <= student_quantile(0.025, num_pairs - 1) * error
        resampled = [bootstrap_interval(each, resamples=500) for each in used[:COVERAGE_EXPERIMENTS]]
        rows.append(
            {
                "num_pairs": num_pairs,
                "ours": float(ours.mean()),
                "bootstrap": float(np.mean([low <= 1 <= high for low, high in resampled])),
                "half_width": float(np.median(student_quantile(0.025, num_pairs - 1) * error)),
            }
        )
    return rows


def estimators(seed: int) -> dict[str, dict[str, float]]:
    """Deviation of the estimate over 16 pairs, by estimator."""
    generator, rows = np.random.default_rng(seed), dict[str, dict[str, float]]()
    for name in ("typical", "disturbed"):
        differences = draw(NOISE_SETTINGS[name], generator, 16)
        found = {"mean": differences.mean(axis=1), "plain median": np.median(differences, axis=1)}
        found["ours"] = centre_and_error(differences)[0]
        rows[name] = {estimator: float(each.std()) for estimator, each in found.items()}
        print(f"{name}: " + ", ".join(f"{estimator} {sd:.2%}" for estimator, sd in rows[name].items()))
    return rows


def simulation() -> int:
    """Run all settings, print the tables, write the results; 0 if all that is promised holds."""
    began_s, protocol = time.perf_counter(), Protocol()
    print(f"{EXPERIMENTS:,} experiments a setting, looks at {protocol.looks} pairs, margin {protocol.margin:.0%}")
    print(
        f"{'noise':<14} {'sd pair':>8} {'false':>6} {'no cal':>6} {'cover':>6} "
        f"{'same 0':>6} {'at 1%':>6} {'MDE':>6} {'found':>6} "
        + " ".join(f"{effect:>6.0%}" for effect in EFFECTS)
        + "   pairs: none, "
        + ", ".join(f"{effect:.0%}" for effect in EFFECTS),
        flush=True,
    )
    settings: dict[str, dict[str, Any]] = {}
    for index, (name, noise) in enumerate(NOISE_SETTINGS.items()):
        found = settings[name] = of_setting(noise, protocol, index)
        print(
            f"{name:<14} {found['pair_sd']:>8.2%} {found['false_verdicts']:>6.1%} "
            f"{found['false_verdicts_without_calibration']:>6.1%} {found['interval_coverage']:>6.1%} "
            f"{found['same']:>6.1%} {found['false_same_at_margin']:>6.1%} "
            f"{found['minimum_detectable_effect']:>6.1%} {found['found_at_minimum']:>6.1%} "
            + " ".join(f"{each:>6.1%}" for each in found["power"].values())
            + "   "
            + " ".join(f"{each:>4.1f}" for each in found["mean_pairs"].values()),
            flush=True,
        )
    print_others(settings)
    arms = several_arms(NOISE_SETTINGS["typical"], protocol, 100)
    print(
        f"{CANDIDATES} candidates at once: any false verdict {arms['any_false_verdict']:.1%}; one of 3% is found in "
        f"{arms['found_3_percent']:.1%}, beside it a false one {arms['any_false_verdict_beside_it']:.1%}"
    )
    heaps = two_speeds(protocol, 200)
    rows = intervals(NOISE_SETTINGS["typical"], 101)
    for row in rows:
        print(
            f"{row['num_pairs']:>2} pairs: 95% interval holds the truth in {row['ours']:.1%} "
            f"(half width {row['half_width']:.2%}), resampled pairs in {row['bootstrap']:.1%}"
        )
    print("deviation of the estimate over 16 pairs:")
    scatter = estimators(102)
    content = {"experiments": EXPERIMENTS, "looks": protocol.looks, "calibration_pairs": CALIBRATION_PAIRS}
    content |= {"settings": settings, "two_speeds": heaps, "several_arms": arms, "intervals": rows}
    content |= {"estimate_sd": scatter}
    RESULTS.joinpath("compare_simulation.json").write_text(json.dumps(content, indent=1) + "\n")
    return judged(settings, arms, heaps, time.perf_counter() - began_s)


def print_others(settings: dict[str, dict[str, Any]]) -> None:
    print("\nother designs: false verdicts / 3% found")
    names = list(settings["typical"]["others"])
    print(f"{'noise':<14} " + " ".join(f"{name:>23}" for name in names))
    for name, found in settings.items():
        cells = (f"{each['false_verdicts']:.1%} / {each['power']['0.03']:.1%}" for each in found["others"].values())
        print(f"{name:<14} " + " ".join(f"{cell:>23}" for cell in cells))


def judged(
    settings: dict[str, dict[str, Any]], arms: dict[str, float], heaps: dict[str, dict[str, float]], took_s: float
) -> int:
    """Print the verdict; its exit code."""
    false = {f"{name} noise": found["false_verdicts"] for name, found in settings.items()}
    false |= {f"processes of two speeds, {name}": found["false_verdicts"] for name, found in heaps.items()}
    false |= {f"one of {CANDIDATES} arms": arms["any_false_verdict"]}
    false |= {f"an equal arm of {CANDIDATES}": arms["any_false_verdict_beside_it"]}
    false |= {f'"same" at the margin, {name} noise': found["false_same_at_margin"] for name, found in settings.items()}
    worst, most = max(false.items(), key=lambda each: each[1])
    power = settings["typical"]["power"]["0.03"]
    least = min(settings, key=lambda name: settings[name]["found_at_minimum"])
    at_least = settings[least]["found_at_minimum"]
    num_kinds = len(settings) + len(heaps)
    passed = most <= FALSE_VERDICTS_ALLOWED and power >= POWER_WANTED and at_least >= FOUND_AT_MINIMUM
    naive = settings["typical"]["others"]["A then B, t over steps"]["false_verdicts"]
    print(
        f"{'PASS' if passed else 'FAIL'}: at most {most:.1%} false verdicts, simulated, in {num_kinds} kinds of "
        f"noise (allowed {FALSE_VERDICTS_ALLOWED:.0%}; worst: {worst}; A then B with typical noise: {naive:.0%}), "
        f"3% found in {power:.1%} (wanted {POWER_WANTED:.0%}), the minimum detectable effect in {at_least:.1%} or more "
        f"(wanted {FOUND_AT_MINIMUM:.0%}; worst: {least} noise); {took_s:.0f} s"
    )
    return 0 if passed else 1


PARTS: dict[str, Callable[[], int]] = {"simulation": simulation}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS, nargs="?", default="simulation")
    sys.exit(PARTS[parser.parse_args().part]())
