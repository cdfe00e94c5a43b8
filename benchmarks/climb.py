"""Whether the climber finds what an exhaustive grid finds, and what it takes for that.

Two small decoders, one bound by products and one by Python, begin as slow as they can be made: no loader workers,
float32, eager, logging each step, microbatches of one. The grid measures every combination of those keys by the
protocol of `stepladder compare`; the climber is confined to the same keys. Wanted: at least 95 % of the speed of the
grid's best, with at most 25 % of the grid's measuring time. Time is that of the segments of either; what the climber
spends on profiles and the guard (a grid without one claims nothing), and its closing comparison, is told apart.

    python benchmarks/climb.py [--workload wide] [--quick] [--work FOLDER]

An hour and a half on two quiet cores; killed, it goes on. Writes results/climb.json; the last line is its verdict.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from stepladder.launch.climb.climb import climb
from stepladder.launch.climb.climber import Climb
from stepladder.launch.compare.arms import ArmSpec
from stepladder.launch.compare.bench import Tools
from stepladder.launch.compare.comparison import Asked, compare
from stepladder.launch.compare.declared import Declared, machine
from stepladder.launch.compare.experiment import Told
from stepladder.launch.compare.grid import Grid, measure_grid
from stepladder.launch.compare.sequential import Protocol
from stepladder.launch.recipe import read, recipe_hash

RESULTS = Path(__file__).resolve().parent / "results" / "climb.json"
SPEED_WANTED, TIME_ALLOWED = 0.95, 0.25
WORKLOADS = {
    "wide": "dim = 256\nnum_layers = 4\nnum_heads = 4\nffn_dim = 704\nvocab_size = 256\n",
    "thin": "dim = 64\nnum_layers = 8\nnum_heads = 4\nffn_dim = 128\nvocab_size = 256\n",
}
LENGTHS = {"wide": 64, "thin": 32}
SLOW = """
name = "{name}"
[run]
device = "cpu"
num_steps = 400
log_every = 1
[model.decoder]
{decoder}
[data.stdlib]
[batch]
microbatch_size = 1
sequence_length = {length}
[loader]
num_workers = 0
[strategies.adamw]
implementation = "for-loop"
[strategies.clip]
[strategies.accumulation]
num_microbatches = 16
"""


def keys(*, quick: bool) -> dict[str, tuple[str, ...]]:
    """What both may change. Without BF16 in the processor, where it is emulated, the optimizer takes its place."""
    if quick:
        return {"run.log_every": ("1", "50"), "batch.microbatch_size": ("1", "4", "16")}
    import torch

    has_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    precision = {"strategies.amp": ("false", "{}")}
    return {
        "loader.num_workers": ("0", "2"),
        **(precision if has_bf16 else {"strategies.adamw.implementation": ("for-loop", "fused")}),
        "strategies.compile": ("false", "{}"),
        "run.log_every": ("1", "50"),
        "batch.microbatch_size": ("1", "4", "16"),
    }


def declared(*, quick: bool) -> Declared:
    window: dict[str, Any] = {"window_steps": 10, "window_s": 0.0} if quick else {"window_s": 1.0}
    return Declared(protocol=Protocol(max_pairs=4 if quick else 8), profile=False, calibration_pairs=4, **window)


def measure(name: str, work: Path, *, quick: bool) -> dict[str, Any]:
    """The grid and the climb of one workload, and how they compare."""
    recipe = work / f"{name}.toml"
    recipe.write_text(SLOW.format(name=name, decoder=WORKLOADS[name], length=LENGTHS[name]))
    tools = Tools(told=Told(say=lambda line: print(f"{name}: {line}", flush=True)))
    common: dict[str, Any] = {"recipe": str(recipe), "arms": (), "declared": declared(quick=quick)}
    axes, places = keys(quick=quick), {kind: work / f"{name}-{kind}" for kind in ("climb", "grid", "last")}
    resume = {kind: (place / f"{kind}.json").exists() for kind, place in places.items()}
    climbed = climb(
        Asked(**common, budget_s=36000.0, out=places["climb"], resume=resume["climb"]), only=tuple(axes), tools=tools
    )
    grid = measure_grid(Asked(**common, guarded=False, out=places["grid"], resume=resume["grid"]), axes, tools=tools)
    speed = share_of_best(climbed, grid, common, places["last"])
    final_s = climbed.final.seconds if climbed.final else 0.0
    searched_s = climbed.results["measured_s"] - final_s
    return {
        "workload": name,
        "kept": [step.name for step in climbed.steps if step.kept],
        "tried": len(climbed.steps),
        "times": climbed.final.multiplier.times if climbed.final and climbed.final.multiplier else 1.0,
        "share_of_best_speed": speed,
        "best_of_grid": best_of(grid),
        "num_combinations": len(grid.rows),
        "grid_s": grid.results["spent_s"],
        "climb_s": searched_s,
        "final_s": final_s,
        "climb_with_all_s": climbed.results["spent_s"],
        "share_of_time": searched_s / grid.results["spent_s"],
    }


def best_of(grid: Grid) -> list[str]:
    """The changes of the fastest combination, guard or not."""
    measured = [row for row in grid.rows if row.point]
    return list(min(measured, key=lambda row: row.ratio["ratio"] if row.ratio else 1.0).set)


def share_of_best(climbed: Climb, grid: Grid, common: dict[str, Any], place: Path) -> float:
    """Speed of the climber's recipe over that of the grid's best: in pairs, unless they are one recipe."""
    best = read(common["recipe"], best_of(grid))
    if recipe_hash(best) == recipe_hash(read(str(climbed.recipe))):
        return 1.0
    against = ArmSpec(name="climbed", recipe=str(climbed.recipe))
    resume = (place / "experiment.json").exists()
    asked = Asked(
        **(common | {"arms": (against,), "overrides": tuple(best_of(grid))}), guarded=False, out=place, resume=resume
    )
    verdict = compare(asked).arms[1].verdict
    return 1 / verdict.ratio if verdict and verdict.ratio else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, help="one of them")
    parser.add_argument("--quick", action="store_true", help="six combinations of one workload, kept nowhere")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "stepladder-climb")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    work = Path(tempfile.mkdtemp()) if options.quick else options.work
    work.mkdir(parents=True, exist_ok=True)
    os.environ["STEPLADDER_CACHE"] = str(work / "cache")
    names = [options.workload] if options.workload else ["thin"] if options.quick else list(WORKLOADS)
    found = [measure(name, work, quick=options.quick) for name in names]
    if options.quick:
        shutil.rmtree(work)
    else:
        RESULTS.write_text(json.dumps({"machine": machine(), "workloads": found}, indent=1) + "\n")
    holds = all(each["share_of_best_speed"] >= SPEED_WANTED and each["share_of_time"] <= TIME_ALLOWED for each in found)
    told = "; ".join(
        f"{each['workload']}: {100 * each['share_of_best_speed']:.1f} % of the best speed with "
        f"{100 * each['share_of_time']:.0f} % of the grid's time ({each['climb_s'] / 60:.1f} of "
        f"{each['grid_s'] / 60:.1f} minutes, {each['num_combinations']} combinations)"
        for each in found
    )
    print(f"climb: {'PASS' if holds else 'FAIL'} {told} (wanted 95 % with 25 %)")
    return 0 if holds or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
