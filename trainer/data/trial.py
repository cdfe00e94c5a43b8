"""A loader tried by itself: how many samples a second it gives, and how long a step of known time waits for it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from ...strategies.base import Batch
from .config import DataConfig, LoaderConfig
from .feed import finisher, host_batches
from .loader_meter import LoaderMeter
from .order import Share
from .stages import Stage
from .wanted import Wanted

_LEAST_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to try, on one of several ranks that are tried at once."""

    data: DataConfig
    wanted: Wanted
    loader: LoaderConfig
    share: Share
    """Its number of samples is found when the source is opened."""
    step_s: float
    """What a step takes that has its data."""
    computes: bool
    """The step needs a core of this machine, as one on the CPU does."""
    seconds: float
    """How long each of the two measurements lasts at least."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What one rank has measured."""

    samples_per_s: float
    """Without a step between them."""
    waited_s: float
    run_s: float
    """With a step between them: waiting, and altogether."""
    make_ms: float
    """Work to make a microbatch."""
    stage_ms: tuple[float, ...]
    """The same by `Stage`."""


def try_loader(trial: Trial) -> Tried:
    """Draw microbatches as fast as they come, then at the pace of the step. Raises: DataError."""
    torch.set_num_threads(1)
    source = trial.data.chosen.open("train", trial.wanted)
    share = replace(trial.share, num_samples=len(source), by_epoch=getattr(source, "varies", False))
    meter, own = LoaderMeter(), share.microbatch_size * share.num_microbatches
    finish = finisher(source)
    batches = host_batches(source, share, trial.loader, first_step=0, pin=False, meter=meter)
    in_store = trial.loader.num_workers * (trial.loader.prefetch_factor or 2)
    _draw(batches, in_store + share.num_microbatches)  # workers have started, and what they had in store is used up
    started_s, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - started_s < trial.seconds:
        _draw(batches, share.num_microbatches)
        steps += 1
    rate = steps * own / (time.perf_counter() - started_s)

    waited_s, steps, started_s = 0.0, 0, time.perf_counter()
    while steps < _LEAST_STEPS or time.perf_counter() - started_s < trial.seconds:
        asked_s = time.perf_counter()
        microbatches = list(islice(batches, share.num_microbatches))
        come_s = time.perf_counter()
        waited_s += come_s - asked_s
        if finish is not None and trial.computes:
            microbatches = [finish(batch) for batch in microbatches]
        _pass_time(come_s + trial.step_s, computes=trial.computes)
        steps += 1
    return Tried(
        samples_per_s=rate,
        waited_s=waited_s,
        run_s=time.perf_counter() - started_s,
        make_ms=1000 * meter.make_s / meter.microbatches,
        stage_ms=tuple(1000 * meter.stage_s[stage] / meter.microbatches for stage in Stage),
    )


def _draw(batches: Iterator[Batch], number: int) -> None:
    for _ in islice(batches, number):
        pass


def _pass_time(until_s: float, *, computes: bool) -> None:
    """Be the step: keep a core busy without Python's lock, as its kernels do, or sleep while a GPU computes."""
    if not computes:
        time.sleep(max(0.0, until_s - time.perf_counter()))
        return
    square = torch.ones(192, 192)
    while time.perf_counter() < until_s:
        torch.mm(square, square)
