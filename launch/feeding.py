"""The way of a run's data from source to step: put together from the recipe, measured, told of at the end."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..profiling.capture import publish
from ..trainer.data.loader_advice import WAIT_LIMIT_PERCENT, remedy, report_lines
from ..trainer.data.loader_meter import LoaderMeter, LoaderTimes
from ..trainer.data.stages import Stage
from .plan import Plan
from .ranks import Ranks, gather

if TYPE_CHECKING:
    import torch

    from ..strategies.base import Batch
    from ..trainer.data.feed import DeviceFeed
    from ..trainer.data.order import Share
    from ..trainer.data.source import Source
    from .console import Console

_LEAST_STEPS = 5  # after the first one, before anything is said of a loader
FILE = "loader.json"
"""In the run folder: the `LoaderTimes` of each rank."""
ORDER_FILE = "data_order.txt"
"""In the run folder: why the order of samples is approximate, if it is."""


def say_order(source: "Source", num_ranks: int, console: "Console", folder: Path) -> None:
    """Once, where the order of samples is not exact: why, also in the run folder."""
    if console.active and hasattr(source, "approximate"):
        why: str = cast(Any, source).approximate(num_ranks)
        console.say(f"data        {why}")
        publish(folder / ORDER_FILE, lambda partial: partial.write_text(f"{why}\n"))


@dataclass(kw_only=True)
class Feeding:
    """A rank's feed and what is known of it."""

    plan: Plan
    feed: "DeviceFeed"
    meter: LoaderMeter
    _warned: bool = field(default=False, init=False)

    def times(self, paused_s: float = 0.0) -> LoaderTimes:
        """What the loader did since the second step; `paused_s` of that were no training."""
        feed, meter, recipe = self.feed, self.meter, self.plan.recipe
        began_s = feed.began_s
        since_s = 0.0 if began_s is None else time.perf_counter() - began_s - paused_s
        later = max(0, meter.microbatches - recipe.num_microbatches)
        part = later / max(1, meter.microbatches)  # the first step's work is not apart; it was like the others'
        return LoaderTimes(
            run_s=max(0.0, since_s),
            waited_s=0.0 if began_s is None else feed.waited_s - feed.first_wait_s,
            microbatches=later,
            make_s=part * meter.make_s,
            stage_s={stage.name.lower(): part * meter.stage_s[stage] for stage in Stage},
            ready=meter.ready if recipe.loader.num_workers else None,
            copy_s=feed.copies.copy_s,
            copies=feed.copies.copies,
            overlapped=feed.copies.overlapped,
            skipped=tuple(meter.skipped),
        )

    def warning(self, wait_percent: float, paused_s: float) -> list[str]:
        """Once, when the steps since the last line and all since the first have waited too long: what to set."""
        if self._warned or self.feed.on_device or wait_percent <= WAIT_LIMIT_PERCENT:
            return []
        times, recipe = self.times(paused_s), self.plan.recipe
        if times.microbatches < _LEAST_STEPS * recipe.num_microbatches or times.wait_percent <= WAIT_LIMIT_PERCENT:
            return []
        self._warned = True
        advice = remedy(times, recipe.loader, cores=cores_of_a_rank(self.plan.num_ranks))
        return [
            f"warning: the step waits for data {wait_percent:.0f} % of the time; {advice} "
            f"(`stepladder data bench RECIPE` measures what is best)"
        ]

    def report(self, ranks: Ranks, folder: Path, paused_s: float) -> list[str]:
        """Leave `loader.json` and say it in a line or two; called by all ranks."""
        everywhere: list[LoaderTimes] = gather(ranks, self.times(paused_s))
        if ranks.rank or self.feed.on_device:
            return []
        text = json.dumps([asdict(times) for times in everywhere], indent=1)
        publish(folder / FILE, lambda partial: partial.write_text(text + "\n"))
        return report_lines(everywhere)


def cores_of_a_rank(num_ranks: int) -> int:
    """CPU cores of this machine that each of its ranks has for itself."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_ranks)))
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, present // max(1, here))


def read_times(folder: Path) -> Sequence[LoaderTimes]:
    """What a run has left. Raises: OSError, ValueError, KeyError, TypeError."""
    return [LoaderTimes.of(each) for each in json.loads((folder / FILE).read_text())]


def build_feeding(
    plan: Plan,
    device: "torch.device",
    source: "Source",
    share: "Share",
    sum_tokens: "Callable[[torch.Tensor], torch.Tensor]",
    *,
    first_step: int,
    same_batch: bool = False,
) -> Feeding:
    """The feed of a rank. With `same_batch` its first step's data come again and again: a step without a loader."""
    from ..trainer.data.feed import DeviceFeed, finisher, host_batches, token_counter

    recipe, loader = plan.recipe, plan.recipe.loader
    pin = (device.type == "cuda" if loader.pin_memory is None else loader.pin_memory) and not source.on_device
    meter = LoaderMeter(max_skipped=getattr(source, "max_skipped", None))
    batches: Iterator[Batch] = host_batches(source, share, loader, first_step=first_step, pin=pin, meter=meter)
    if same_batch:
        batches = itertools.cycle(list(itertools.islice(batches, recipe.num_microbatches)))
    feed = DeviceFeed(
        batches=batches,
        num_microbatches=recipe.num_microbatches,
        device=device,
        count_tokens=token_counter(source, plan.tokens_per_step, sum_tokens, device),
        on_device=source.on_device,
        non_blocking=loader.non_blocking is not False,
        prefetch=loader.device_prefetch is not False,
        finish=finisher(source),
    )
    return Feeding(plan=plan, feed=feed, meter=meter)
