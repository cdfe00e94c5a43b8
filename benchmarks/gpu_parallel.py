"""What FP8, compile modes, activation checkpointing and CUDA graphs do on one GPU, beside plain BF16.

Every turn of an arm is a whole `stepladder run` in a process of its own; arms take turns, so that what else the machine
does falls on all of them. A figure is the median over the logged intervals after the warm-up, of all turns. No turn
begins that would not end in time; what was left out is said.

    python benchmarks/gpu_parallel.py [--minutes 8] [--rounds 2] [--arms NAME,NAME] [--out FILE]
    python benchmarks/gpu_parallel.py --dry-run      # every line of it, on a CPU, in tiny sizes

Writes `results/gpu_parallel.json` beside this file; the last line is the verdict. Exit code 2 without a GPU.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w
from gpu_parallel_arms import COMPILED, EAGER, FULL, LOSS_TOLERANCE, TINY, Arm, Size, arms, core, recipe_of

from stepladder.launch.devices import count_gpus

FIRST_TURN_S = 75.0
"""What a turn may take before anything is known: torch's start, compilation, the steps."""
STEPLADDER = (sys.executable, "-P", "-m", "stepladder")
Turn = dict[str, Any]


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    asked = "name,driver_version,memory.total,compute_cap,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        values = [each.strip() for each in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    except (OSError, subprocess.TimeoutExpired):
        values = []
    gpu = dict(zip(asked.split(","), values, strict=False))
    return {"gpu": gpu.get("name", "none"), **gpu, "host": platform.platform(), "cores": os.cpu_count() or 1}


def versions() -> dict[str, str]:
    """Of what the figures depend on; without what is not installed."""
    found: dict[str, str] = {"python": platform.python_version()}
    for name in ("stepladder", "torch", "torchao", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def refused(arm: Arm, size: Size, folder: Path) -> str:
    """Why the arm cannot run here; empty if it can."""
    done = subprocess.run(
        [*STEPLADDER, "check", str(_written(arm, size, folder))], capture_output=True, text=True, check=False
    )
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines or ["check failed"])[0]


def _written(arm: Arm, size: Size, folder: Path) -> Path:
    path = folder / f"{arm.name.replace(' ', '_')}.toml"
    path.write_text(tomli_w.dumps(recipe_of(arm, size)))
    return path


def take_turn(arm: Arm, size: Size, folder: Path, timeout_s: float) -> Turn:
    """One run of an arm: its intervals, or the reason why there are none."""
    started_s = time.monotonic()
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    process = subprocess.Popen(
        [*STEPLADDER, "run", str(_written(arm, size, folder)), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"not done after {timeout_s:.0f} s", "wall_s": time.monotonic() - started_s}
    wall_s = round(time.monotonic() - started_s, 2)
    file = out / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    trained = [each for each in records if each["kind"] == "train"]
    counted = [each for each in trained if each["step"] > size.first_counted]
    if process.returncode or not counted:
        lines = [line for line in errors.splitlines() if line.strip()]
        return {"failed": (lines or [f"exit code {process.returncode}"])[-1][:300], "wall_s": wall_s}
    return {
        "step_ms": [each["step_ms"] for each in counted],
        "memory_gib": counted[-1]["memory_gib"],
        "loss": trained[-1]["loss"],
        "wall_s": wall_s,
    }


def schedule(chosen: Sequence[Arm], rounds: int) -> Iterator[Arm]:
    """Who takes a turn when: everybody once, then the core again, then the others, in an order that rotates."""
    first = [arm for arm in chosen if arm.name in core()]
    rest = [arm for arm in chosen if arm.name not in core()]
    for i in range(rounds):
        for group in (first, rest):
            at = i % len(group) if group else 0
            yield from (*group[at:], *group[:at])


def summary(turns: Sequence[Turn], size: Size) -> dict[str, Any] | None:
    """The figures of an arm over all its turns; None if none succeeded."""
    good = [turn for turn in turns if "failed" not in turn]
    if not good:
        return None
    step_ms = statistics.median(each for turn in good for each in turn["step_ms"])
    return {
        "step_ms": round(step_ms, 3),
        "tokens_per_s": round(1000 * size.tokens_per_step / step_ms),
        "memory_gib": max(turn["memory_gib"] for turn in good),
        "loss": good[0]["loss"],
        "turns": len(good),
    }


def measure(chosen: Sequence[Arm], size: Size, rounds: int, deadline_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """All turns that end in time: the arms' turns by name, and why an arm, or a turn of it, was left out."""
    turns: dict[str, list[Turn]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arm in chosen:
            if reason := refused(arm, size, folder):
                left_out[arm.name] = reason
        for arm in schedule([arm for arm in chosen if arm.name not in left_out], rounds):
            before = turns.setdefault(arm.name, [])
            if any("failed" in turn for turn in before):
                continue
            remaining_s = deadline_s - time.monotonic()
            needed_s = before[-1]["wall_s"] if before else FIRST_TURN_S
            if remaining_s < needed_s:
                left_out.setdefault(arm.name, f"turn {len(before) + 1}: no time ({remaining_s:.0f} s were left)")
                continue
            turn = take_turn(arm, size, folder, remaining_s)
            before.append(turn)
            took = f"{statistics.median(turn['step_ms']):.2f} ms/step" if "step_ms" in turn else turn["failed"]
            print(f"{arm.name}, turn {len(before)}: {took}, {turn['wall_s']:.0f} s in all", file=sys.stderr, flush=True)
    return turns, left_out


def table(chosen: Sequence[Arm], found: dict[str, dict[str, Any] | None]) -> str:
    """All figures, a line an arm."""
    lines = [
        f"{'arm':26} {'ms/step':>9} {'speed':>7} {'beside':14} {'tokens/s':>10} {'GiB':>7} {'loss':>9} {'change':>8}"
    ]
    for arm in chosen:
        figures = found.get(arm.name)
        if figures is None:
            continue
        beside = found.get(arm.versus)
        speed = f"{beside['step_ms'] / figures['step_ms']:6.2f}x" if beside else "      -"
        change = f"{100 * loss_change(figures, found):+7.2f}%" if found.get(EAGER) else "       -"
        lines.append(
            f"{arm.name:26} {figures['step_ms']:9.2f} {speed} {arm.versus:14} {figures['tokens_per_s']:10,} "
            f"{figures['memory_gib']:7.2f} {figures['loss']:9.4f} {change}"
        )
    return "\n".join(lines)


def loss_change(figures: dict[str, Any], found: dict[str, dict[str, Any] | None]) -> float:
    """Relative difference of the last loss from plain BF16's."""
    plain = found[EAGER]
    assert plain is not None
    return figures["loss"] / plain["loss"] - 1


def verdict(
    found: dict[str, dict[str, Any] | None], left_out: dict[str, str], failed: Sequence[str], size: Size
) -> tuple[str, bool]:
    """One line, and whether all is well: nothing failed, and every loss is that of BF16 within the tolerance."""
    measured = {name: figures for name, figures in found.items() if figures}
    parts = [
        f"dry run on a CPU, no measurement: {len(measured)} arms ran" if size.device == "cpu" else speeds(measured)
    ]
    if EAGER in measured:
        wrong = [name for name, each in measured.items() if abs(loss_change(each, found)) > LOSS_TOLERANCE]
        off = f"losses off by more than {LOSS_TOLERANCE:.0%}: {', '.join(wrong)}"
        parts.append(off if wrong else f"all losses within {LOSS_TOLERANCE:.0%} of BF16")
    else:
        wrong = []
        parts.append("losses not compared: plain BF16 was not measured")
    parts += [f"failed: {', '.join(failed)}"] if failed else []
    parts += [f"left out: {', '.join(left_out)}"] if left_out else []
    return f"verdict: {'; '.join(parts)}", bool(measured) and not wrong and not failed


def speeds(measured: dict[str, dict[str, Any]]) -> str:
    """What FP8 wins, and the fastest of all."""
    if COMPILED not in measured:
        return "FP8 was not measured beside compiled BF16"
    plain_ms = measured[COMPILED]["step_ms"]
    fp8 = [f"{name} {plain_ms / each['step_ms']:.2f}x" for name, each in measured.items() if name.startswith("fp8")]
    fastest = min(measured, key=lambda name: measured[name]["step_ms"])
    said = ", ".join(fp8) or "no FP8"
    return f"beside compiled BF16: {said}; fastest {fastest} {plain_ms / measured[fastest]['step_ms']:.2f}x"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="no turn begins that would end later")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each arm, if time allows")
    parser.add_argument("--arms", help="names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="where the figures go")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU; writes only where --out says")
    return parser.parse_args()


def main() -> int:
    """Measure, say what was found, write it down; 0 if every arm ran and learnt the same."""
    deadline_s = time.monotonic()
    given = options()
    deadline_s += 60 * given.minutes
    names = [each.strip() for each in given.arms.split(",")] if given.arms else [arm.name for arm in arms()]
    if unknown := set(names) - {arm.name for arm in arms()}:
        print(
            f"error: --arms {', '.join(sorted(unknown))}: there is {', '.join(arm.name for arm in arms())}",
            file=sys.stderr,
        )
        return 2
    if not given.dry_run and count_gpus() == 0:
        print(
            "error: no GPU on this machine, and these are measurements of one; "
            "--dry-run goes through the motions on a CPU",
            file=sys.stderr,
        )
        return 2
    size, chosen = TINY if given.dry_run else FULL, [arm for arm in arms() if arm.name in names]
    about = machine()
    print(f"{about['gpu']}; " + ", ".join(f"{name} {number}" for name, number in versions().items()), flush=True)
    turns, left_out = measure(chosen, size, given.rounds, deadline_s)
    found = {name: summary(each, size) for name, each in turns.items() if each}
    failed = [name for name, each in turns.items() if any("failed" in turn for turn in each)]
    line, is_well = verdict(found, left_out, failed, size)
    content = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "versions": versions(),
        "recipes": {arm.name: recipe_of(arm, size) for arm in chosen},
        "figures": found,
        "turns": turns,
        "left_out": left_out,
        "verdict": line,
    }
    file = given.out or (None if given.dry_run else Path(__file__).resolve().parent / "results" / "gpu_parallel.json")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n")
    print(table(chosen, found))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    print(line)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
