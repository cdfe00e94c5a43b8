"""What is fixed before the first segment: it cannot be changed once something is known of the result."""

import contextlib
import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import run_folder
from ..errors import UsageError
from ..recipe import recipe_hash
from .arms import Arm
from .calibration import CALIBRATION_PAIRS
from .sequential import MIN_PAIRS, Protocol
from .workload import measured_part

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)\s*)+|\d+(?:\.\d+)?", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
_LONGEST_S = 366 * 86400
_MOST_PAIRS = 128
"""More take minutes to plan, and would find what no run of a day is sure of."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The protocol of one comparison."""

    protocol: Protocol = field(default_factory=Protocol)
    seed: int = 0
    """Of the order of segments."""
    window_steps: int = 20
    """Steps measured in a segment, at least."""
    window_s: float = 2.0
    """Time measured in a segment, at least; short steps are taken more often."""
    calibration_pairs: int = CALIBRATION_PAIRS
    """Pairs of the recipe against itself that tell the noise floor."""
    ranks: int | None = None
    """Ranks on this machine, as with `--ranks`."""
    profile: bool = True
    """Whether a profiled window of each arm says why, after the measurement."""

    def problems(self) -> list[str]:
        """What would make every verdict impossible."""
        found: list[str] = []
        if self.window_steps < 5:
            found.append(f"--window-steps {self.window_steps}: too few for a median; measure 5 at least, 20 by default")
        if not 0 <= self.window_s < float("inf"):
            found.append(f"--window-seconds {self.window_s}: not a time; give 2, or 0 for no least time")
        if max(self.protocol.max_pairs, self.calibration_pairs) > _MOST_PAIRS:
            option = "pairs" if self.protocol.max_pairs > _MOST_PAIRS else "calibration-pairs"
            found.append(f"--{option}: {_MOST_PAIRS} are the most that can be planned; allow fewer, 16 by default")
        if self.calibration_pairs < MIN_PAIRS:
            found.append(
                f"--calibration-pairs {self.calibration_pairs}: too few for a noise floor; measure {MIN_PAIRS} at "
                f"least, {CALIBRATION_PAIRS} by default"
            )
        return found


def make_protocol(*, max_pairs: int, margin: float, alpha: float) -> Protocol:
    """The protocol of the test. Raises: UsageError with the options that give none."""
    try:
        return Protocol(max_pairs=max_pairs, margin=margin, alpha=alpha)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('max_pairs', 'pairs').replace(' =', '', 1)}") from error


def seconds_of(text: str, option: str) -> float:
    """`90`, `90s`, `10m`, `1.5h`, `1h30m`. Raises: UsageError."""
    seconds = 0.0
    if _DURATION.fullmatch(text.strip()):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"{option} {text[:60]}: not a time; write for example 90s, 10m or 1h30m")
    return seconds


def share_of(text: str, option: str) -> float:
    """`1%` or `0.01`. Raises: UsageError."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{option} {text}: not a share; write for example 1% or 0.01") from error


def machine() -> dict[str, Any]:
    """What must be the same for times to be comparable."""
    return {
        "host": socket.gethostname(),
        "processor": run_folder.processor(),
        "cores": os.cpu_count(),
        "gpus": _gpus(),
        "torch": version("torch"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _gpus(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Models of the GPUs, as the driver tells them without being started."""
    found: list[str] = []
    for path in sorted(folder.glob("*/information")):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return found


def identity(arms: Sequence[Arm], declared: Declared, here: Mapping[str, Any]) -> dict[str, Any]:
    """All that a resumed comparison must have in common with the one that was begun."""
    recipes = {arm.name: recipe_hash(measured_part(arm.recipe)) for arm in arms}
    return {"arms": recipes, "declared": asdict(declared), "machine": dict(here)}


def differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two identities differ, in words; the profile may be left out later on."""
    found: list[str] = []
    before, after = begun["arms"], now["arms"]
    found += [f"arm {name} is new" for name in after if name not in before]
    found += [f"arm {name} is missing" for name in before if name not in after]
    found += [
        f"the recipe of arm {name} is another one" for name in after if before.get(name, after[name]) != after[name]
    ]
    for table in ("declared", "machine"):
        old, new = (json.loads(json.dumps(each[table])) for each in (begun, now))
        for key in new:
            if key != "profile" and old.get(key) != new[key]:
                found.append(f"{table if table == 'machine' else 'protocol'}: {key} was {old.get(key)}, is {new[key]}")
    return found


def key_of(baseline: Arm, declared: Declared, here: Mapping[str, Any]) -> str:
    """Under which a calibration is kept: this recipe, on this machine."""
    told = [recipe_hash(measured_part(baseline.recipe)), declared.ranks, dict(here)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
