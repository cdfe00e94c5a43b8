"""What to set when a rank waits for its data, from what its loader has measured."""

import math
from collections.abc import Sequence

from .config import LoaderConfig
from .loader_meter import LoaderTimes

WAIT_LIMIT_PERCENT = 5.0
"""A rank that waits longer has a loader to mend before anything else."""
_RESERVE = 1.25  # workers above the bare quotient: microbatches are not all alike
_MAX_PREFETCH = 16
_WORTH_A_WORKER_MS = 0.5  # less than this is made sooner than it has come through a pipe


def settings(*, num_workers: int, kind: str = "process", prefetch: int | None = None) -> str:
    """Settings of the loader as one line of a recipe: `loader = { num_workers = 2 }`."""
    keys = [f"num_workers = {num_workers}"]
    if num_workers and kind != "process":
        keys.append(f'worker_kind = "{kind}"')
    if num_workers and prefetch is not None:
        keys.append(f"prefetch_factor = {prefetch}")
    return f"loader = {{ {', '.join(keys)} }}"


def remedy(times: LoaderTimes, loader: LoaderConfig, *, cores: int) -> str:
    """The one thing to do about the wait; `cores` are those that this rank has for itself."""
    needed = math.ceil(_RESERVE * times.make_s / max(times.run_s - times.waited_s, 1e-9))
    idles = times.stage_s.get("read", 0.0) > times.make_s / 2  # waiting for a disk takes no core
    most = 4 * cores if idles else max(1, cores)
    costs = (
        f"a microbatch takes {times.make_ms:,.1f} ms to make{_largest(times)} and is used up in {times.busy_ms:,.1f} ms"
    )
    if not loader.num_workers and times.make_ms < _WORTH_A_WORKER_MS:
        return f"{costs}, too little work for a worker: use larger microbatches"
    if needed > loader.num_workers and most > loader.num_workers:
        number = min(needed, most)
        short = f" (it would take {needed}, but there are {cores} cores a rank)" if needed > most else ""
        return f"{costs}: set {settings(num_workers=number, kind=loader.worker_kind)}{short}"
    if needed > loader.num_workers:
        return f"{costs}, all {cores} cores a rank at work: do some of it before the run (smaller images, tokens)"
    depth = loader.prefetch_factor or 2
    if loader.num_workers and depth < _MAX_PREFETCH:
        line = settings(num_workers=loader.num_workers, kind=loader.worker_kind, prefetch=min(_MAX_PREFETCH, 2 * depth))
        return f"{costs}, so {loader.num_workers} workers suffice, but not at all times: set {line}"
    return f"{costs}: its way to the rank takes the rest; try worker_kind = 'thread', or larger microbatches"


def _largest(times: LoaderTimes) -> str:
    """The stage that takes most, if the source tells its stages."""
    name, spent = max(times.stage_s.items(), key=lambda each: each[1], default=("", 0.0))
    return f" ({100 * spent / times.make_s:.0f} % {name})" if spent > 0 < times.make_s else ""


def report_lines(ranks: Sequence[LoaderTimes]) -> list[str]:
    """What the end of a run says of its loaders."""
    worst = max(range(len(ranks)), key=lambda rank: ranks[rank].wait_percent)
    times = ranks[worst]
    if not times.microbatches or times.run_s <= 0:
        return []
    whose = f" (rank {worst}, the most of {len(ranks)})" if len(ranks) > 1 else ""
    parts = [f"waited {times.wait_percent:.1f} % of the time{whose}"]
    stages = ", ".join(
        f"{name} {1000 * spent / times.microbatches:,.2f}" for name, spent in times.stage_s.items() if spent
    )
    parts.append(f"a microbatch takes {times.make_ms:,.2f} ms to make" + (f": {stages}" if stages else ""))
    if times.ready is not None:
        parts.append(f"{times.ready:.1f} lay ready")
    if times.copies:
        share = 100 * times.overlapped / times.copies
        parts.append(f"copies {1000 * times.copy_s / times.copies:.2f} ms a step, {min(share, 100):.0f} % hidden")
    lines = [f"loader      {'; '.join(parts)}"]
    skipped = list(dict.fromkeys(sentence for each in ranks for sentence in each.skipped))
    if skipped:
        lines.append(f"skipped     {len(skipped)} damaged samples; the first: {skipped[0]}")
    return lines
