"""What needs a GPU to mean something; skips by itself without one."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from stepladder.profiling.record import no_span
from stepladder.trainer.data.config import LoaderConfig
from stepladder.trainer.data.feed import DeviceFeed, host_batches
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.source import PackedBytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RECIPE = """
[run]
num_steps = 8
log_every = 1
device = "cuda"
[model.decoder]
dim = 64
num_layers = 2
ffn_dim = 128
[data.stdlib]
[batch]
microbatch_size = 4
sequence_length = 64
[strategies.adamw]
[strategies.clip]
"""


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_feed_brings_the_same_batches_in_the_same_order(prefetch: bool) -> None:
    source = PackedBytes(torch.arange(4096).to(torch.uint8), 16, "test")
    share = Share(num_samples=len(source), microbatch_size=4, num_microbatches=2, rank=0, num_ranks=1, seed=0)
    feed = DeviceFeed(
        batches=host_batches(source, share, LoaderConfig(), first_step=0, pin=True),
        num_microbatches=2,
        device=torch.device("cuda"),
        count_tokens=lambda microbatches: 1.0,
        prefetch=prefetch,
    )
    expected = iter([source.__getitems__(indices) for indices in islice(share.microbatches(0), 20)])
    for _ in range(10):
        for batch in feed.to_device(feed.wait()).microbatches:
            truth = next(expected)
            assert torch.equal(batch.inputs.cpu(), truth.inputs)
            assert torch.equal(batch.labels.cpu(), truth.labels)
        feed.run_ahead(no_span)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["strategies.amp={}"],
        ["strategies.amp.dtype=fp16"],
        ["strategies.fsdp2.param_dtype=bf16", "strategies.ac={}", "strategies.compile={}"],
        ["strategies.ddp={}", "strategies.accumulation={}", "checkpoint={}"],
    ],
    ids=str,
)
def test_a_recipe_trains(changes: list[str], stepladder: Any, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    settings = [part for change in changes for part in ("--set", change)]

    answer = stepladder("run", "r.toml", "--out", "run", "--ranks", "1", *settings, cwd=tmp_path)

    assert answer.returncode == 0, answer.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
