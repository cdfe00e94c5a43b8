"""A worker takes its seat: who it is, on which device, near which CPUs, before there is a process group.

Global ranks are the launcher's to give, and it knows nothing of links: torchrun sorts hosts by name, node10 before
node2, and counts anew after each restart. Here the workers tell where they are, and each is told which rank it is, so
that the mesh stays in its natural order and its coordinates, groups and ranks agree.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..plan import Plan
from ..ranks import Ranks, gather
from ..topology import Placement, TopologyError
from ..topology.cpu_list import format_numbers
from ..topology.placement import Seat, from_json
from .hosts import host_name

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

    from .seats import Answer

_WITHOUT_FILE = ("auto", "none", "rank-order")
_ADAPTERS = "NCCL_IB_HCA"
_MOST_CHARACTERS = 64_000_000


@dataclass(frozen=True, kw_only=True)
class Seated:
    """A rank that knows its place."""

    ranks: Ranks
    store: "Store | None" = None
    """In which the process group is to meet; None for the launcher's."""
    seat: Seat | None = None
    said: tuple[str, ...] = ()
    """What has been decided and set."""
    bound: tuple[int, ...] = ()
    """CPUs to which this process and its children are bound; empty if they are not."""


def read_plan(mode: str) -> Placement | None:
    """The plan in the file that `--placement` names; None if it names none. Raises: UsageError."""
    if mode in _WITHOUT_FILE:
        return None
    try:
        with Path(mode).open(encoding="utf-8-sig", errors="replace") as file:
            return from_json(file.read(_MOST_CHARACTERS), mode)
    except OSError as error:
        raise UsageError(
            f"--placement {mode}: cannot be read ({error.strerror}); give auto, none, rank-order or the plan of "
            f"stepladder place --out FILE"
        ) from error
    except TopologyError as error:
        raise UsageError(f"--placement {error}") from error


def take_seat(plan: Plan, ranks: Ranks, *, mode: str = "auto", affinity: bool = True) -> Seated:
    """Who this process is from now on; the environment says the same. Raises: UsageError."""
    alone = ranks.num_ranks == 1 or mode == "none"
    # Ranks of one host without GPUs are as near to each other in any order.
    here = os.environ.get("LOCAL_WORLD_SIZE") == str(ranks.num_ranks) and plan.device_type == "cpu"
    if alone or (here and mode == "auto"):
        return Seated(ranks=ranks)
    from .meeting import meet
    from .reports import report_here
    from .seats import Answer, decide

    on_gpus = plan.device_type == "cuda"
    given = read_plan(mode) if ranks.rank == 0 else None  # the first rank decides; other hosts need not have the file
    if on_gpus:
        # Count devices as nvidia-smi does, unless the user wants otherwise; before CUDA is asked anything.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    report = report_here(on_gpus=on_gpus, local_rank=ranks.local_rank, environment=os.environ)
    met = meet(ranks, report, lambda all_: [each.to_value() for each in decide(plan, all_, mode, given)])
    answer = Answer.of_value(met.answer)
    os.environ |= {"RANK": str(answer.rank), "ROLE_RANK": str(answer.rank), "LOCAL_RANK": str(answer.local_rank)}
    seated = Seated(
        ranks=replace(ranks, rank=answer.rank, local_rank=answer.local_rank),
        store=met.store,
        seat=answer.seat,
        said=(answer.said,),
    )
    # A user who names a file wants its CPUs; without several NUMA nodes or GPUs it would only cost freedom.
    return _bind(seated, answer, wanted=affinity and (mode not in _WITHOUT_FILE or on_gpus or answer.spread))


def _bind(seated: Seated, answer: "Answer", *, wanted: bool) -> Seated:
    """Bind this process to its CPUs and its machine to the adapters for training, unless the user has done so."""
    if answer.seat is None:
        return seated
    said = list(seated.said)
    if answer.adapters is not None:
        theirs = os.environ.setdefault(_ADAPTERS, answer.adapters)
        said.append(f"            {_ADAPTERS} = {theirs}{'' if theirs == answer.adapters else ' (set already)'}")
    bound = bind_cpus(answer.seat.cpus) if wanted else ()
    return replace(seated, said=tuple(said), bound=bound)


def bind_cpus(wanted: Sequence[int]) -> tuple[int, ...]:
    """Bind all threads of this process, and what they start, to those of the CPUs that it may use.

    Nothing is done where none of them may be used, or somebody has bound it to fewer CPUs already. Memory follows by
    first touch. Returns: the CPUs to which it is bound.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    may = os.sched_getaffinity(0)
    own = may.intersection(wanted)
    if not own or may < set(wanted):
        return ()
    for thread in [int(name) for name in os.listdir("/proc/self/task")]:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(thread, own)
    return tuple(sorted(own))


def confirm(seated: Seated, device: "torch.device", folder: Path) -> list[str]:
    """What there is to say, once all ranks are connected and each has compared itself with its seat. All ranks call it.

    Leaves `placement.json` in the run folder. Returns: lines for rank 0 to print.
    """
    if seated.seat is None:
        return list(seated.said)
    own = _difference(seated, device)
    seat = vars(seated.seat) | {"cpus": format_numbers(seated.bound)}
    found = gather(seated.ranks, (own, seated.bound, seat))
    if seated.ranks.rank == 0:
        value = {"said": seated.said, "seats": [each for _, _, each in found]}
        (folder / "placement.json").write_text(json.dumps(value, indent=1) + "\n")
    different = [each for each, _, _ in found if each]
    if different:
        more = f" (and {len(different) - 1} ranks more)" if len(different) > 1 else ""
        return [*seated.said, f"warning: placement: {different[0]}{more}"]
    num_bound = sum(bool(bound) for _, bound, _ in found)
    cpus = f"CPUs of {num_bound} of them bound, {_where(seated)}" if num_bound else "CPUs left alone"
    return [*seated.said, f"            checked: {len(found)} ranks on their hosts and devices; {cpus}"]


def _where(seated: Seated) -> str:
    return f"rank 0 to {format_numbers(seated.bound)}" if seated.bound else "rank 0 to none"


def _difference(seated: Seated, device: "torch.device") -> str:
    """In what this rank differs from its seat; empty if in nothing."""
    seat, rank = seated.seat, seated.ranks.rank
    assert seat is not None
    here = host_name(os.environ)
    if here not in (seat.host, seat.host.rpartition("-")[0]):  # what follows tells machines of one name apart
        return f"rank {rank} is on {here}, not on {seat.host}"
    if seated.bound and tuple(sorted(os.sched_getaffinity(0))) != seated.bound:
        now = format_numbers(os.sched_getaffinity(0))
        return f"rank {rank} runs on the CPUs {now}, not on {format_numbers(seated.bound)}"
    if device.type == "cuda" and seat.uuid:
        import torch

        found = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        if found != seat.uuid:
            return f"rank {rank} has {found}, not GPU{seat.gpu} ({seat.uuid}); is CUDA_DEVICE_ORDER PCI_BUS_ID?"
    return ""
