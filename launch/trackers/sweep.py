"""The summary of a run, swept together from what it left in its folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from .. import run_folder


def summary(folder: Path) -> dict[str, Any]:
    """One number for each question that is asked of a list of runs; what was not measured is not in it."""
    records = list(_records(folder / "metrics.jsonl"))
    trained = [each for each in records if each.get("kind") == "train"]
    held_out = [each for each in records if each.get("kind") == "evaluation"]
    found: dict[str, Any] = {}
    if trained:
        last = trained[-1]
        steady = trained[1:] or trained  # the first interval compiles, allocates and fills its pipes
        found |= {name: last[name] for name in ("step", "loss", "tokens_seen", "elapsed_s") if name in last}
        for name in ("tokens_per_s", "step_ms", "data_wait_percent", "mfu_percent"):
            if values := _numbers(steady, name):
                found[f"median_{name}"] = median(values)
        if values := _numbers(trained, "memory_gib"):
            found["peak_memory_gib"] = max(values)
    if values := [(each["held_out_loss"], each["step"]) for each in held_out if _is_number(each["held_out_loss"])]:
        found["held_out_loss"] = values[-1][0]
        found["best_held_out_loss"], found["best_held_out_step"] = min(values)
    ended = run_folder.read_exit(folder) or {"code": None, "reason": "never came to say how it ended"}
    return found | {"exit_code": ended["code"], "reason": ended["reason"]}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may be cut off."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _numbers(records: list[dict[str, Any]], name: str) -> list[float]:
    return [each[name] for each in records if _is_number(each.get(name))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
