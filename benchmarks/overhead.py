"""Host time of a step above a hand-written loop, and the time to the first step, side by side with peers.

A round starts every arm, each rank in a process of its own, one after the other; then they take turns of some ten
steps, in an order that rotates, and the fastest block of steps counts. What else the machine does falls on all arms
alike: the difference to the bare loop is taken within a turn, and its median over all turns of all rounds. A step lasts
from the beginning of its batch to the beginning of the next one's, in every arm. On the MLP a block is ten steps, so
that the one among them that is logged counts.

    python benchmarks/overhead.py [--quick] [--rounds N]

Takes about 8 minutes on 2 cores, 4 with `--quick`. Writes `results/overhead.json` beside this file; the last line is
the verdict.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from overhead_report import BARE, GOAL_START, GOAL_US, Outcome, Series, ratio, start_table, verdict
from overhead_runs import Arm, Case, CrashError, said, start_command

ARMS = (BARE, "bare-loader", "stepladder", "accelerate", "fabric", "lightning")
BARE_SCRIPT, COMMAND = "bare script", "stepladder run"
NEEDED = ("stepladder", "torch", "accelerate", "lightning")


def cases(*, quick: bool, rounds: int) -> list[Case]:
    """Both workloads on one and two ranks; where a step is slow and its overhead drowns, less of it."""
    mlp: dict[str, Any] = {"workload": "mlp", "warmup": 50, "settle": 10, "block": 10, "blocks": 6}
    decoder: dict[str, Any] = {"workload": "decoder", "warmup": 2, "settle": 0, "block": 1, "blocks": 1}
    decoder |= {"turns": 3 if quick else 10, "rounds": max(1, rounds // 4)}
    return [
        Case(**mlp, ranks=1, rounds=rounds, turns=40),
        Case(**mlp, ranks=2, rounds=max(1, rounds // 2), turns=10 if quick else 20),
        Case(**decoder, ranks=1),
        Case(**decoder, ranks=2),
    ]


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The same names, another one first."""
    at = by % len(names)
    return [*names[at:], *names[:at]]


def measure(case: Case) -> Outcome:
    """All rounds of a case. An arm that crashes is out for its round; its reason goes to stderr."""
    steps_us: dict[str, list[float | None]] = {name: [] for name in ARMS}
    starts_s: dict[str, list[float | None]] = {name: [] for name in ARMS}
    for i in range(case.rounds):
        print(f"{case.workload}, {said(case.ranks)}: round {i + 1} of {case.rounds}", file=sys.stderr, flush=True)
        running: dict[str, Arm] = {}
        try:
            for name in rotated(ARMS, i):
                running[name] = Arm(case, name)
                starts_s[name].append(_attempt(running, name, Arm.ready))
            for turn in range(case.turns):
                for name in rotated(ARMS, i + turn):
                    steps_us[name].append(_attempt(running, name, Arm.turn))
        finally:
            for arm in running.values():
                arm.end()
    return Outcome(steps_us=steps_us, starts_s=starts_s)


def _attempt(running: dict[str, Arm], name: str, what: Any) -> float | None:
    """An arm's next figure; None, and no further attempts in this round, once it has crashed."""
    if name not in running:
        return None
    try:
        return what(running[name])
    except CrashError as crash:
        print(f"error: {crash}", file=sys.stderr)
        running.pop(name).end()
        return None


def measure_starts(ranks: int, rounds: int) -> Series:
    """Both whole commands, in turn."""
    found: dict[str, list[float | None]] = {BARE_SCRIPT: [], COMMAND: []}
    for i in range(rounds):
        print(f"start, {said(ranks)}: round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        for command in rotated((BARE_SCRIPT, COMMAND), i):
            try:
                found[command].append(start_command(ranks, command))
            except CrashError as crash:
                print(f"error: {crash}", file=sys.stderr)
                found[command].append(None)
    return found


def machine() -> dict[str, str | int | float]:
    """What the figures depend on besides the code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": processor or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    """Measure, say what was found, write it down; 0 unless an arm crashed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="rounds of the MLP on one rank (4; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and turns")
    options = parser.parse_args()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"error: {', '.join(missing)}: not installed; pip install -c constraints.txt -e '.[bench]'", file=sys.stderr
        )
        return 2
    rounds = max(1, options.rounds or (1 if options.quick else 4))
    content: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {name: version(name) for name in NEEDED},
        "goals": {"over_bare_us": GOAL_US, "start_ratio": GOAL_START},
        "cases": [],
        "commands": [],
    }
    about = content["machine"]
    print(f"{about['processor']}, {about['cores']} cores, load {about['load_average_before']}, one thread a rank")
    print(*(f"{name} {number}" for name, number in content["versions"].items()), sep=", ")
    print("bare gathers its own batches; bare-loader and the peers read a DataLoader; stepladder its feed", flush=True)
    outcomes: list[Outcome] = []
    for case in cases(quick=options.quick, rounds=rounds):
        outcome = measure(case)
        outcomes.append(outcome)
        content["cases"].append(asdict(case) | {"summary": outcome.summary()} | asdict(outcome))
        print("", case.title, outcome.table(), sep="\n", flush=True)
    starts: dict[int, Series] = {}
    for ranks in (1, 2):
        starts[ranks] = measure_starts(ranks, max(2, rounds))
        content["commands"].append({"ranks": ranks, "starts_s": starts[ranks]})
        title = f"process start to the first logged step, decoder, {said(ranks)}: median of {max(2, rounds)}"
        print("", title, start_table(starts[ranks], BARE_SCRIPT), sep="\n", flush=True)
    content["verdict"] = verdict(outcomes[0], {n: ratio(each, COMMAND, BARE_SCRIPT) for n, each in starts.items()})
    file = Path(__file__).resolve().parent / "results" / "overhead.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print()
    if about["load_average_before"] > about["cores"] / 4:
        print("note: other work was running before this began, so microseconds are long and their spread is wide")
    print(content["verdict"])
    everything = [*starts.values(), *(series for each in outcomes for series in (each.steps_us, each.starts_s))]
    return int(any(None in values for series in everything for values in series.values()))


if __name__ == "__main__":
    sys.exit(main())
