"""The arms of `loader.py`: one process each, that draws batches when it is told to and says how many samples a second.

Text: windows of T + 1 bytes in a random order, inputs and labels int64 [B, T]. Images: JPEGs, cropped at random to
S x S, mirrored at random, normalised, float32 [B, 3, S, S], and a class. Every arm hands over the same kinds of
tensors.
"""

import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXT_LENGTH, IMAGE_SIZE, BATCH = 256, 160, 32
MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32).reshape(3, 1, 1)
DEVIATION = np.array((0.229, 0.224, 0.225), dtype=np.float32).reshape(3, 1, 1)
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def usual_view(image: Any) -> torch.Tensor:
    """What torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize do, on Pillow and numpy."""
    from PIL import Image

    width, height = image.size
    shape = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    area = width * height * random.uniform(0.08, 1)
    across, down = min(width, round(math.sqrt(area * shape))), min(height, round(math.sqrt(area / shape)))
    left, top = random.randint(0, width - across), random.randint(0, height - down)
    view = image.convert("RGB").crop((left, top, left + across, top + down))
    view = view.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    planes = np.asarray(view, dtype=np.float32).transpose(2, 0, 1) / 255
    return torch.from_numpy((planes - MEAN) / DEVIATION)


def of_a_torch_loader(dataset: Any, workers: int, **how: Any) -> Batches:
    """Batches of a torch DataLoader, pass after pass."""
    if workers:
        how |= {"num_workers": workers, "persistent_workers": True}
    loader = torch.utils.data.DataLoader(dataset, **({"batch_size": BATCH} | how))
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield tuple(batch.values()) if isinstance(batch, dict) else tuple(batch)


# --- ours ------------------------------------------------------------------------------------------------------------


def stepladder(workload: str, folder: Path, workers: int, kind: str) -> Batches:
    from stepladder.trainer.data.config import LoaderConfig
    from stepladder.trainer.data.feed import finisher, host_batches
    from stepladder.trainer.data.loader_meter import LoaderMeter
    from stepladder.trainer.data.order import Share
    from stepladder.trainer.data.shards.config import ShardsConfig
    from stepladder.trainer.data.shards.source import open_images
    from stepladder.trainer.data.source import PackedBytes
    from stepladder.trainer.data.token_source import TokenWindows
    from stepladder.trainer.data.wanted import Wanted

    if workload == "text":
        raw = np.memmap(folder / "text.u8", dtype=np.uint8, mode="c")
        source: Any = PackedBytes(torch.from_numpy(raw), TEXT_LENGTH, "text")
        if kind == "packed folder":
            source = TokenWindows(raw, None, TEXT_LENGTH, "text")
    else:
        wanted = Wanted(sequence_length=1, vocab_size=0, seed=0, device=torch.device("cpu"))
        table = ShardsConfig(paths=(str(folder / "shards" / "*.tar"),), image_size=IMAGE_SIZE, held_out=1e-9)
        source = open_images(table, "train", wanted)
    share = Share(
        num_samples=len(source),
        microbatch_size=BATCH,
        num_microbatches=1,
        rank=0,
        num_ranks=1,
        seed=0,
        by_epoch=getattr(source, "varies", False),
    )
    loader = LoaderConfig(num_workers=workers, worker_kind=kind) if workers else LoaderConfig()  # type: ignore[arg-type]
    finish = finisher(source) or (lambda batch: batch)
    batches = host_batches(source, share, loader, first_step=0, pin=False, meter=LoaderMeter())
    return ((batch.inputs, batch.labels) for batch in map(finish, batches))


# --- a plain DataLoader ----------------------------------------------------------------------------------------------


class Windows(torch.utils.data.Dataset[Any]):
    """Windows of a memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self.raw = np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return (len(self.raw) - 1) // TEXT_LENGTH

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = index * TEXT_LENGTH
        window = torch.from_numpy(self.raw[at : at + TEXT_LENGTH + 1].astype(np.int64))
        return window[:-1], window[1:]


class WindowsAtOnce(Windows):
    """The same, a whole batch in one indexing: the fastest that a plain loader can be."""

    def __getitem__(self, indices: Any) -> Any:
        rows = np.asarray(indices)[:, None] * TEXT_LENGTH + np.arange(TEXT_LENGTH + 1)
        windows = torch.from_numpy(self.raw[rows].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class Files(torch.utils.data.Dataset[Any]):
    """Image files in folders of classes."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        names = sorted({path.parent.name for path in self.paths})
        self.labels = [names.index(path.parent.name) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return usual_view(image), self.labels[index]


class OurDecoder(Files):
    """Image files decoded as stepladder does, so that what a loader is worth can be told from what a decoder is."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from stepladder.trainer.data.shards.images import decode_into, uniform_numbers

        pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        draws = uniform_numbers(0, random.getrandbits(32), index)
        decode_into(pixels, self.paths[index].read_bytes(), draws=draws, smallest=0.08, flip=True)
        planes = pixels.transpose(2, 0, 1).astype(np.float32) / 255
        return torch.from_numpy((planes - MEAN) / DEVIATION), self.labels[index]


def plain(workload: str, folder: Path, workers: int, kind: str) -> Batches:
    if workload == "images":
        files = OurDecoder(folder / "images") if kind == "our decoder" else Files(folder / "images")
        return of_a_torch_loader(files, workers, shuffle=True)
    if kind == "batched":
        windows = WindowsAtOnce(folder / "text.u8")
        order = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(windows), BATCH, True)
        return of_a_torch_loader(windows, workers, batch_size=None, sampler=order)
    return of_a_torch_loader(Windows(folder / "text.u8"), workers, shuffle=True)


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


def datasets(workload: str, folder: Path, workers: int, kind: str) -> Batches:
    import datasets as hugging_face

    hugging_face.disable_progress_bars()
    table = hugging_face.load_from_disk(str(folder / f"hf-{workload}"))
    if workload == "text":
        table = table.with_format(kind)

        def cut(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            windows = torch.as_tensor(np.asarray(batch["window"])).long()
            return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

        order = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(table), BATCH, True)
        return of_a_torch_loader(_Through(table, cut), workers, batch_size=None, sampler=order)

    def view(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [usual_view(image) for image in rows["image"]], "label": rows["label"]}

    return of_a_torch_loader(table.with_transform(view), workers, shuffle=True)


class _Through(torch.utils.data.Dataset[Any]):
    """Whole batches of a table through a function."""

    def __init__(self, table: Any, function: Callable[[Any], Any]) -> None:
        self.table, self.function = table, function

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, indices: Any) -> Any:
        return self.function(self.table[indices])


# --- WebDataset ------------------------------------------------------------------------------------------------------


def webdataset(workload: str, folder: Path, workers: int, kind: str) -> Batches:
    import webdataset as wds

    shards = sorted(str(path) for path in (folder / ("shards" if workload == "images" else "wds-text")).glob("*.tar"))
    pipeline: Any = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False, seed=0).shuffle(1000)
    if workload == "images":
        pipeline = pipeline.decode("pil").to_tuple("jpg", "cls").map_tuple(usual_view, lambda label: label)
        pipeline = pipeline.batched(BATCH)
    else:

        def cut(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            windows = torch.from_numpy(np.stack([np.frombuffer(raw, dtype=np.uint8) for raw in batch[0]])).long()
            return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

        pipeline = (
            pipeline.to_tuple("bin").batched(BATCH, collation_fn=lambda rows: tuple(zip(*rows, strict=True))).map(cut)
        )
    return iter(wds.WebLoader(pipeline.repeat(), batch_size=None, num_workers=workers, persistent_workers=workers > 0))


ARMS: dict[str, Callable[..., Batches]] = {
    "stepladder": stepladder,
    "DataLoader": plain,
    "datasets": datasets,
    "WebDataset": webdataset,
}


def check(workload: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Every arm must hand over the same kinds of tensors."""
    inputs, labels = batch
    if workload == "text":
        assert inputs.shape == labels.shape == (BATCH, TEXT_LENGTH), (inputs.shape, labels.shape)
        assert inputs.dtype == labels.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], labels[:, :-1])
    else:
        assert inputs.shape == (BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), inputs.shape
        assert inputs.dtype == torch.float32
        assert labels.shape == (BATCH,)
        assert abs(float(inputs.mean())) < 2


def main() -> None:
    """`loader_arms.py WORKLOAD FOLDER NAME WORKERS KIND`; then a line with seconds for each turn."""
    workload, folder, name, workers, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    random.seed(0)
    batches = (batch for batch in ARMS[name](workload, folder, workers, kind) if len(batch[0]) == BATCH)
    check(workload, next(batches))
    in_store = 2 * workers + 1
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        seconds = float(line)
        for _ in range(in_store):  # made while others had their turn
            next(batches)
        start, count = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            next(batches)
            count += 1
        print(json.dumps(count * BATCH / took), file=answers, flush=True)
    answers.flush()
    os._exit(0)  # no farewell of worker processes


if __name__ == "__main__":
    main()
