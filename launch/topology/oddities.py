"""What is unusual about a machine and costs time unless somebody knows: a sentence each."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from .cpu_list import format_numbers, looks_cut
from .host import Host, hidden_gpus
from .islands import islands_of
from .value import LinkKind, Topology

_MAX_NAMED = 8


def oddities_of(topology: Topology, host: Host | None = None) -> tuple[str, ...]:
    """Everything odd; with a host, also what the environment and the cgroup do."""
    found = [*topology.notes, *_matrix(topology), *_fast_links(topology), *_adapters(topology), *_affinity(topology)]
    if host is not None:
        found += [*_environment(topology, host), *_cores(topology, host)]
    return tuple(dict.fromkeys(found))


def _matrix(topology: Topology) -> Iterator[str]:
    if topology.pci_only:
        yield "the matrix is that of `topo -mp`, which leaves NVLink out; give that of `topo -m`"
    models = Counter(gpu.model for gpu in topology.gpus if gpu.model)
    if len(models) > 1:
        yield f"the GPUs differ: {', '.join(f'{number} x {model}' for model, number in models.items())}"
    pairs = list(combinations(range(len(topology.gpus)), 2))
    numa = [gpu.numa_node for gpu in topology.gpus]
    known = [pair for pair in pairs if numa[pair[0]] is not None and numa[pair[1]] is not None]
    across = [p for p in known if topology.gpu_link(*p).kind is LinkKind.NODE and numa[p[0]] != numa[p[1]]]
    if across:
        yield f"{_pairs(across)}: NODE, but on different NUMA nodes, as under a cpuset; the NUMA nodes are believed"
    within = [p for p in known if topology.gpu_link(*p).kind is LinkKind.SYS and numa[p[0]] == numa[p[1]]]
    if within:
        yield f"{_pairs(within)}: SYS, but on the same NUMA node: separate host bridges, no path between sockets"


def _fast_links(topology: Topology) -> Iterator[str]:
    islands = islands_of(topology)
    linked = [island for island in islands if len(island.gpus) > 1]
    for island in linked:
        if len(island.gpus) == 2 and island.gpus[1] - island.gpus[0] != 1 and island.labels[0].startswith("NV"):
            a, b = island.gpus
            yield (
                f"GPU{a} and GPU{b} are an NVLink pair ({island.labels[0]}) that rank order splits: GPU{a} would work "
                f"with GPU{a + 1}, by {topology.gpu_link(a, a + 1).label}"
            )
    has_nvlink = any(label.startswith("NV") for island in linked for label in island.labels)
    alone = [island.gpus[0] for island in islands if len(island.gpus) == 1]
    if has_nvlink and alone:
        yield f"{_gpus(alone)}: no NVLink, while others have: a missing bridge, or links that are down"
    if topology.switched:
        rows = [
            max(link.num_nvlinks for link in row[: len(topology.gpus)]) for row in topology.links[: len(topology.gpus)]
        ]
        few = [i for i, number in enumerate(rows) if number < max(rows)]
        if few:
            yield f"{_gpus(few)}: fewer NVLinks than others behind the same switch; some are down"
    elif any(not island.complete for island in linked) and has_nvlink:
        yield "not all pairs have NVLink: which GPUs form a group decides how fast it is"


def _adapters(topology: Topology) -> Iterator[str]:
    gpus, nics = range(len(topology.gpus)), range(len(topology.nics))
    if not gpus or not nics:
        return
    far_nics = [n for n in nics if all(topology.nic_link(g, n).kind is LinkKind.SYS for g in gpus)]
    if len(far_nics) == len(nics):
        yield "every adapter is SYS to every GPU: a virtual machine, or GPUs beside PCIe; the labels say nothing here"
        return
    if far_nics:
        names = ", ".join(_nic(topology, n) for n in far_nics[:_MAX_NAMED])
        yield f"{names}: SYS to every GPU: for storage or management, leave it out of NCCL_IB_HCA"
    nearest = [min(topology.nic_link(g, n).kind.distance for n in nics) for g in gpus]
    far = [g for g in gpus if nearest[g] >= LinkKind.SYS.distance]
    if far:
        yield f"{_gpus(far)}: no adapter on its side (SYS to all); its traffic to other machines crosses the sockets"
    middle = [g for g in gpus if LinkKind.PHB.distance <= nearest[g] < LinkKind.SYS.distance]
    if middle and min(nearest) < LinkKind.PHB.distance:
        yield f"{_gpus(middle)}: the nearest adapter is behind a host bridge, that of other GPUs behind their switch"
    near = [(g, [n for n in nics if topology.nic_link(g, n).kind.distance == nearest[g]]) for g in gpus if g not in far]
    if not _is_in_order(topology, near):
        words = ", ".join(f"GPU{g}-{_nic(topology, own[0])}" for g, own in near[:_MAX_NAMED])
        yield f"adapters are in another order than GPUs: {words}"


def _is_in_order(topology: Topology, near: Sequence[tuple[int, Sequence[int]]]) -> bool:
    """Whether each GPU can take one of its nearest adapters, none before that of the GPU before, by adapters' names."""

    def number(nic: int) -> list[tuple[int, str]]:
        parts = re.findall(r"[0-9]{1,18}|[^0-9]+", topology.nics[nic].device)
        return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts]

    by_name = sorted({nic for _, own in near for nic in own}, key=lambda nic: (number(nic), nic))
    place = {nic: i for i, nic in enumerate(by_name)}
    at = -1
    for _, own in near:
        found = [place[nic] for nic in own if place[nic] >= at]
        if not found:
            return False
        at = min(found)
    return True


def _affinity(topology: Topology) -> Iterator[str]:
    gpus = topology.gpus
    empty = [i for i, gpu in enumerate(gpus) if gpu.cpus == ()]
    if empty and (len(empty) < len(gpus) or any(gpu.numa_nodes for gpu in gpus)):
        yield f"{_gpus(empty)}: no CPU near it is in this cpuset; ask the scheduler for cores of both sockets"
    cut = [i for i, gpu in enumerate(gpus) if gpu.cpus and looks_cut(gpu.cpus)]
    if cut:
        yield (
            f"{_gpus(cut)}: CPU Affinity {','.join(map(str, gpus[cut[0]].cpus or ()))} is cut after six, as nvidia-smi "
            f"does where CPUs interleave; the NUMA node has all"
        )
    numa = [gpu.numa_node for gpu in gpus if gpu.numa_node is not None]
    if numa != sorted(numa):
        yield f"GPUs are not in the order of their NUMA nodes: {', '.join(map(str, numa))}"
    counts = Counter(numa)
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{number} on node {node}" for node, number in sorted(counts.items()))
        yield f"NUMA nodes have different numbers of GPUs: {words}"


def _environment(topology: Topology, host: Host) -> Iterator[str]:
    if len(topology.gpus) > 1 and host.environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        differ = len({gpu.model for gpu in topology.gpus}) > 1
        yield (
            "CUDA_DEVICE_ORDER is not PCI_BUS_ID: CUDA counts the fastest GPU first, nvidia-smi by bus"
            + ("; these GPUs differ, so cuda:0 may not be GPU0" if differ else "")
        )
    hidden = hidden_gpus(topology, host.environment)
    if hidden:
        yield f"CUDA_VISIBLE_DEVICES = {host.environment['CUDA_VISIBLE_DEVICES']}: hides {_gpus(hidden)}"


def _cores(topology: Topology, host: Host) -> Iterator[str]:
    cpus = host.cpus
    missing = len(cpus.online) - len(cpus.allowed)
    if missing > 0:
        yield (
            f"this process may use {len(cpus.allowed)} of {len(cpus.online)} CPUs ({format_numbers(cpus.allowed)}): "
            f"the cgroup or the affinity hides {missing}"
        )
    if cpus.quota_cpus is not None and cpus.quota_cpus < len(cpus.allowed):
        yield f"the cgroup grants the time of {cpus.quota_cpus:g} CPUs, though {len(cpus.allowed)} may be used"
    allowed = set(cpus.allowed)
    for node in topology.numa_nodes:
        near = [i for i, gpu in enumerate(topology.gpus) if gpu.numa_node == node.index]
        if near and node.cpus and not allowed & set(node.cpus):
            yield f"{_gpus(near)}: none of the CPUs of NUMA node {node.index} may be used by this process"


def _gpus(positions: list[int]) -> str:
    named = ", ".join(f"GPU{i}" for i in positions[:_MAX_NAMED])
    return named + (f" and {len(positions) - _MAX_NAMED} more" if len(positions) > _MAX_NAMED else "")


def _pairs(pairs: list[tuple[int, int]]) -> str:
    named = ", ".join(f"GPU{i}-GPU{j}" for i, j in pairs[:4])
    return named + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")


def _nic(topology: Topology, position: int) -> str:
    nic = topology.nics[position]
    return nic.name if nic.device == nic.name else f"{nic.name} ({nic.device})"
