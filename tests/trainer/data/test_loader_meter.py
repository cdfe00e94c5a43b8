"""What the loader says of itself, against clocks that are set by hand, and against workers that sleep."""

import os
import signal
import time
from itertools import islice
from typing import Any

import pytest
import torch

from stepladder.launch.failures import explained
from stepladder.strategies.base import Batch
from stepladder.trainer.data import loader_meter
from stepladder.trainer.data.config import LoaderConfig
from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.feed import DeviceFeed, host_batches
from stepladder.trainer.data.loader_advice import remedy, report_lines
from stepladder.trainer.data.loader_meter import LoaderMeter, LoaderTimes
from stepladder.trainer.data.order import Share
from stepladder.trainer.data.stages import Making, Stage, StageClock

SHARE = Share(num_samples=64, microbatch_size=2, num_microbatches=1, rank=0, num_ranks=1, seed=0)


class Sleepy:
    """Samples that take a while, as if from a slow disk; tells its stages."""

    all_valid = True
    on_device = False
    fingerprint = "sleepy"

    def __init__(self, read_s: float = 0.0, decode_s: float = 0.0) -> None:
        self.read_s, self.decode_s = read_s, decode_s

    def __len__(self) -> int:
        return 64

    def __getitems__(self, indices: Any) -> Batch:
        return self.measured(indices, StageClock())

    def measured(self, indices: Any, clock: StageClock) -> Batch:
        time.sleep(self.read_s)
        clock.lap(Stage.READ)
        time.sleep(self.decode_s)
        clock.lap(Stage.DECODE)
        rows = torch.as_tensor(indices)
        return Batch(rows[:, None].float(), rows)


def test_ready_microbatches_are_counted_as_a_look_into_the_queue_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a brute force: for every ask, how many of those not yet taken had been made."""
    generator = torch.Generator().manual_seed(0)
    asks = torch.rand(40, generator=generator).cumsum(0).tolist()
    made = (torch.rand(40, generator=generator).cumsum(0) * 0.9).tolist()
    now = 0.0
    monkeypatch.setattr(loader_meter.time, "monotonic", lambda: now)
    meter, asked = LoaderMeter(), list[float]()
    for i in range(40):
        now = max(asks[i], asked[-1] if asked else 0.0, made[i - 1] if i else 0.0)  # after the one before has come
        asked.append(now)
        meter.asked()
        meter.received(Making(1.0, (0.0,) * len(Stage), made[i]))
    by_hand = sum(sum(made[j] <= at for j in range(i, 40)) for i, at in enumerate(asked))
    assert by_hand > 40
    assert meter.ready == pytest.approx(by_hand / 40)


@pytest.mark.parametrize("loader", [LoaderConfig(), LoaderConfig(num_workers=2, worker_kind="thread")])
def test_stages_are_summed_wherever_the_work_was_done(loader: LoaderConfig) -> None:
    meter = LoaderMeter()
    batches = host_batches(Sleepy(0.002, 0.004), SHARE, loader, first_step=0, pin=False, meter=meter)
    truth = [indices.tolist() for indices in islice(SHARE.microbatches(0), 10)]
    assert [batch.labels.tolist() for batch in islice(batches, 10)] == truth
    assert meter.microbatches == 10
    assert meter.stage_s[Stage.READ] >= 0.02
    assert meter.stage_s[Stage.DECODE] >= 0.04
    assert sum(meter.stage_s) <= meter.make_s


def test_a_worker_process_hands_its_times_over_with_the_batch_and_has_one_thread() -> None:
    class Telling(Sleepy):
        def measured(self, indices: Any, clock: StageClock) -> Batch:
            batch = super().measured(indices, clock)
            return batch._replace(labels=torch.tensor([torch.get_num_threads(), os.getpid()]))

    meter = LoaderMeter()
    loader = LoaderConfig(num_workers=2)
    batches = host_batches(Telling(0.002), SHARE, loader, first_step=0, pin=False, meter=meter)
    told = [batch.labels.tolist() for batch in islice(batches, 6)]
    assert {threads for threads, _ in told} == {1}
    assert len({pid for _, pid in told} - {os.getpid()}) == 2
    assert meter.stage_s[Stage.READ] >= 0.012


def test_a_killed_worker_is_one_sentence() -> None:
    class Killed(Sleepy):
        def measured(self, indices: Any, clock: StageClock) -> Batch:
            if max(indices) > 60:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().measured(indices, clock)

    batches = host_batches(Killed(), SHARE, LoaderConfig(num_workers=1), first_step=0, pin=False)
    with pytest.raises(DataError) as caught:
        list(islice(batches, 40))
    said = str(caught.value)
    anywhere = explained(RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"))
    assert anywhere == said.replace(said.split(";")[0], "loader: worker process 12, 13 exited unexpectedly")
    assert said.startswith("loader: worker process ")
    assert "\n" not in said
    assert "num_workers" in said


def test_an_error_of_the_source_itself_keeps_its_traceback_and_names_the_samples() -> None:
    class Wrong(Sleepy):
        def measured(self, indices: Any, clock: StageClock) -> Batch:
            raise ZeroDivisionError("of mine")

    batches = host_batches(Wrong(), SHARE, LoaderConfig(num_workers=1), first_step=0, pin=False)
    first = next(SHARE.microbatches(0)).tolist()
    with pytest.raises(RuntimeError) as caught:
        next(batches)
    assert f"samples {first} could not be made: ZeroDivisionError('of mine')".replace("[", "[") in str(caught.value)
    assert explained(caught.value) is None
    assert explained(DataError("a sentence")) == "a sentence"


def test_the_first_step_which_starts_the_workers_is_left_out_of_the_wait() -> None:
    def slow_start() -> Any:
        time.sleep(0.2)
        while True:
            yield Batch(torch.zeros(1), torch.zeros(1))

    cpu = torch.device("cpu")
    feed = DeviceFeed(batches=slow_start(), num_microbatches=1, device=cpu, count_tokens=lambda microbatches: 1.0)
    for _ in range(5):
        feed.wait()
    assert feed.first_wait_s >= 0.2
    assert feed.waited_s - feed.first_wait_s < 0.1


def times(**keys: Any) -> LoaderTimes:
    stages = {"read": 0.0, "decode": 0.0, "tokenise": 0.0, "collate": 0.0} | keys.pop("stage_s", {})
    whole = {"run_s": 10.0, "waited_s": 4.0, "microbatches": 100, "make_s": 12.0, "ready": None, "copy_s": 0.0}
    return LoaderTimes(**{**whole, "copies": 0, "overlapped": 0, "stage_s": stages} | keys)  # type: ignore[arg-type]


def test_the_remedy_follows_from_what_was_measured() -> None:
    """Making takes 12 s, the rest of the steps 6 s: 2.5 workers with a quarter in reserve."""
    none = LoaderConfig()
    assert "set loader = { num_workers = 3 }" in remedy(times(), none, cores=8)
    decoding = remedy(times(stage_s={"decode": 9.0}), none, cores=2)
    assert "75 % decode" in decoding
    assert "num_workers = 2 } (it would take 3, but there are 2 cores a rank)" in decoding
    assert "num_workers = 3 }" in remedy(times(stage_s={"read": 9.0}), none, cores=2)  # a disk takes no core
    threads = LoaderConfig(num_workers=1, worker_kind="thread")
    assert 'set loader = { num_workers = 3, worker_kind = "thread" }' in remedy(times(), threads, cores=8)
    assert "before the run" in remedy(times(), LoaderConfig(num_workers=2), cores=2)
    assert "num_workers = 4, prefetch_factor = 4 }" in remedy(times(), LoaderConfig(num_workers=4), cores=8)
    small = times(make_s=0.02, waited_s=1.0)
    assert "larger microbatches" in remedy(small, none, cores=8)
    assert "num_workers =" not in remedy(small, none, cores=8)


def test_the_report_speaks_of_the_rank_that_waits_most() -> None:
    line, skipped = report_lines(
        [
            times(waited_s=1.0),
            times(waited_s=2.5, ready=3.25, copies=10, copy_s=0.02, overlapped=9, skipped=("x: why",)),
        ]
    )
    for part in ("waited 25.0 % of the time (rank 1, the most of 2)", "takes 120.00 ms", "3.2 lay ready"):
        assert part in line
    assert "copies 2.00 ms a step, 90 % hidden" in line
    assert "1 damaged samples; the first: x: why" in skipped
    assert LoaderTimes.of({**vars(times(skipped=("a",))), "skipped": ["a"]}) == times(skipped=("a",))
