"""Images by index that need no loading."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...strategies.base import Batch
from .source import on_the_device_of
from .synthetic_images import SyntheticImages
from .wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence


class SyntheticImageSource:
    """Normal noise with a random class each; a microbatch is a gather on the device."""

    all_valid = True
    on_device = True

    def __init__(self, config: SyntheticImages, *, seed: int, device: torch.device) -> None:
        generator = torch.Generator(device=device).manual_seed(seed)
        shape = (config.num_samples, config.channels, config.image_size, config.image_size)
        self.images = torch.randn(shape, generator=generator, device=device)
        self.labels = torch.randint(config.num_classes, shape[:1], generator=generator, device=device)
        self.fingerprint = f"synthetic-images-{'-'.join(map(str, shape))}-{config.num_classes}-{seed}"

    def __len__(self) -> int:
        """Distinct images."""
        return len(self.images)

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """[B, c, H, W] images and their classes [B]."""
        rows = on_the_device_of(self.images, indices)
        return Batch(self.images.index_select(0, rows), self.labels.index_select(0, rows))


def synthetic_images(config: SyntheticImages, split: str, wanted: Wanted) -> SyntheticImageSource:
    """Random images of a split."""
    return SyntheticImageSource(config, seed=wanted.seed + (split != "train"), device=wanted.device)
