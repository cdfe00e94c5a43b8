"""Images by sample number, read where the index says they lie."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch

from ....strategies.base import Batch
from ..errors import DataError
from ..stages import Stage, StageClock
from ..wanted import Wanted
from .config import ShardsConfig
from .images import SampleDamageError, decode_into, uniform_numbers
from .prepare import Samples, samples_of

if TYPE_CHECKING:
    from torch import Tensor

_OPEN_FILES = 64
_MAX_LABEL_BYTES = 1 << 16


class ImageShards:
    """Images of tar shards. An index is sample + epoch * N, so that each epoch crops and mirrors anew.

    Batches are uint8 until `finish` has brought them to numbers on the device: a quarter of the bytes to copy.
    """

    on_device = False
    varies = True
    """Samples differ from epoch to epoch, so the order must say which it is."""

    def __init__(self, config: ShardsConfig, samples: Samples, *, seed: int, random: bool) -> None:
        self.config = config
        self.samples = samples
        self.seed = seed
        self.random = random
        self.all_valid = config.on_error == "stop"
        self.max_skipped = None if self.all_valid else config.max_skipped
        self.fingerprint = _fingerprint(config, samples)
        self._files = _OpenFiles()
        self._factors: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """Samples of the split."""
        return len(self.samples)

    def __getitems__(self, indices: "Tensor | Sequence[int]") -> Batch:
        """[B, S, S, 3] uint8 images and [B] labels. Raises: DataError for a damaged sample."""
        return self.measured(indices, StageClock())

    def measured(self, indices: "Tensor | Sequence[int]", clock: StageClock) -> Batch:
        """The same, with its stages on the clock."""
        numbers: list[int] = torch.as_tensor(indices).tolist()
        size = self.config.image_size
        images = torch.empty((len(numbers), size, size, 3), dtype=torch.uint8)
        labels = torch.empty(len(numbers), dtype=torch.int64)
        pixels = images.numpy()
        clock.lap(Stage.COLLATE)
        for row, number in enumerate(numbers):
            epoch, sample = divmod(number, len(self.samples))
            try:
                raw, label = self._read(sample)
                clock.lap(Stage.READ)
                self._decode(pixels[row], raw, epoch, sample)
                labels[row] = label
            except SampleDamageError as error:
                sentence = f"{self.where(sample)} {error}"
                if self.config.on_error == "stop":
                    raise DataError(f"{sentence}; mend it, or set data.shards.on_error = 'skip'") from error
                clock.skip(sentence)
                pixels[row] = 0
                labels[row] = -100
            clock.lap(Stage.DECODE)
        return Batch(images, labels)

    def finish(self, batch: Batch) -> Batch:
        """[B, 3, S, S] float32, normalised, on whatever device the batch is."""
        images = batch.inputs
        if self._factors is None or self._factors[0].device != images.device:
            deviation = torch.tensor(self.config.deviation, device=images.device).view(1, 3, 1, 1)
            mean = torch.tensor(self.config.mean, device=images.device).view(1, 3, 1, 1)
            self._factors = 1 / (255 * deviation), mean / deviation
        planes = images.permute(0, 3, 1, 2).contiguous().float()
        return batch._replace(inputs=planes.mul_(self._factors[0]).sub_(self._factors[1]))

    def where(self, sample: int) -> str:
        """File and key of a sample, for whoever has to look at it."""
        return f"{self.samples.shards[int(self.samples.shard[sample])]}: sample {self.samples.keys[sample]!r}"

    def _decode(self, out: Any, raw: bytes, epoch: int, sample: int) -> None:
        draws = uniform_numbers(self.seed, epoch, sample) if self.random else None
        decode_into(
            out,
            raw,
            draws=draws,
            smallest=self.config.smallest_crop,
            flip=self.config.flip,
            max_pixels=self.config.max_megapixels * 1e6,
        )

    def _read(self, sample: int) -> tuple[bytes, int]:
        """The image's bytes and the label. Raises: SampleDamageError."""
        path = self.samples.shards[int(self.samples.shard[sample])]
        (offset, size), (label_at, label_size) = (
            self.samples.image[sample].tolist(),
            self.samples.label[sample].tolist(),
        )
        if size > self.config.max_member_mib * 2**20:
            raise SampleDamageError(f"has an image of {size:,} bytes, more than data.shards.max_member_mib")
        if label_size > _MAX_LABEL_BYTES:
            raise SampleDamageError(f"has a label of {label_size:,} bytes")
        try:
            raw = self._files.read(path, offset, size)
            text = self._files.read(path, label_at, label_size)
        except OSError as error:
            raise SampleDamageError(f"cannot be read ({error.strerror})") from error
        if len(raw) < size or len(text) < label_size:
            raise SampleDamageError("lies behind the end of the file, which was truncated after it was indexed")
        return raw, self._label(text)

    def _label(self, text: bytes) -> int:
        """Raises: SampleDamageError."""
        try:
            value: Any = json.loads(text) if self.config.label == "json" else int(text)
            if self.config.label == "json":
                value = cast(dict[str, Any], value)[self.config.label_key]
            if type(value) is not int or value < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            where = f" at {self.config.label_key!r}" if self.config.label == "json" else ""
            raise SampleDamageError(f"has a label that is no class{where} ({text[:40]!r})") from None
        if self.config.num_classes is not None and value >= self.config.num_classes:
            raise SampleDamageError(f"is of class {value}, but data.shards.num_classes = {self.config.num_classes}")
        return value


class _Descriptor:
    """An open file that closes itself when nobody reads from it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles:
    """The files that were read last, kept open; for several threads at once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, _Descriptor] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["_OpenFiles"], tuple[()]]:
        """Another process opens its own."""
        return _OpenFiles, ()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Raises: OSError."""
        with self._lock:
            file = self._kept.pop(path, None) or _Descriptor(path)
            self._kept[path] = file
            if len(self._kept) > _OPEN_FILES:
                self._kept.popitem(last=False)
        return os.pread(file.number, size, offset)


def _fingerprint(config: ShardsConfig, samples: Samples) -> str:
    """Of the shards' content and of what is made of it, wherever the files lie."""
    what = (config.held_out, bool(config.held_out_paths), config.image_size, config.label, config.label_key)
    view = (config.smallest_crop, config.flip, config.mean, config.deviation)
    text = f"images v1 {samples.hashes!r} {len(samples)} {what!r} {view!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_images(config: ShardsConfig, split: str, wanted: Wanted) -> ImageShards:
    """Images of a split, cropped at random for training. Raises: DataError."""
    samples = samples_of(config, split)
    return ImageShards(config, samples, seed=wanted.seed, random=split == "train")
