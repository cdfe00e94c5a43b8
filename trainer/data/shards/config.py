"""The recipe's table of image shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ....strategies.limits import Above, AtMost, Below, Count, PositiveFloat, PositiveInt
from ..wanted import Gives, Need, Say, Wanted

if TYPE_CHECKING:
    from ..source import Source


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Images with a class each in tar shards, laid out as WebDataset does: `key.jpg` beside `key.cls`.

    Samples are read by their number through an index, so that the order is exact for any ranks and workers.
    """

    paths: tuple[str, ...]
    """Shards: files, glob patterns, `shard-{000..127}.tar`, or http(s) addresses, fetched once into the cache."""
    held_out_paths: tuple[str, ...] = ()
    """Shards that are only evaluated on; left out, a part of `paths` is."""
    held_out: Annotated[float, Above(0), Below(1)] = 0.05
    """Part of the samples that is only evaluated on, chosen by a hash of the sample's key."""
    image_size: PositiveInt = 224
    """S: images become 3 x S x S."""
    label: Literal["cls", "txt", "json"] = "cls"
    """Ending of the member that holds the class: a number as text, or a JSON object."""
    label_key: str = "label"
    """Where in a JSON object the class stands."""
    num_classes: PositiveInt | None = None
    """Classes that there are, if a label beyond them shall be an error of the data rather than one of the model."""
    smallest_crop: Annotated[float, Above(0), AtMost(1)] = 0.08
    """Least part of the image's area that a random training crop has; 1 takes the middle, as evaluation does."""
    flip: bool = True
    """Mirror every second training image."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Of red, green and blue between 0 and 1; subtracted (ImageNet's)."""
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    """By what they are divided after that."""
    manifest: str | None = None
    """File with the hash of each shard, left by `stepladder data index`; a shard that differs is refused."""
    on_error: Literal["stop", "skip"] = "stop"
    """A damaged sample ends the run, or takes part without a label, so that it counts nothing."""
    max_skipped: Count = 100
    """Different samples that a rank may skip before the run ends all the same (on_error = "skip")."""
    max_megapixels: PositiveFloat = 64.0
    """Larger images are damaged or hostile: they would take memory without bound."""
    max_member_mib: PositiveFloat = 64.0
    """The same for the bytes of an image."""

    gives: ClassVar[Gives] = "images"
    num_ids: ClassVar[int] = 0

    def prepare(self, need: Need, say: Say) -> None:
        """Fetch shards, index those that are new, and see that each split has samples."""
        from .prepare import prepare

        prepare(self, need, say)

    def open(self, split: str, wanted: Wanted) -> "Source":
        """Images of a split."""
        from .source import open_images

        return open_images(self, split, wanted)

    def problems(self) -> Iterator[str]:
        """Paths that match nothing, keys without effect, a library that is not there."""
        import importlib.util

        from .names import missing

        if not self.paths:
            yield "paths = []: no data; name at least one shard"
        for key in ("paths", "held_out_paths"):
            yield from (f"{key} = {each}" for each in missing(getattr(self, key)))
        for key in ("mean", "deviation"):
            if len(getattr(self, key)) != 3:
                yield f"{key} = {list(getattr(self, key))}: must be three numbers, for red, green and blue"
        if any(each <= 0 for each in self.deviation):
            yield f"deviation = {list(self.deviation)}: must be greater than 0"
        if self.label != "json" and self.label_key != "label":
            yield f"label_key = {self.label_key!r}: has no effect with label = {self.label!r}; remove it"
        if self.on_error == "stop" and self.max_skipped != 100:
            yield f"max_skipped = {self.max_skipped}: has no effect with on_error = 'stop'; remove it"
        if importlib.util.find_spec("PIL") is None:
            yield "paths: images need Pillow, which is not installed; pip install 'stepladder[data]'"
