"""Settings of NCCL: how many processors and which algorithm move data between GPUs, and over which network.

Problem: NCCL chooses algorithm, protocol and number of thread blocks by a model of the machine, which may be wrong for
it; and its kernels take processors from the computation that they run beside.
Mechanism: environment variables, set before the process group exists. A variable that you have set yourself wins, and
the plan says so.
Saves: bandwidth where the choice was wrong; computation where collectives hold more processors than they need.
Costs: a choice that is good for one message size or topology holds for all of them.
When: a collective shows in the breakdown, and a bandwidth test of the same size runs faster than it does.
When not: nothing is exposed; or as a cure for hangs, which it hides.
Measure: exposed communication in the breakdown, and ms/step, one setting at a time.
Source: NVIDIA's NCCL user guide, "Environment Variables"; torch's ProcessGroupNCCL.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from .base import Owns, Program, Run
from .changes import Changes, MayChange, rules
from .limits import AtLeast, AtMost, PositiveInt
from .refusal import Refusal

_CTAs = Annotated[int, AtLeast(1), AtMost(64)]


@dataclass(frozen=True, kw_only=True)
class NCCL:
    """Sets NCCL's environment; what is left out stays as NCCL would have it."""

    all_reduce: Literal["ring", "tree", "collnetdirect", "collnetchain", "nvls", "nvlstree"] | None = None
    """Algorithm of all-reduces (NCCL_ALGO): ring for bandwidth, tree for latency over nodes, nvls by the switch."""
    all_gather: Literal["ring", "collnetdirect", "nvls", "pat"] | None = None
    """Algorithm of all-gathers (NCCL_ALGO); pat is for one GPU a node."""
    reduce_scatter: Literal["ring", "collnetdirect", "nvls", "pat"] | None = None
    """Algorithm of reduce-scatters (NCCL_ALGO)."""
    protocol: Literal["LL", "LL128", "Simple"] | None = None
    """LL for small messages, LL128 for larger ones over NVLink, Simple for large ones (NCCL_PROTO). LL128 where NCCL
    would not choose it by itself may corrupt data."""
    min_ctas: _CTAs | None = None
    """Fewest thread blocks, and so processors, of a collective (NCCL_MIN_CTAS)."""
    max_ctas: _CTAs | None = None
    """Most of them (NCCL_MAX_CTAS): fewer leave more to the computation beside it."""
    cluster_size: Annotated[int, AtLeast(0), AtMost(8)] | None = None
    """Thread blocks of a cluster from Hopper on (NCCL_CGA_CLUSTER_SIZE)."""
    buffer_mib: PositiveInt | None = None
    """Buffer of each connection (NCCL_BUFFSIZE, 4): larger for long links, smaller to save memory with many peers."""
    nvls: bool | None = None
    """Reductions inside the NVLink switch (NCCL_NVLS_ENABLE); false also frees the memory that they pin."""
    p2p_level: Literal["LOC", "NVL", "PIX", "PXB", "PHB", "SYS"] | None = None
    """Up to which distance GPUs read each other directly (NCCL_P2P_LEVEL): never, NVLink, ..., across sockets."""
    net: Literal["IB", "Socket"] | None = None
    """Network between hosts (NCCL_NET): InfiniBand or RoCE, or TCP."""
    ib_devices: str | None = None
    """InfiniBand adapters to use (NCCL_IB_HCA): `mlx5_0,mlx5_1`, `^mlx5_2` for all others, `=mlx5_1` exactly."""
    ib_queue_pairs: Annotated[int, AtLeast(1), AtMost(128)] | None = None
    """Queue pairs of a connection (NCCL_IB_QPS_PER_CONNECTION, 1): several spread over the paths of a fabric."""
    gdr_level: Literal["LOC", "PIX", "PXB", "PHB", "SYS"] | None = None
    """Up to which distance an adapter reads GPU memory directly (NCCL_NET_GDR_LEVEL)."""
    cross_nic: Literal["never", "always", "as needed"] | None = None
    """Whether a ring may enter a node by one adapter and leave by another (NCCL_CROSS_NIC)."""
    socket_interfaces: str | None = None
    """Network interfaces for TCP and for the first contact (NCCL_SOCKET_IFNAME): `eth`, `=eth0`, `^docker`."""
    high_priority: bool | None = None
    """Collectives before computation when both wait for processors (TORCH_NCCL_HIGH_PRIORITY)."""
    log: Literal["VERSION", "WARN", "INFO"] | None = None
    """What NCCL prints (NCCL_DEBUG); INFO says which algorithm and network it has chosen."""

    changes: ClassVar[MayChange] = MayChange(
        # algorithms and paths add in their own order
        switch=Changes.REDUCTION_ORDER,
        keys=rules(Changes.NOTHING, "all_gather", "socket_interfaces", "high_priority", "log"),
    )
    conflicts: ClassVar[tuple[Refusal, ...]] = (
        Refusal(
            beside="device cpu",
            why="gloo moves the data there, so it has no effect",
            instead="remove it, or run on GPUs",
        ),
    )

    @property
    def owns(self) -> frozenset[Owns]:
        """Nothing that another strategy could want."""
        return frozenset()

    def check(self, run: Run) -> Iterator[str]:
        """Refuse settings that contradict each other or do nothing."""
        if not self.environment(run):
            yield "has no effect without a setting; choose one or remove it"
        if self.min_ctas is not None and self.max_ctas is not None and self.min_ctas > self.max_ctas:
            yield f"min_ctas = {self.min_ctas}: more than max_ctas = {self.max_ctas}; lower it"
        if self.nvls is False:
            for key in ("all_reduce", "all_gather", "reduce_scatter"):
                if str(getattr(self, key)).startswith("nvls"):
                    yield f"{key} = {getattr(self, key)!r}: cannot work with nvls = false; remove one of the two"
        if self.net == "Socket":
            for key in ("ib_devices", "ib_queue_pairs", "gdr_level"):
                if getattr(self, key) is not None:
                    yield f"{key}: has no effect with net = 'Socket'; remove one of the two"
        if all(degree == 1 for degree in run.degrees.values()):
            yield "a single rank has nobody to talk to, so it has no effect; start more or remove it"

    def environment(self, run: Run) -> dict[str, str]:
        """The variables that the settings mean."""
        # For each kind of collective by itself: an algorithm that one of them lacks would end it with an error.
        algorithms = {"allreduce": self.all_reduce, "allgather": self.all_gather, "reducescatter": self.reduce_scatter}
        said = ";".join(f"{kind}:{algorithm}" for kind, algorithm in algorithms.items() if algorithm)
        crossing = {None: None, "never": 0, "always": 1, "as needed": 2}
        wanted: dict[str, str | int | None] = {
            "NCCL_ALGO": said or None,
            "NCCL_PROTO": self.protocol,
            "NCCL_MIN_CTAS": self.min_ctas,
            "NCCL_MAX_CTAS": self.max_ctas,
            "NCCL_CGA_CLUSTER_SIZE": self.cluster_size,
            "NCCL_BUFFSIZE": self.buffer_mib and self.buffer_mib * 2**20,
            "NCCL_NVLS_ENABLE": None if self.nvls is None else int(self.nvls),
            "NCCL_P2P_LEVEL": self.p2p_level,
            "NCCL_NET": self.net,
            "NCCL_IB_HCA": self.ib_devices,
            "NCCL_IB_QPS_PER_CONNECTION": self.ib_queue_pairs,
            "NCCL_NET_GDR_LEVEL": self.gdr_level,
            "NCCL_CROSS_NIC": crossing[self.cross_nic],
            "NCCL_SOCKET_IFNAME": self.socket_interfaces,
            "TORCH_NCCL_HIGH_PRIORITY": None if self.high_priority is None else int(self.high_priority),
            "NCCL_DEBUG": self.log,
        }
        return {name: str(value) for name, value in wanted.items() if value is not None}

    def apply(self, program: Program, run: Run) -> Program:
        """Nothing: the environment was set before the process group existed."""
        return program
