"""What a machine looks like from its GPUs: one value, whichever tool it was read from."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .cpu_list import format_numbers


class LinkKind(StrEnum):
    """What connects two devices, in the words of nvidia-smi, nearest first."""

    SELF = "X"
    NVLINK = "NV"
    """A number of NVLinks, directly or through an NVSwitch."""
    XGMI = "XGMI"
    """AMD's link between GPUs."""
    PSB = "PSB"
    """On one board (two GPUs behind the board's own switch)."""
    PIX = "PIX"
    """At most one PCIe bridge."""
    PXB = "PXB"
    """Several PCIe bridges, but no host bridge."""
    PHB = "PHB"
    """A PCIe host bridge, typically the CPU."""
    NODE = "NODE"
    """Host bridges of one NUMA node."""
    SYS = "SYS"
    """The interconnect between NUMA nodes."""
    UNKNOWN = "?"
    """Not in the output: a row was cut off."""

    @property
    def distance(self) -> int:
        """0 for the device itself, more the farther."""
        return list(LinkKind).index(self)


FAST = (LinkKind.NVLINK, LinkKind.XGMI)
"""Links made for GPUs alone."""
BEHIND_ONE_SWITCH = (LinkKind.PSB, LinkKind.PIX, LinkKind.PXB)
"""Links that stay below the host bridge."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection of two devices, one way."""

    kind: LinkKind
    num_nvlinks: int = 0
    bandwidth_bytes_s: float
    latency_s: float
    measured: bool = False
    """Whether the two figures were measured here; else they are estimates (`links`)."""

    @property
    def label(self) -> str:
        """As nvidia-smi writes it: NV4, PIX."""
        return f"NV{self.num_nvlinks}" if self.kind is LinkKind.NVLINK else str(self.kind)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU; what the source did not say is None."""

    index: int
    """As the source counts: nvidia-smi by PCI bus, which is not CUDA's order unless CUDA_DEVICE_ORDER says so."""
    model: str | None = None
    uuid: str | None = None
    bus_id: str | None = None
    """`0000:19:00.0`"""
    cpus: tuple[int, ...] | None = None
    """Near CPUs, as printed: empty where the caller's cpuset has none of them, cut after six where they interleave."""
    numa_nodes: tuple[int, ...] | None = None
    """Near NUMA nodes; the one with CPUs first."""
    memory_numa_node: int | None = None
    """Of the GPU's own memory, where that is a NUMA node (Grace)."""

    @property
    def name(self) -> str:
        """As in the matrix: GPU3."""
        return f"GPU{self.index}"

    @property
    def numa_node(self) -> int | None:
        """The near NUMA node with CPUs."""
        return self.numa_nodes[0] if self.numa_nodes else None


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A network adapter that can do RDMA."""

    name: str
    """In the matrix: NIC0, or in older outputs already mlx5_0."""
    device: str
    """The system's name: mlx5_0; the same as `name` where there is no legend."""
    numa_node: int | None = None
    bus_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NumaNode:
    """A NUMA node and its CPUs, all of them, whoever may use them."""

    index: int
    cpus: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """GPUs, adapters, NUMA nodes, and the link between any two devices."""

    source: str
    gpus: tuple[Gpu, ...]
    nics: tuple[Nic, ...] = ()
    numa_nodes: tuple[NumaNode, ...] = ()
    """Empty if the source does not know the machine itself."""
    links: tuple[tuple[Link, ...], ...]
    """Square; GPUs first, then adapters."""
    switched: bool = False
    """Whether the fast links go through a switch, so that their number is a GPU's total and not that of a pair."""
    pci_only: bool = False
    """Whether the output leaves NVLink out (`nvidia-smi topo -mp`)."""
    notes: tuple[str, ...] = ()
    """What was odd about the text, a sentence each."""

    def gpu_link(self, a: int, b: int) -> Link:
        """Between two GPUs, by position."""
        return self.links[a][b]

    def nic_link(self, gpu: int, nic: int) -> Link:
        """From a GPU to an adapter, both by position."""
        return self.links[gpu][len(self.gpus) + nic]

    def names(self) -> list[str]:
        """Of all devices, in the order of `links`."""
        return [*(gpu.name for gpu in self.gpus), *(nic.name for nic in self.nics)]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return {
            "source": self.source,
            "gpus": [
                {
                    "name": gpu.name,
                    "model": gpu.model,
                    "uuid": gpu.uuid,
                    "bus_id": gpu.bus_id,
                    "cpus": None if gpu.cpus is None else format_numbers(gpu.cpus),
                    "numa_nodes": None if gpu.numa_nodes is None else format_numbers(gpu.numa_nodes),
                    "memory_numa_node": gpu.memory_numa_node,
                }
                for gpu in self.gpus
            ],
            "nics": [
                {"name": nic.name, "device": nic.device, "numa_node": nic.numa_node, "bus_id": nic.bus_id}
                for nic in self.nics
            ],
            "numa_nodes": [{"index": node.index, "cpus": format_numbers(node.cpus)} for node in self.numa_nodes],
            "labels": [[link.label for link in row] for row in self.links],
            "bandwidth_bytes_s": [
                [None if link.kind is LinkKind.SELF else link.bandwidth_bytes_s for link in row] for row in self.links
            ],
            "latency_s": [
                [None if link.kind is LinkKind.SELF else link.latency_s for link in row] for row in self.links
            ],
            "measured": any(link.measured for row in self.links for link in row),
            "switched": self.switched,
            "pci_only": self.pci_only,
            "notes": list(self.notes),
        }
