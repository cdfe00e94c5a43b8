"""The ladder of a decoder of a billion parameters on one GPU: data, BF16, compile, fused AdamW, FP8, microbatch.

`stepladder compare --ladder decoder_1b` decides after each rung and takes an hour. Here every stack of that ladder is
run once a round: first up the ladder, later in a random order and then in the reverse. A rung is held against the stack
below it by the pairs of the same rounds. So an hour becomes nine minutes: no segment begins that would not end in time.
Every segment is a process of its own; a rung that this machine refuses, or that fails, is left out of the stacks above
it. Nothing is guarded: these are times of a step, and which of them train the same is said by `compare`.

    python benchmarks/gpu_ladder.py [--minutes 8.5] [--rounds 4] [--out FILE]
    python benchmarks/gpu_ladder.py --dry-run      # every line of it, on a CPU, in tiny sizes

Writes results/gpu_ladder.json; the last line is the verdict. Exit code 2 without a GPU.
"""

import argparse
import datetime
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from stepladder.launch.compare.arms import Arm
from stepladder.launch.compare.declared import machine
from stepladder.launch.compare.design import round_order
from stepladder.launch.compare.estimate import estimate
from stepladder.launch.compare.ladder_file import find_ladder, read_ladder
from stepladder.launch.compare.rungs import Rung
from stepladder.launch.compare.segment import Measured, Steps, run_segment
from stepladder.launch.devices import count_gpus
from stepladder.launch.errors import UsageError
from stepladder.launch.plan import plan_here
from stepladder.launch.recipe import parse, read, resolved, to_toml
from stepladder.launch.schema import Recipe
from stepladder.profiling.trace.text import columns

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_ladder.json"
MISSION_TIMES = 3.07
FIRST_S = 90.0
"""What a first segment of a stack may take: start, compilation, steps."""
STEPS = Steps(window=8, max_warmup=12)
_LEAST_ROUNDS = 3
TINY = {"dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 128, "vocab_size": 256}


Segments = dict[str, list[Measured | None]]


def ladder(*, dry: bool) -> tuple[Recipe, list[Rung]]:
    """The base and its rungs; in tiny sizes for a CPU without what only a GPU has."""
    settings, rungs = read_ladder(find_ladder("decoder_1b"))
    base = read(settings.recipe)
    if not dry:
        return base, list(rungs)
    tree = resolved(base)
    tree["run"]["device"] = "cpu"
    tree["model"]["decoder"] |= TINY
    tree["batch"]["sequence_length"] = 32
    tree["loader"] = {}
    plain = [replace(rung, set=tuple(each for each in rung.set if not _needs_gpu(each))) for rung in rungs]
    return parse(tree, {"": "dry run"}), plain


def _needs_gpu(change: str) -> bool:
    return change.startswith(("loader.device_prefetch", "loader.pin_memory", "loader.non_blocking"))


class Clock:
    """How much time is left, and what a segment of each stack has taken."""

    def __init__(self, minutes: float) -> None:
        self.ends_s = time.monotonic() + 60 * minutes
        self.took_s: dict[str, float] = {}

    def allows(self, name: str) -> bool:
        return time.monotonic() + 1.1 * self.took_s.get(name, FIRST_S) <= self.ends_s

    def run(self, arm: Arm, folder: Path) -> Measured | None:
        """A segment; None if there is no time for it."""
        if not self.allows(arm.name):
            return None
        found = run_segment(arm, folder, STEPS, timeout_s=self.ends_s - time.monotonic())
        self.took_s[arm.name] = found.seconds  # the second one is shorter: nothing is compiled any more
        told = f"{found.failure}: {found.reason}"
        if found.segment:
            told = f"{1000 * found.segment.median_s:.1f} ms/step"
        print(f"{folder.name}: {told}, {found.seconds:.0f} s", flush=True)
        return found


def go_up(
    base: Recipe, rungs: Sequence[Rung], folder: Path, clock: Clock
) -> tuple[list[Arm], Segments, dict[str, str]]:
    """The first round: each rung on what went well before it. And why some are left out."""
    file = folder / "base.toml"
    file.write_text(to_toml(base))
    arms, found, left_out = list[Arm](), Segments(), dict[str, str]()
    stack: tuple[str, ...] = ()
    for rung in (Rung(name="base", set=()), *rungs):
        try:
            plan = plan_here(read(str(file), [*stack, *rung.set]))
        except UsageError as error:
            left_out[rung.name] = "; ".join(error.problems)
            continue
        arm = Arm(name=rung.name, plan=plan, changes=rung.set)
        segment = clock.run(arm, folder / f"0-{rung.name}")
        if segment is None or segment.failure:
            left_out[rung.name] = f"{segment.failure}: {segment.reason}" if segment else "no time is left"
            continue
        arms.append(arm)
        found[rung.name] = [segment]
        stack += rung.set
    return arms, found, left_out


def measure(arms: Sequence[Arm], found: Segments, folder: Path, *, rounds: int, clock: Clock) -> None:
    """The other rounds; None where no time was left, or a segment failed."""
    by_name = {arm.name: arm for arm in arms}
    for index in range(1, rounds):
        for name in round_order(list(by_name), 0, index):
            segment = clock.run(by_name[name], folder / f"{index}-{name}")
            found[name].append(segment if segment and not segment.failure else None)


def rows_of(arms: Sequence[Arm], found: Segments) -> list[dict[str, Any]]:
    """Each stack against the one below it that was measured, and against the base."""
    rows: list[dict[str, Any]] = []
    below = arms[0].name
    for arm in arms:
        done = [each for each in found[arm.name] if each and each.segment and each.times]
        row: dict[str, Any] = {"name": arm.name, "set": list(arm.changes), "num_segments": len(done)}
        if done:
            step_s = median(each.segment.median_s for each in done if each.segment)
            times = done[0].times
            assert times is not None
            row |= {
                "step_s": step_s,
                "tokens_per_s": times.tokens_per_step / step_s,
                "mfu": times.mfu(step_s),
                "memory_gib": max(each.times.memory_gib for each in done if each.times),
                "compile_s": done[0].compile_s,
                "times": ratio(found[below], found[arm.name]) if arm.name != arms[0].name else None,
                "cumulative": ratio(found[arms[0].name], found[arm.name]) if arm.name != arms[0].name else None,
            }
            below = arm.name
        rows.append(row)
    return rows


def ratio(before: Sequence[Measured | None], after: Sequence[Measured | None]) -> list[float] | None:
    """Times faster with its interval over rounds; without one below three, where it says nothing."""
    pairs = [(a.segment, b.segment) for a, b in zip(before, after, strict=True) if a and b]
    logs = [math.log(b.median_s / a.median_s) for a, b in pairs if a and b]
    if not logs:
        return None
    if len(logs) < _LEAST_ROUNDS:
        return [math.exp(-median(logs))]
    known = estimate(logs)
    return [1 / known.ratio, 1 / known.high, 1 / known.low]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """As it is printed."""

    def number(row: dict[str, Any], key: str, form: str, factor: float = 1.0) -> str:
        return "-" if row.get(key) is None else format(factor * row[key], form)

    def times(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        return "-" if not value else f"{value[0]:.2f}x" + (f" [{value[1]:.2f}, {value[2]:.2f}]" if value[1:] else "")

    head = ["rung", "times faster [95 %]", "cumulative", "ms/step", "tokens/s", "MFU %", "mem GiB", "segments"]
    cells = [
        [
            row["name"],
            times(row, "times"),
            times(row, "cumulative"),
            number(row, "step_s", ".1f", 1000),
            number(row, "tokens_per_s", ",.0f"),
            number(row, "mfu", ".1f", 100),
            number(row, "memory_gib", ".1f"),
            str(row["num_segments"]),
        ]
        for row in rows
    ]
    return list(columns(head, cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="in all")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, in tiny sizes, kept nowhere")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.dry_run and not count_gpus():
        print("gpu ladder: no GPU here; --dry-run goes through it on a CPU")
        return 2
    clock = Clock(options.minutes)
    with tempfile.TemporaryDirectory() as work:
        arms, found, left_out = go_up(*ladder(dry=options.dry_run), Path(work), clock)
        for name, why in left_out.items():
            print(f"{name}: left out; {why}")
        measure(arms, found, Path(work), rounds=options.rounds, clock=clock)
    rows = rows_of(arms, found)
    print("", *table(rows), sep="\n")
    told = {
        "measured_on": datetime.date.today().isoformat(),
        "machine": machine(),
        "steps": vars(STEPS),
        "rows": rows,
        "left_out": left_out,
    }
    if not options.dry_run:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    best = max((row for row in rows if row.get("cumulative")), key=lambda row: row["cumulative"][0], default=None)
    whole = f"{best['cumulative'][0]:.2f}x up to {best['name']}" if best else "nothing was measured"
    print(
        f"gpu ladder: {'DRY RUN' if options.dry_run else 'DONE'} {whole} (the mission's own figure is {MISSION_TIMES}x)"
    )
    return 0 if best else 1


if __name__ == "__main__":
    sys.exit(main())
