"""Samples by number: which, in which order, what of them is seen, and what happens to damaged ones."""

import http.server
import itertools
import json
import os
import struct
import threading
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from image_shards import numbered_shards, picture, replaced, smooth, tar_of

from stepladder.trainer.data import stages
from stepladder.trainer.data.config import LoaderConfig
from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.feed import host_batches
from stepladder.trainer.data.loader_meter import LoaderMeter
from stepladder.trainer.data.order import Share, permutation
from stepladder.trainer.data.shards.config import ShardsConfig
from stepladder.trainer.data.shards.index import write_manifest
from stepladder.trainer.data.shards.names import expanded, local_shards
from stepladder.trainer.data.shards.prepare import index_all, samples_of
from stepladder.trainer.data.shards.source import ImageShards, open_images
from stepladder.trainer.data.shards.write import write_shards
from stepladder.trainer.data.wanted import Need, Wanted, silent

WANTED = Wanted(sequence_length=1, vocab_size=0, seed=3, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))


def table(folder: Path, **keys: Any) -> ShardsConfig:
    return ShardsConfig(**{"paths": (str(folder / "*.tar"),), "image_size": 8, "held_out": 0.2} | keys)


def source(config: ShardsConfig, split: str = "train") -> ImageShards:
    return open_images(config, split, WANTED)


def test_every_sample_is_in_one_split_with_its_own_image_and_label(tmp_path: Path) -> None:
    numbered_shards(tmp_path / "s", [40, 1, 0, 59], ending="png")
    both = [source(table(tmp_path / "s", smallest_crop=1.0, flip=False), split) for split in ("train", "held_out")]
    seen: list[int] = []
    for each in both:
        batch = each.__getitems__(range(len(each)))  # type: ignore[arg-type]
        assert torch.equal(batch.inputs[:, 4, 4, 0].long(), batch.labels)  # red says the number
        seen += batch.labels.tolist()
    assert sorted(seen) == list(range(100))
    assert 5 < len(both[1]) < 40


def test_finished_images_are_planes_normalised_as_the_recipe_says(tmp_path: Path) -> None:
    numbered_shards(tmp_path / "s", [30], ending="png")
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    images = source(table(tmp_path / "s", mean=mean, deviation=deviation))
    raw = images.__getitems__([0, 3])
    found = images.finish(raw).inputs
    plain = raw.inputs.permute(0, 3, 1, 2).double() / 255
    plain = (plain - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(deviation).view(1, 3, 1, 1)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), plain, atol=1e-5, rtol=0)


def test_an_epoch_has_views_of_its_own_and_any_worker_sees_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    image = smooth(64, 48, "JPEG")
    members = [(f"{n}.{end}", raw) for n in range(12) for end, raw in (("jpg", image), ("cls", str(n).encode()))]
    (folder / "a.tar").write_bytes(tar_of(members))
    config = table(folder)
    first, again = (source(config) for _ in range(2))
    number = len(first)
    one, other = first.__getitems__(range(number)), first.__getitems__(range(number, 2 * number))  # type: ignore[arg-type]
    assert torch.equal(one.labels, other.labels)
    assert not any(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    assert torch.equal(again.__getitems__([number + 2]).inputs[0], other.inputs[2])
    held = source(config, "held_out")
    assert torch.equal(held.__getitems__([0]).inputs, held.__getitems__([len(held)]).inputs)


def samples_seen(config: ShardsConfig, *, ranks: int, loader: LoaderConfig, steps: range, batch: int) -> list[Any]:
    """Labels of every step, all ranks together."""
    seen: list[list[int]] = [[] for _ in steps]
    for rank in range(ranks):
        images = source(config)
        share = Share(
            num_samples=len(images),
            microbatch_size=batch // ranks,
            num_microbatches=1,
            rank=rank,
            num_ranks=ranks,
            seed=5,
            by_epoch=images.varies,
        )
        batches = host_batches(images, share, loader, first_step=steps.start, pin=False)
        for at, each in enumerate(islice(batches, len(steps))):
            seen[at] += each.labels.tolist()
    return seen


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_resume_on_other_ranks_and_workers_continues_the_same_order(tmp_path: Path, kind: Any) -> None:
    """Five shards for eight readers: with an index it does not matter."""
    numbered_shards(tmp_path / "s", [11, 3, 0, 20, 9], ending="png")
    config = table(tmp_path / "s")
    plain = LoaderConfig()
    truth = samples_seen(config, ranks=1, loader=plain, steps=range(12), batch=8)
    begun = samples_seen(config, ranks=2, loader=LoaderConfig(num_workers=4, worker_kind=kind), steps=range(5), batch=8)
    resumed = samples_seen(
        config, ranks=4, loader=LoaderConfig(num_workers=1, worker_kind=kind), steps=range(5, 12), batch=8
    )
    assert begun + resumed == truth
    flat = [label for step in truth for label in step]
    number = len(source(config))
    assert Counter(flat[:number]) == Counter(dict.fromkeys(flat[:number], 1))
    order = [int(source(config).__getitems__([int(i)]).labels[0]) for i in permutation(number, 5, 0)]
    assert flat[:number] == order


def test_a_damaged_image_stops_the_run_with_its_file_and_key_or_counts_nothing(tmp_path: Path) -> None:
    paths = numbered_shards(tmp_path / "s", [10, 10])
    replaced(paths[1], {"000013.jpg": picture(13)[:200], "000015.cls": b"cat"})
    stop = source(table(tmp_path / "s", held_out=1e-9))
    with pytest.raises(DataError, match=r"shard-001\.tar: sample '000013' cannot be decoded .*on_error = 'skip'"):
        stop.__getitems__([12, 13])
    with pytest.raises(DataError, match=r"sample '000015' has a label that is no class \(b'cat'\)"):
        stop.__getitems__([15])

    skip = source(table(tmp_path / "s", held_out=1e-9, on_error="skip", max_skipped=1))
    assert not skip.all_valid
    assert skip.__getitems__([12, 13, 14]).labels.tolist() == [12, -100, 14]
    share = Share(num_samples=20, microbatch_size=10, num_microbatches=1, rank=0, num_ranks=1, seed=0)
    for loader in (LoaderConfig(), LoaderConfig(num_workers=2), LoaderConfig(num_workers=2, worker_kind="thread")):
        meter = LoaderMeter(max_skipped=2)
        batches = host_batches(skip, share, loader, first_step=0, pin=False, meter=meter)
        labels = [label for batch in islice(batches, 6) for label in batch.labels.tolist()]
        assert labels.count(-100) == 6  # both, in each of three epochs
        assert len(meter.skipped) == 2
        with pytest.raises(DataError, match=r"2 damaged samples, but only 1 may be skipped"):
            list(
                islice(host_batches(skip, share, loader, first_step=0, pin=False, meter=LoaderMeter(max_skipped=1)), 2)
            )


def claims(width: int, height: int) -> bytes:
    """A PNG that says it is so large, of which there is nothing but the beginning."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("claimed", "keys", "said"),
    [
        ((8001, 8000), {}, r"has 8001 x 8000 pixels, more than data\.shards\.max_megapixels"),
        ((101, 100), {"max_megapixels": 0.01}, r"has 101 x 100 pixels, more than data\.shards\.max_megapixels"),
        ((60_000, 60_000), {"max_megapixels": 1e6}, r"cannot be decoded \(.*decompression bomb"),
    ],
)
def test_an_image_that_would_fill_the_memory_is_damage_before_it_is_decoded(
    tmp_path: Path, claimed: tuple[int, int], keys: dict[str, Any], said: str
) -> None:
    (path,) = numbered_shards(tmp_path / "s", [4], ending="png")
    replaced(path, {"000002.png": claims(*claimed)})
    with pytest.raises(DataError, match=rf"shard-000\.tar: sample '000002' {said}"):
        source(table(tmp_path / "s", held_out=1e-9, **keys)).__getitems__([2])
    skip = source(table(tmp_path / "s", held_out=1e-9, on_error="skip", **keys))
    assert skip.__getitems__([1, 2]).labels.tolist() == [1, -100]


@pytest.mark.parametrize("loader", [LoaderConfig(num_workers=2), LoaderConfig(num_workers=2, worker_kind="thread")])
def test_a_worker_hands_its_sentence_on_as_it_is(tmp_path: Path, loader: LoaderConfig) -> None:
    (path,) = numbered_shards(tmp_path / "s", [10])
    replaced(path, {"000003.jpg": b"no image"})
    images = source(table(tmp_path / "s", held_out=1e-9))
    share = Share(num_samples=10, microbatch_size=10, num_microbatches=1, rank=0, num_ranks=1, seed=0)
    with pytest.raises(DataError, match=rf"^{path}: sample '000003' cannot be decoded"):
        next(host_batches(images, share, loader, first_step=0, pin=False))


def test_a_truncated_shard_stops_or_gives_the_samples_before_the_cut(tmp_path: Path) -> None:
    (path,) = numbered_shards(tmp_path / "s", [10])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    config = table(tmp_path / "s", held_out=1e-9)
    with pytest.raises(DataError, match=r"shard-000\.tar: is truncated: .*on_error = 'skip'"):
        source(config)
    left = source(table(tmp_path / "s", held_out=1e-9, on_error="skip"))
    labels = left.__getitems__(range(len(left))).labels.tolist()  # type: ignore[arg-type]
    assert labels == list(range(len(labels)))
    assert 3 <= len(labels) <= 5

    path.write_bytes(whole)
    opened = source(config)
    os.truncate(path, len(whole) // 2)
    with pytest.raises(DataError, match=r"sample '000009' lies behind the end of the file, which was truncated after"):
        opened.__getitems__([9])


def test_samples_without_image_or_label_and_pickles_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.tar").write_bytes(
        tar_of([("a.jpg", picture(1)), ("a.cls", b"1"), ("b.pyd", b"x"), ("b.cls", b"1"), ("c.jpg", picture(1))])
    )
    with pytest.raises(DataError, match=r"sample 'b' has no image, only \.pyd, \.cls; \.pyd is not read, since unpick"):
        source(table(folder, held_out=1e-9))
    found = samples_of(table(folder, held_out=1e-9, on_error="skip"), "train")
    assert found.keys == ("a",)
    assert "sample 'c' has no label (.cls), only .jpg" in found.missing[1]
    with pytest.raises(DataError, match="max_skipped = 1: 2 samples and shards are unusable"):
        source(table(folder, held_out=1e-9, on_error="skip", max_skipped=1))


def test_labels_in_json_and_beyond_the_classes(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    labels: list[object] = [{"class": 4}, {"class": "4"}, [1], {"class": 9}, {"class": True}]
    members = [
        (f"{n}.{e}", r)
        for n, x in enumerate(labels)
        for e, r in (("jpg", picture(n)), ("json", json.dumps(x).encode()))
    ]
    (folder / "a.tar").write_bytes(tar_of(members))
    images = source(table(folder, held_out=1e-9, label="json", label_key="class", num_classes=9))
    assert images.__getitems__([0]).labels.tolist() == [4]
    for bad in (1, 2, 4):
        with pytest.raises(DataError, match="no class at 'class'"):
            images.__getitems__([bad])
    with pytest.raises(DataError, match=r"is of class 9, but data\.shards.num_classes = 9"):
        images.__getitems__([3])


def test_nothing_to_read_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    numbered_shards(folder, [0, 0])
    with pytest.raises(DataError, match="2 shards hold no train sample; they are empty"):
        source(table(folder))
    (problem,) = ShardsConfig(paths=(str(tmp_path / "x-{0..2}.tar"),)).problems()
    assert "no such file" in problem
    numbered_shards(folder, [20])
    with pytest.raises(DataError, match=r"the held_out part has \d+ samples, not the 64"):
        table(folder, held_out=0.5).prepare(Need(sequence_length=1, held_out_samples=64), silent)


def test_an_index_is_built_once_and_anew_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stepladder.trainer.data.shards import index

    paths = numbered_shards(tmp_path / "s", [3, 4])
    scanned: list[Path] = []
    scan = index.scan
    monkeypatch.setattr(index, "scan", lambda path: (scanned.append(path), scan(path))[1])
    patterns = [str(tmp_path / "s" / "*.tar")]
    before, again = index_all(patterns), index_all(patterns)
    assert scanned == paths
    assert [each.keys for each in before] == [each.keys for each in again]
    assert [each.offset.tolist() for each in before] == [each.offset.tolist() for each in again]
    replaced(paths[1], {"000003.cls": b"999"})
    assert index_all(patterns)[1].sha256 != before[1].sha256
    assert scanned == [*paths, paths[1]]


def test_a_shard_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    paths = numbered_shards(tmp_path / "s", [3, 4])
    manifest = tmp_path / "shards.json"
    write_manifest(index_all([str(path) for path in paths]), manifest)
    config = table(tmp_path / "s", manifest=str(manifest), held_out=1e-9)
    assert len(source(config)) == 7
    replaced(paths[1], {"000003.cls": b"2"})
    with pytest.raises(DataError, match=r"shard-001\.tar: its SHA-256 is .*shards\.json says .*copy it again"):
        source(config)


def test_braces_count_and_list() -> None:
    assert list(expanded("a-{008..011}.tar")) == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert list(expanded("{x,y}-{0..1}")) == ["x-0", "x-1", "y-0", "y-1"]
    assert list(expanded("plain{}.tar")) == ["plain{}.tar"]


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """A folder by http, and how often each file was asked for; `cut` answers end half-way that often."""
    asked: Counter[str] = Counter()
    cut: Counter[str] = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "s"))

        def do_GET(self) -> None:
            asked[self.path] += 1
            if cut[self.path] >= asked[self.path]:
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"x" * 1000)
                return
            super().do_GET()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked, cut
    server.shutdown()


def test_addresses_are_fetched_once_and_whole(tmp_path: Path, served: tuple[str, Counter[str], Counter[str]]) -> None:
    address, asked, cut = served
    paths = numbered_shards(tmp_path / "s", [3, 4])
    cut["/shard-001.tar"] = 2
    config = ShardsConfig(paths=(f"{address}/shard-{{000..001}}.tar",), image_size=8, held_out=1e-9)
    assert not list(config.problems())
    assert len(source(config)) == len(source(config)) == 7
    assert asked == {"/shard-000.tar": 1, "/shard-001.tar": 3}
    kept = local_shards(config.paths, tmp_path / "cache" / "shards")
    assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in paths]
    with pytest.raises(DataError, match=r"absent\.tar: cannot be fetched \(.*(404|not found).*\)"):
        local_shards([f"{address}/absent.tar"], tmp_path / "cache")
    assert asked["/absent.tar"] == 1
    cut["/shard-000.tar"] = 100
    with pytest.raises(DataError, match=r"cannot be fetched \(it ended after 1,000 of 100000 bytes\)"):
        local_shards([f"{address}/shard-000.tar"], tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_written_shards_hold_the_folder_and_are_the_same_every_time(tmp_path: Path) -> None:
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(5):
            (tmp_path / "images" / name / f"{n}.png").write_bytes(picture(10 * label + n, format="PNG"))
    one, two = (write_shards(tmp_path / "images", tmp_path / to, shard_mib=4e-4) for to in ("a", "b"))
    assert len(one) > 1
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert json.loads((tmp_path / "a" / "classes.json").read_text()) == ["ant", "bee", "cat"]
    images = source(table(tmp_path / "a", held_out=1e-9, smallest_crop=1.0, flip=False))
    batch = images.__getitems__(range(15))  # type: ignore[arg-type]
    red = batch.inputs[:, 4, 4, 0].long()
    assert torch.equal(red // 10, batch.labels)
    assert sorted(red.tolist()) == [10 * label + n for label in range(3) for n in range(5)]
    with pytest.raises(DataError, match="has no images in folders of classes"):
        write_shards(tmp_path / "a", tmp_path / "c")


def test_stages_of_a_batch_add_up_to_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks when it is looked at, all but the last look belongs to a stage."""
    numbered_shards(tmp_path / "s", [20])
    images, ticks = source(table(tmp_path / "s")), itertools.count()
    monkeypatch.setattr(stages.time, "perf_counter", lambda: float(next(ticks)))
    making = stages.make(images, range(10)).making
    assert making.stage_s == (10.0, 10.0, 0.0, 1.0)
    assert making.total_s == sum(making.stage_s) + 1
