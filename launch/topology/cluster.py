"""The machines that a job has: a topology for each, and the network between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .errors import TopologyError
from .links import NETWORK_BYTES_S, NETWORK_LATENCY_S
from .value import Topology

MAX_GPUS_PER_NODE = 60


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine."""

    name: str
    topology: Topology
    failed: frozenset[int] = frozenset()
    """Positions of GPUs that do not work."""
    reserved: frozenset[int] = frozenset()
    """Positions of GPUs that are somebody else's."""
    switches: tuple[str, ...] = ()
    """The switches above it, outermost first: ("spine0", "leaf3"). Equal names are the same switch."""
    adapter_bytes_s: float | None = None
    """Of each of its network adapters; None for the network's."""

    @cached_property
    def usable(self) -> tuple[int, ...]:
        """Positions of the GPUs that may be used, ascending."""
        return tuple(i for i in range(len(self.topology.gpus)) if i not in self.failed and i not in self.reserved)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What connects the machines."""

    adapter_bytes_s: float = NETWORK_BYTES_S
    """Of an adapter, one way; of the machine, if its topology has none."""
    latency_s: float = NETWORK_LATENCY_S
    uplink_bytes_s: tuple[float, ...] = ()
    """Of a switch to the one above, for each depth of `Node.switches`; where it is missing there is no bound."""
    cross_rail_bytes_s: float | None = None
    """Of an adapter to one of another rail (another position on its machine); None if there are no rails."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines in the order in which ranks would be given to them by default."""

    nodes: tuple[Node, ...]
    network: Network = field(default_factory=Network)

    @property
    def num_usable(self) -> int:
        """GPUs that may be used."""
        return sum(len(node.usable) for node in self.nodes)


def check_cluster(cluster: Cluster, num_ranks: int) -> None:
    """Raises: TopologyError if there are too few devices, or the description contradicts itself."""
    names = [node.name for node in cluster.nodes]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TopologyError(
            f"cluster: two nodes are named {twice}; a name is how a host finds its ranks, give each its own"
        )
    depths = {len(node.switches) for node in cluster.nodes}
    if len(depths) > 1:
        raise TopologyError(
            f"cluster: nodes have {sorted(depths)} switches above them; give every node the same levels"
        )
    for node in cluster.nodes:
        size = len(node.topology.gpus)
        if size > MAX_GPUS_PER_NODE:
            raise TopologyError(f"node {node.name}: {size} GPUs are more than {MAX_GPUS_PER_NODE}; divide the machine")
        outside = sorted(each for each in node.failed | node.reserved if not 0 <= each < size)
        if outside:
            raise TopologyError(f"node {node.name}: GPU{outside[0]} is failed or reserved, but it has {size} GPUs")
    _check_speeds(cluster)
    if num_ranks > cluster.num_usable:
        present = sum(len(node.topology.gpus) for node in cluster.nodes)
        raise TopologyError(
            f"mesh: {num_ranks} ranks are more than the {cluster.num_usable} usable GPUs of {len(names)} nodes "
            f"({present - cluster.num_usable} failed or reserved); make the mesh smaller or add nodes"
        )


def _check_speeds(cluster: Cluster) -> None:
    network = cluster.network
    speeds: Sequence[float | None] = (
        network.adapter_bytes_s,
        network.cross_rail_bytes_s,
        *network.uplink_bytes_s,
        *(node.adapter_bytes_s for node in cluster.nodes),
    )
    if any(speed is not None and not speed > 0 for speed in speeds) or not network.latency_s >= 0:
        raise TopologyError("network: a bandwidth is not above 0, or the latency below it; leave out what is not known")
