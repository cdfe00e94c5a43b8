"""Times collectives over each pair of ranks and over groups of them; every rank runs this, the first one tells."""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

_SMALL = 4
_ROUNDS, _WARM_UP = 5, 2


@dataclass(frozen=True, kw_only=True)
class PairTime:
    """Of two ranks; an all-reduce of two is the payload once over their link, in two hops."""

    ranks: tuple[int, int]
    bandwidth_bytes_s: float
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class GroupTime:
    """Of a collective of several ranks."""

    ranks: tuple[int, ...]
    pattern: str
    payload_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything."""

    pairs: tuple[PairTime, ...]
    groups: tuple[GroupTime, ...]

    @staticmethod
    def of_value(value: dict[str, Any]) -> "Measured":
        """From plain values."""
        return Measured(
            pairs=tuple(PairTime(**(each | {"ranks": tuple(each["ranks"])})) for each in value["pairs"]),
            groups=tuple(GroupTime(**(each | {"ranks": tuple(each["ranks"])})) for each in value["groups"]),
        )


def main() -> None:
    """What a rank does: the environment says which it is, and STEPLADDER_PROBE what to time."""
    import torch
    import torch.distributed as dist

    wanted: dict[str, Any] = json.loads(os.environ["STEPLADDER_PROBE"])
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    on_gpus: bool = wanted["on_gpus"]
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    made = probe(device, int(wanted["payload_bytes"]), [tuple(each) for each in wanted["groups"]])
    if rank == 0:
        with open(wanted["out"], "w") as file:
            json.dump(asdict(made), file)
    dist.barrier()
    os._exit(0)  # gloo sometimes aborts while it is torn down


def probe(device: Any, payload_bytes: int, groups: Sequence[tuple[int, ...]]) -> Measured:
    """Time all pairs, one after the other while the others wait, then the groups; every rank calls it."""
    import torch
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    pairs: list[PairTime] = []
    small, large = (torch.zeros(n // 4, device=device) for n in (_SMALL, payload_bytes))
    # Torch 2.13 deprecates the names that torch 2.11 knows.
    names = ("all_reduce", "all_gather_single", "reduce_scatter_single")
    older = {"all_gather_single": "all_gather_into_tensor", "reduce_scatter_single": "reduce_scatter_tensor"}
    library: Any = dist
    reduce, gather, scatter = (getattr(library, name, None) or getattr(library, older[name]) for name in names)
    for pair in itertools.combinations(range(size), 2):
        group = dist.new_group(list(pair))
        times = [_slowest(partial(reduce, each, group=group), rank in pair, device) for each in (small, large)]
        seconds = max(times[1] - times[0], 1e-9)
        pairs.append(PairTime(ranks=pair, bandwidth_bytes_s=payload_bytes / seconds, latency_s=times[0] / 2))
    told: list[GroupTime] = []
    for members in groups:
        group = dist.new_group(list(members))
        part = torch.zeros(max(1, payload_bytes // 4 // len(members)), device=device)
        whole = torch.zeros(part.numel() * len(members), device=device)
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": partial(reduce, whole, group=group),
            "all_gather": partial(gather, whole, part, group=group),
            "reduce_scatter": partial(scatter, part, whole, group=group),
        }
        for pattern, call in calls.items():
            seconds = _slowest(call, rank in members, device)
            num_bytes = whole.numel() * 4
            told.append(GroupTime(ranks=members, pattern=pattern, payload_bytes=num_bytes, seconds=seconds))
    return Measured(pairs=tuple(pairs), groups=tuple(told))


def _slowest(call: Callable[[], Any], takes_part: bool, device: Any) -> float:
    """Median of the rounds, each as long as on the rank that took longest; 0 seconds on those that only wait."""
    import torch
    import torch.distributed as dist

    own: list[float] = []
    for turn in range(_WARM_UP + _ROUNDS):
        dist.barrier()
        began_s = time.perf_counter()
        if takes_part:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        if turn >= _WARM_UP:
            own.append(time.perf_counter() - began_s if takes_part else 0.0)
    everywhere = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MAX)
    return statistics.median(everywhere.tolist())
