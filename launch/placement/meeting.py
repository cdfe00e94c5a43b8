"""Workers meet in the launcher's store before there is a process group: all say where they are, one says who they are.

[Note: keys of earlier rounds]
torchrun keeps its store from one round to the next, and a worker that was killed leaves its keys there. So every
process has a token. The first rank acknowledges each report by its token and waits until as many processes as there are
ranks have seen that; a report that nobody confirms is read again. Answers lie under tokens, too.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..ranks import Ranks
from .reports import Report

if TYPE_CHECKING:
    from torch.distributed import Store

_PREFIX = "stepladder/placement"
_PATIENCE = timedelta(minutes=10)
_AGAIN_S = 0.5
Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Met:
    """What came of the meeting."""

    answer: Answer
    store: "Store"
    """For the process group: what stands in it is of this round alone."""


def meet(ranks: Ranks, report: Report, decide: Callable[[Sequence[Report]], Sequence[Answer]]) -> Met:
    """Exchange reports, decide on the first rank, hand out the answers: one for each rank, in the launcher's order.

    Raises: UsageError if not all ranks come.
    """
    from torch.distributed import DistStoreError, PrefixStore

    store = _store(ranks)
    try:
        store.set(f"{_PREFIX}/at/{ranks.rank}", report.to_text())
        if ranks.rank == 0:
            _decide(store, ranks, report, decide)
        seen = f"{_PREFIX}/seen/{report.token}"
        first = store.get(seen).decode()
        if ranks.rank:
            store.add(f"{_PREFIX}/ready/{first}", 1)
        answer: Answer = json.loads(store.get(f"{_PREFIX}/seat/{report.token}"))
    except DistStoreError as error:
        raise UsageError(
            f"placement: not all of {ranks.num_ranks} ranks came to {_address()} within "
            f"{_PATIENCE.total_seconds():.0f} s; look at the other hosts, or use --placement none"
        ) from error
    return Met(answer=answer, store=PrefixStore(f"stepladder/{first}", store))


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _store(ranks: Ranks) -> "Store":
    """The launcher's store; where it has none (no torchrun), the first rank serves one, as torch's own would be."""
    from torch.distributed import TCPStore

    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        None,
        not served and ranks.rank == 0,
        timeout=_PATIENCE,
        wait_for_workers=False,
        multi_tenant=True,
    )


def _decide(store: "Store", ranks: Ranks, own: Report, decide: Callable[[Sequence[Report]], Sequence[Answer]]) -> None:
    """Collect a report of every living rank, then leave each its answer."""
    keys = [f"{_PREFIX}/at/{rank}" for rank in range(ranks.num_ranks)]
    store.wait(keys)
    ready, deadline = f"{_PREFIX}/ready/{own.token}", time.monotonic() + _PATIENCE.total_seconds()
    reports: list[Report] = []
    while True:
        reports = [Report.of_text(text) for text in store.multi_get(keys)]
        for report in reports:
            store.set(f"{_PREFIX}/seen/{report.token}", own.token)
        read_again = time.monotonic() + _AGAIN_S
        while (present := store.add(ready, 0) + 1) < ranks.num_ranks and time.monotonic() < read_again:
            time.sleep(0.005)
        if present >= ranks.num_ranks:
            break
        if time.monotonic() > deadline:
            from torch.distributed import DistStoreError

            raise DistStoreError
    # Everybody has been seen in some reading; in this one all are together.
    reports = [Report.of_text(text) for text in store.multi_get(keys)]
    for report, answer in zip(reports, decide(reports), strict=True):
        store.set(f"{_PREFIX}/seat/{report.token}", json.dumps(answer))
