"""Whether real comparisons can be believed: equal arms that should not differ, and a delay of 3 % that should be found.

Each experiment is a whole `stepladder compare` of a tiny decoder, every segment a fresh process:

- 60 of equal arms (they differ in a key that no step reaches): at most 5 % may end in a verdict of a difference;
- 30 with 3 % of a step asleep in one arm: at least 90 % must be found, within the default 16 pairs.

Nine in ten take the kept noise floor, as users do; every tenth measures it anew. A segment takes four seconds on a
quiet core, most of it the start of Python, an experiment one to three minutes, and all of them about three hours. What
is done is kept in results/compare_real.json; run it again to go on.

    python benchmarks/compare_real.py [--equal 60] [--delayed 30] [--again] [--quick]

The last line is the verdict.
"""

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "shared"))

from sleepy import install_sleepy

RESULTS = Path(__file__).resolve().parent / "results" / "compare_real.json"
DELAY = 0.03
FALSE_ALLOWED, FOUND_WANTED = 0.05, 0.90
FLOOR_EVERY = 10
RECIPE = """
name = "real"
run.device = "cpu"
[model.decoder]
dim = 96
num_layers = 4
num_heads = 4
ffn_dim = 256
vocab_size = 256
[data.stdlib]
[batch]
microbatch_size = 8
sequence_length = 64
[strategies.adamw]
[strategies.clip]
[strategies.sleep]
"""
Kept = dict[str, Any]


def install(folder: Path) -> None:
    """A strategy that sleeps, for this process and those that it starts."""
    install_sleepy(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def experiment(work: Path, kind: str, index: int, *, step_s: float | None, pairs: int, seed: int) -> Kept:
    """One comparison, from its folder if it was interrupted."""
    from stepladder.launch.compare.arms import ArmSpec
    from stepladder.launch.compare.comparison import Asked, compare
    from stepladder.launch.compare.declared import Declared
    from stepladder.launch.compare.sequential import Protocol

    change = "run.gc_every=9999" if kind == "equal" else f"strategies.sleep.ms={1000 * DELAY * (step_s or 0.0):.4f}"
    folder = work / f"{kind}-{index:03d}"
    declared = Declared(protocol=Protocol(max_pairs=pairs), profile=False, seed=seed, window_s=1.0)
    asked = Asked(
        recipe=str(work / "real.toml"),
        overrides=("run.gc_every=9998",),
        arms=(ArmSpec(name="arm", changes=(change,)),),
        declared=declared,
        guarded=False,
        calibrate_anew=index % FLOOR_EVERY == 0,
        out=folder,
        resume=(folder / "experiment.json").exists(),
    )
    results = compare(asked)
    arm, baseline = results.arms[1], results.arms[0]
    verdict = arm.verdict
    told = {
        "kind": kind,
        "index": index,
        "verdict": str(verdict.kind) if verdict else "failed",
        "ratio": verdict.ratio if verdict else None,
        "num_pairs": verdict.num_pairs if verdict else 0,
        "pair_sd": results.outcome.calibration.pair_sd,
        "minimum_detectable_effect": results.to_json()["minimum_detectable_effect"],
        "step_s": baseline.step_s,
        "injected": DELAY if kind == "delayed" else 0.0,
        "spent_s": results.spent_s,
    }
    shutil.rmtree(folder)
    return told


def begin(options: argparse.Namespace) -> Kept:
    """What is known already, if it was the same benchmark."""
    if RESULTS.is_file() and not options.again:
        kept = read_kept(RESULTS)
        if kept["recipe"] == RECIPE and kept["pairs"] == options.pairs:
            return kept
    from stepladder.launch.compare.declared import machine

    return {"recipe": RECIPE, "pairs": options.pairs, "machine": machine(), "experiments": []}


def read_kept(path: Path) -> Kept:
    """What is kept there; the program ends with a sentence if it is damaged, for hours went into it."""
    try:
        kept = json.loads(path.read_text())
        good = isinstance(kept["recipe"], str) and all(
            {"kind", "index", "verdict", "num_pairs", "step_s", "spent_s"} <= each.keys()
            for each in kept["experiments"]
        )
        kept["pairs"]
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        good, kept = False, {}
    if not good:
        sys.exit(f"{path}: is damaged; put back what was there, or begin anew with --again")
    return kept


def write_kept(path: Path, kept: Kept) -> None:
    """Keep it, whole or not at all: it may be killed at any time."""
    from stepladder.launch.compare.store import write_json

    write_json(path, kept)


def planned(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """The experiments in order: the equal ones first, which tell how long a step is."""
    yield from (("equal", i) for i in range(options.equal))
    yield from (("delayed", i) for i in range(options.delayed))


def verdict(found: list[Kept]) -> tuple[bool, str]:
    """Whether the promises hold, and the sentence that says it."""
    equal = [each for each in found if each["kind"] == "equal"]
    delayed = [each for each in found if each["kind"] == "delayed"]
    false = sum(each["verdict"] in ("faster", "slower") for each in equal)
    right = sum(each["verdict"] == "slower" for each in delayed)
    minutes = sum(each["spent_s"] for each in found) / 60
    holds = bool(equal and delayed) and false <= FALSE_ALLOWED * len(equal) and right >= FOUND_WANTED * len(delayed)
    pairs = sum(each["num_pairs"] for each in delayed) / max(1, len(delayed))
    return holds, (
        f"compare, real: {'PASS' if holds else 'FAIL'} {false} of {len(equal)} comparisons of equal arms differ "
        f"(allowed 5 %); {right} of {len(delayed)} delays of 3 % found (wanted 90 %), "
        f"after {pairs:.1f} pairs on average; "
        f"{minutes:.0f} minutes of segments"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal", type=int, default=60, help="comparisons of equal arms")
    parser.add_argument("--delayed", type=int, default=30, help="comparisons with a delay")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="forget what is kept")
    parser.add_argument("--quick", action="store_true", help="one of each with 4 pairs, kept nowhere")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "stepladder-compare-real")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = Path(tempfile.mkdtemp()) if options.quick else options.work
    work.mkdir(parents=True, exist_ok=True)
    os.environ["STEPLADDER_CACHE"] = str(work / "cache")  # a noise floor of its own
    install(work / "plugin")
    (work / "real.toml").write_text(RECIPE)
    if options.quick:
        options.equal = options.delayed = 1
        options.pairs, options.again = 4, True
    kept = begin(options)
    done = {(each["kind"], each["index"]) for each in kept["experiments"]}
    for number, (kind, index) in enumerate(planned(options), start=1):
        if (kind, index) in done:
            continue
        steps = [each["step_s"] for each in kept["experiments"] if each["kind"] == "equal" and each["step_s"]]
        began_s = time.monotonic()
        told = experiment(
            work,
            kind,
            index,
            step_s=sorted(steps)[len(steps) // 2] if steps else 0.03,
            pairs=options.pairs,
            seed=number,
        )
        kept["experiments"].append(told)
        kept["measured_on"] = datetime.date.today().isoformat()
        if not options.quick:
            write_kept(RESULTS, kept)
        took = time.monotonic() - began_s
        print(f"{kind} {index}: {told['verdict']} after {told['num_pairs']} pairs, {took:.0f} s", flush=True)
    holds, sentence = verdict(kept["experiments"])
    if options.quick:
        shutil.rmtree(work)
    print(sentence)
    return 0 if holds or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
