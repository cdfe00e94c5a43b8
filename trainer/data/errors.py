"""What can be wrong with data."""

import re

LOST_WORKER = (
    "loader: worker process{} {}; often the memory was short: use fewer loader.num_workers or a smaller "
    "loader.prefetch_factor"
)


class DataError(Exception):
    """A source is missing, damaged, empty or too small; the text is one sentence."""


def lost_worker(error: BaseException) -> str | None:
    """The sentence for what torch says of a dead worker, which its signal handler may say anywhere; None for others."""
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^.]*)", str(error))
    return LOST_WORKER.format(f" {found[1]}", found[2].strip()) if found else None
