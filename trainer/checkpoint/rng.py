"""The random state of a rank as tensors, so that a checkpoint holds nothing but tensors and JSON."""

import random

import torch
from torch import Tensor


def capture(device: torch.device) -> dict[str, Tensor]:
    """State of torch's generators on the host and on this rank's device, and of Python's `random`."""
    version, words, gauss = random.getstate()
    assert version == 3, "the layout of random.getstate() has changed"
    # 32-bit words are exact in float64; NaN stands for "no pending Gaussian".
    python = torch.tensor([*map(float, words), float("nan") if gauss is None else gauss], dtype=torch.float64)
    state = {"torch": torch.get_rng_state(), "python": python}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Tensor], device: torch.device) -> None:
    """Continue where `capture` was called."""
    torch.set_rng_state(state["torch"])
    *words, gauss = state["python"].tolist()
    random.setstate((3, tuple(map(int, words)), None if gauss != gauss else gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
