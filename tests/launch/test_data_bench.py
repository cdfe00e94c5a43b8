"""`stepladder data`: shards written and indexed; a starved recipe found, measured and mended."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_shards import numbered_shards, picture

from stepladder.launch import recipe as recipes
from stepladder.launch.data_bench import Row, choose, write_recipe
from stepladder.launch.feeding import read_times

Command = Callable[..., "subprocess.CompletedProcess[str]"]

IMAGES = """
name = "images"

[run]
num_steps = 60
log_every = 10
device = "cpu"

[model.vit]
image_size = 32
patch_size = 8
dim = 96
num_layers = 4
num_heads = 4
ffn_dim = 384
num_classes = 64

[data.shards]
paths = ["shards/*.tar"]
image_size = 32

[batch]
microbatch_size = 8

[strategies.adamw]
"""


def row(workers: int, wait: float, kind: str = "process", prefetch: int = 2) -> Row:
    return Row(kind=kind, num_workers=workers, prefetch=prefetch, samples_per_s=1.0, wait_percent=wait, make_ms=1.0)


def test_the_least_effort_that_suffices_is_chosen() -> None:
    rows = [row(0, 40), row(1, 12), row(2, 4), row(4, 0.1), row(2, 3, "thread"), row(1, 6, "thread")]
    assert choose(rows) == row(2, 3, "thread")
    assert choose(rows[:2]) == row(1, 12)
    assert choose([row(2, 4.9, prefetch=8), row(2, 4.95, prefetch=4)]).prefetch == 4


@pytest.mark.parametrize("best", [row(0, 1), row(3, 1, "thread", 4), row(2, 1)])
def test_what_is_best_becomes_a_recipe_that_extends_the_one_measured(tmp_path: Path, best: Row) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "base.toml").write_text(recipes.find("demo").read_text())
    for name in (str(tmp_path / "base.toml"), "demo"):
        write_recipe(tmp_path / "below" / "best.toml", name, best)
        loader = recipes.read(str(tmp_path / "below" / "best.toml")).loader
        assert loader.num_workers == best.num_workers
        if best.num_workers:
            assert (loader.worker_kind, loader.prefetch_factor) == (best.kind, best.prefetch)


def test_shards_are_written_indexed_and_their_damage_told(tmp_path: Path, stepladder: Command) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "images" / name / f"{n}.jpg").write_bytes(picture(n))
    done = stepladder("data", "shards", "images", "--out", "shards", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = stepladder("data", "index", "shards/*.tar", "--out", "manifest.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1, 6 samples" in done.stdout
    shard = tmp_path / "shards" / "shard-00000.tar"
    assert json.loads((tmp_path / "manifest.json").read_text())["shards"]["shard-00000.tar"]["samples"] == 6
    shard.write_bytes(shard.read_bytes()[:2000])
    done = stepladder("data", "index", "shards/*.tar", cwd=tmp_path)
    assert done.returncode == 1
    assert "is truncated" in done.stdout


SLOW_DECODER = """
import time
from PIL import Image

_open = Image.open

def _slowly(*arguments, **keys):
    time.sleep(0.008)
    return _open(*arguments, **keys)

Image.open = _slowly
"""


@pytest.mark.slow
def test_a_starved_recipe_is_found_measured_and_mended(tmp_path: Path, stepladder: Command) -> None:
    """A decoder that sleeps 64 ms a microbatch: sleeping scales with workers, on two cores as well."""
    numbered_shards(tmp_path / "shards", [64])
    (tmp_path / "images.toml").write_text(IMAGES)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_DECODER)
    slow: Any = {"cwd": tmp_path, "PYTHONPATH": str(tmp_path / "slow")}

    before = stepladder("run", "images.toml", "--out", "before", **slow)
    assert before.returncode == 0, before.stderr
    assert before.stdout.count("warning: the step waits for data") == 1
    assert "set loader = { num_workers =" in before.stdout
    (starved,) = read_times(tmp_path / "before")
    assert starved.wait_percent > 30
    assert starved.stage_s["decode"] > 0.8 * starved.make_s

    bench = stepladder("data", "bench", "images.toml", "--out", "tuned.toml", "--json", "bench.json", **slow)
    assert bench.returncode == 0, bench.stderr
    told = json.loads((tmp_path / "bench.json").read_text())
    assert f"loader = {{ num_workers = {told['best']['num_workers']}" in bench.stdout
    alone = next(each for each in told["rows"] if each["num_workers"] == 0)
    assert alone["wait_percent"] > 30

    after = stepladder("run", "tuned.toml", "--out", "after", **slow)
    assert after.returncode == 0, after.stderr
    assert "warning" not in after.stdout
    (fed,) = read_times(tmp_path / "after")
    assert fed.wait_percent < 5
