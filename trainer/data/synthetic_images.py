"""Random images that stay on the device, each with a class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...strategies.limits import PositiveInt
from .wanted import Gives, Need, Say, Wanted

if TYPE_CHECKING:
    from .source import Source


@dataclass(frozen=True, kw_only=True)
class SyntheticImages:
    """Random images that stay on the device: no loading at all, for pure speed."""

    num_samples: PositiveInt = 64
    """Distinct images, used again and again in a new order."""
    image_size: PositiveInt = 224
    """Height and width."""
    channels: PositiveInt = 3
    """Numbers of a pixel."""
    num_classes: PositiveInt = 1000
    """Classes that they are of."""

    gives: ClassVar[Gives] = "images"
    num_ids: ClassVar[int] = 0

    def prepare(self, need: Need, say: Say) -> None:
        """Nothing has to be there."""

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Images drawn on the device."""
        from .image_source import synthetic_images

        return synthetic_images(self, split, wanted)
