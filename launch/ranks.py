"""A process among its like: who it is, its device, its process group, and how it is asked to stop."""

import os
import signal
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..strategies.mesh import Axis, coordinates
from .errors import ExitCode, UsageError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

    from .plan import Plan


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The rank of this process, as torchrun numbers it."""

    rank: int
    local_rank: int
    num_ranks: int

    @staticmethod
    def from_environment() -> "Ranks | None":
        """What torchrun says, or None when this process was not started as a worker."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return None
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        given = {name: os.environ.get(name, os.environ["RANK"]) for name in names}
        said = ", ".join(f"{name} = {value}" for name, value in given.items())
        try:
            rank, local_rank, num_ranks = (int(value) for value in given.values())
        except ValueError:
            rank, local_rank, num_ranks = -1, -1, 0
        if not (0 <= local_rank <= rank < num_ranks):
            raise UsageError(f"environment {said}: no rank of a run; unset them, or start the ranks with torchrun")
        if num_ranks > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UsageError(f"environment {said}: without MASTER_ADDR and MASTER_PORT; start the ranks with torchrun")
        return Ranks(rank=rank, local_rank=local_rank, num_ranks=num_ranks)


STOPPING = "stopping after the next steps; once more ends the run at once"


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; the second one ends the process, but for SIGTERM under torchrun."""

    def __init__(self, *, alone: bool = False) -> None:
        """An `alone` rank answers the user itself; for several, the launcher does."""
        self.number: int | None = None
        self.alone = alone

    def listen(self) -> None:
        """Install the handlers; only the main thread may."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.alone:
            os.write(2, f"{STOPPING}\n".encode())  # not print: the signal may have come in the middle of one
        # Schedulers send SIGTERM to every process, and torchrun hands it on besides; to end at once it has SIGKILL.
        again = signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL
        signal.signal(signal.SIGTERM, again)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.number is not None

    @property
    def exit_code(self) -> ExitCode:
        """What an interrupted run ends with."""
        return ExitCode.TERMINATED if self.number == signal.SIGTERM else ExitCode.INTERRUPTED


def pick_device(plan: "Plan", ranks: Ranks) -> "torch.device":
    """The rank's device, made current; also sets threads and determinism, which must come before the first kernel."""
    import torch

    if threads := plan.recipe.run.threads_per_rank:
        torch.set_num_threads(threads)
    if plan.recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        # Costs time and changes no result of ours.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    if plan.device_type == "cpu":
        return torch.device("cpu")
    here, present = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > present:
        raise UsageError(
            f"ranks: {here} were started on {socket.gethostname()}, but torch {torch.__version__} sees {present} GPUs "
            f"there; start {present or 'them with run.device = cpu'}, or install a torch for these GPUs"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: "torch.device", ranks: Ranks, store: "Store | None" = None) -> Generator[None]:
    """The process group of all ranks: NCCL on GPUs, gloo without. A single rank needs no network for it.

    They meet in the `store`, if they have met there before, else in the launcher's.
    """
    import torch.distributed as dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    bound = device if device.type == "cuda" else None
    if ranks.num_ranks == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=bound)
    elif store is not None:
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.num_ranks, device_id=bound)
    else:
        dist.init_process_group(backend, device_id=bound)
    yield
    # Not after a failure: NCCL's orderly shutdown would wait for ranks that wait for this one.
    dist.destroy_process_group()


def sum_over_ranks(ranks: Ranks) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Function that adds a tensor over all ranks, in place.

    All ranks rather than the part of the mesh whose values differ: it takes no process group of its own, and who has
    nothing to add adds zero.
    """
    if ranks.num_ranks == 1:
        return lambda tensor: tensor
    import torch.distributed as dist

    def add(tensor: "torch.Tensor") -> "torch.Tensor":
        dist.all_reduce(tensor)
        return tensor

    return add


@dataclass(frozen=True, kw_only=True)
class Voice:
    """What this rank may add to a sum over all ranks, so that nothing is counted twice."""

    loss: float
    """1 if its sum of losses counts: tensor-parallel ranks see the same one. (Pipeline ranks without it have 0.)"""
    tokens: float
    """1 if its tokens count: tensor- and pipeline-parallel ranks are handed the same ones, context-parallel too."""

    @staticmethod
    def of(rank: int, degrees: "Mapping[Axis, int]") -> "Voice":
        """The voice of a global rank."""
        at = coordinates(rank, degrees)
        alone = at[Axis.PP] == 0 and at[Axis.CP] == 0 and at[Axis.TP] == 0
        return Voice(loss=float(at[Axis.TP] == 0), tokens=float(alone))


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.num_ranks > 1:
        import torch.distributed as dist

        dist.barrier()


def gather(ranks: Ranks, value: Any) -> list[Any]:
    """What each rank hands in, in their order, on every rank alike."""
    if ranks.num_ranks == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * ranks.num_ranks
    dist.all_gather_object(values, value)
    return values


def agree(ranks: Ranks, problem: str) -> str:
    """Wait for all ranks; the first problem that any of them hands in, on every rank alike ('' if there is none)."""
    return next((each for each in gather(ranks, problem) if each), "")
