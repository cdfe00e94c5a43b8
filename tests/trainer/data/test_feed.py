"""The loader changes when batches are made, never which."""

from itertools import islice
from typing import Any

import pytest
import torch

from stepladder.profiling.record import no_span
from stepladder.strategies.base import Batch
from stepladder.trainer.data.config import LoaderConfig
from stepladder.trainer.data.feed import DeviceFeed, held_out_batches, host_batches, token_counter
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.source import PackedBytes

SOURCE = PackedBytes(torch.arange(401).remainder(251).to(torch.uint8), 8, "x")
SHARE = Share(num_samples=len(SOURCE), microbatch_size=3, num_microbatches=2, rank=1, num_ranks=2, seed=4)


def same(found: list[Batch], expected: list[Batch]) -> bool:
    assert len(found) == len(expected)
    return all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("first_step", [0, 5])
def test_workers_give_the_same_batches_in_the_same_order(first_step: int) -> None:
    truth = [SOURCE.__getitems__(indices) for indices in islice(SHARE.microbatches(first_step), 20)]
    for loader in (LoaderConfig(), LoaderConfig(num_workers=2, prefetch_factor=3)):
        found = list(islice(host_batches(SOURCE, SHARE, loader, first_step=first_step, pin=False), 20))
        assert same(found, truth), loader


@pytest.mark.parametrize(
    "loader",
    [LoaderConfig(), LoaderConfig(num_workers=2), LoaderConfig(num_workers=1, persistent_workers=False)],
    ids=str,
)
def test_held_out_batches_are_the_same_each_time(loader: LoaderConfig) -> None:
    truth = [SOURCE.__getitems__(indices) for indices in islice(SHARE.microbatches(0), SHARE.num_microbatches)]
    start = held_out_batches(SOURCE, SHARE, loader, torch.device("cpu"))
    assert same(list(start()), truth)
    assert same(list(start()), truth)


def test_settings_of_workers_without_workers_are_refused() -> None:
    found = list(LoaderConfig(prefetch_factor=2, persistent_workers=True).problems())
    assert [each.split(":")[0] for each in found] == ["prefetch_factor", "persistent_workers"]
    assert not list(LoaderConfig(num_workers=1, prefetch_factor=2, persistent_workers=False).problems())


def test_the_feed_hands_over_a_step_and_counts_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    truth = [SOURCE.__getitems__(indices) for indices in islice(SHARE.microbatches(0), 4)]
    feed = DeviceFeed(
        batches=iter(truth),
        num_microbatches=2,
        device=torch.device("cpu"),
        count_tokens=lambda batches: 7.0 * len(batches),
        prefetch=True,
    )
    for expected in (truth[:2], truth[2:]):
        data = feed.to_device(feed.wait())
        assert same(list(data.microbatches), expected)
        assert data.num_tokens == 14.0
        feed.run_ahead(no_span)  # has nothing to run ahead with on the CPU
    assert feed.waited_s == 10.0


def test_tokens_are_counted_only_where_labels_may_be_ignored() -> None:
    def refuse(_: Any) -> Any:
        raise AssertionError("nobody has to be asked")

    assert token_counter(SOURCE, 96, refuse, torch.device("cpu"))([]) == 96.0

    class Masked(PackedBytes):
        all_valid = False

    masked = Masked(SOURCE.tokens, 8, "x")
    count = token_counter(masked, 96, lambda own: own + 100, torch.device("cpu"))
    labels = torch.tensor([[1, -100, 3], [-100, -100, 0]])
    assert float(count([Batch(labels, labels), Batch(labels, labels[:1])])) == 3 + 2 + 100
