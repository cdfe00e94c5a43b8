"""One machine from what several parts of it see: pods on a node, each with some of its GPUs, are one host together.

A pod's GPUs are numbered from 0 whichever they are; UUIDs, or else bus ids, tell them apart. What no part sees, the
link between GPUs of two pods, is taken for one through the host: NVLink does not reach a process that sees only its
own end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..topology import Topology, TopologyError
from ..topology.links import Family, estimate, family_of
from ..topology.value import FAST, Gpu, Link, LinkKind, Nic


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A machine, and where in it the devices of each part are."""

    topology: Topology
    positions: tuple[tuple[int, ...], ...]
    """For each part, of its GPUs in its own order."""


def whole_of(name: str, parts: Sequence[Topology]) -> Whole:
    """The machine of a name. Raises: TopologyError if its parts cannot be told apart."""
    first = parts[0]
    if all(part.gpus == first.gpus and part.nics == first.nics for part in parts):
        own = tuple(range(len(first.gpus)))
        return Whole(topology=first, positions=tuple(own for _ in parts))
    by_uuid = all(gpu.uuid for part in parts for gpu in part.gpus)
    if not by_uuid and not all(gpu.bus_id for part in parts for gpu in part.gpus):
        raise TopologyError(
            f"host {name}: its workers see different GPUs without UUIDs, so that nobody knows which are the same; "
            f"install nvidia-ml-py in the image"
        )

    def key_of(gpu: Gpu) -> str:
        return (gpu.uuid if by_uuid else gpu.bus_id) or ""

    gpus = {key_of(gpu): gpu for part in parts for gpu in part.gpus}
    nics = {nic.device: nic for part in parts for nic in part.nics}
    most = max(parts, key=lambda part: len(part.gpus))
    # As nvidia-smi counts on the node, whoever reports first.
    keys = [key_of(gpu) for gpu in most.gpus]
    if len(keys) < len(gpus):
        keys = sorted(gpus, key=lambda key: (gpus[key].bus_id or "", key))
    devices = sorted(nics)
    seen = _seen(parts, [[*map(key_of, part.gpus)] for part in parts])
    ends: list[tuple[str, Gpu | Nic]] = [*((key, gpus[key]) for key in keys), *((each, nics[each]) for each in devices)]
    family = _slowest(parts)
    nodes = {node.index: node for part in parts for node in part.numa_nodes}
    topology = Topology(
        source=first.source,
        gpus=tuple(replace(gpus[key], index=i) for i, key in enumerate(keys)),
        nics=tuple(replace(nics[each], name=f"NIC{i}") for i, each in enumerate(devices)),
        numa_nodes=tuple(nodes[index] for index in sorted(nodes)),
        links=tuple(tuple(_link(a, b, seen, family) for b in ends) for a in ends),
        switched=any(part.switched for part in parts),
        pci_only=any(part.pci_only for part in parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
    at = {key: i for i, key in enumerate(keys)}
    return Whole(topology=topology, positions=tuple(tuple(at[key_of(gpu)] for gpu in part.gpus) for part in parts))


def _seen(parts: Sequence[Topology], keys: Sequence[Sequence[str]]) -> dict[tuple[str, str], Link]:
    """The links that some part sees, by the ends' names."""
    found: dict[tuple[str, str], Link] = {}
    for part, own in zip(parts, keys, strict=True):
        ends = [*own, *(nic.device for nic in part.nics)]
        for a, row in zip(ends, part.links, strict=True):
            found.update({(a, b): link for b, link in zip(ends, row, strict=True)})
    return found


def _link(
    a: tuple[str, Gpu | Nic], b: tuple[str, Gpu | Nic], seen: dict[tuple[str, str], Link], family: Family
) -> Link:
    known = seen.get((a[0], b[0])) or seen.get((b[0], a[0]))
    if known is not None:
        return known
    near = a[1].numa_node is not None and a[1].numa_node == b[1].numa_node
    return estimate(LinkKind.NODE if near else LinkKind.SYS, family, same_numa=near)


def _slowest(parts: Sequence[Topology]) -> Family:
    """The generation with the slowest PCIe, for links that nobody sees."""
    families: list[Family] = []
    for part in parts:
        size = len(part.gpus)
        lanes = [[link.num_nvlinks if link.kind in FAST else 0 for link in row[:size]] for row in part.links[:size]]
        families += [family_of(gpu.model, lanes) for gpu in part.gpus]
    return min(families, key=lambda family: family.pcie)
