"""How many accelerators this machine shows, found without importing torch."""

import os
import re
from pathlib import Path

_DEVICE = re.compile(r"nvidia\d+")


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
