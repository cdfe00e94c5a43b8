"""How many accelerators this machine shows and what they can do, found without importing torch."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

_DEVICE = re.compile(r"nvidia\d+")
_ASK_CAPABILITY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
_PATIENCE_S = 10.0  # a driver that is not loaded yet takes seconds to answer


def count_gpus(dev: Path = Path("/dev")) -> int:
    """GPUs that this process may use: the driver's device files, narrowed by the usual environment variables.

    ROCm has no such files to count, so there torch is asked.
    """
    if (dev / "kfd").exists():
        import torch

        return torch.cuda.device_count()
    present = sum(1 for path in dev.glob("nvidia*") if _DEVICE.fullmatch(path.name))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or present == 0:
        return present
    named = [each.strip() for each in visible.split(",")]
    # CUDA reads the list up to the first entry that is no device.
    stop = next((i for i, each in enumerate(named) if not each or each.startswith("-")), len(named))
    return min(stop, present)


def compute_capability() -> tuple[int, int] | None:
    """Compute capability of this machine's least capable GPU, (9, 0) for an H100; None if it cannot be asked."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(_ASK_CAPABILITY, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        versions = [line.strip().split(".") for line in asked.stdout.splitlines()] if asked.returncode == 0 else []
        found = [(int(each[0]), int(each[1])) for each in versions if len(each) == 2 and all(map(str.isdigit, each))]
        return min(found, default=None)
    return None
