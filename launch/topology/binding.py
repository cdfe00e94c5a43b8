"""Which adapter a GPU's traffic takes, and which cores and memory its rank."""

from collections.abc import Mapping, Sequence

from .cpu_list import looks_cut
from .value import Gpu, LinkKind, Topology


def adapters_of(topology: Topology, usable: Sequence[int]) -> dict[int, int]:
    """For each GPU the position of its adapter: the nearest by label, then by NUMA node, then the least used.

    Adapters that are SYS to every GPU are for storage or management and left out, unless all are: then the labels mean
    nothing (virtual machines, Grace), and NUMA nodes or an even share decide. Empty without adapters.
    """
    gpus, nics = range(len(topology.gpus)), range(len(topology.nics))
    near = [n for n in nics if any(topology.nic_link(g, n).kind.distance < LinkKind.SYS.distance for g in gpus)]
    used = dict.fromkeys(near or nics, 0)
    found: dict[int, int] = {}
    for gpu in usable:
        node = topology.gpus[gpu].numa_node

        def distance(nic: int, gpu: int = gpu, node: int | None = node) -> tuple[int, bool, int, int]:
            other = topology.nics[nic].numa_node
            apart = node is not None and other is not None and node != other
            return topology.nic_link(gpu, nic).kind.distance, apart, used[nic], nic

        if used:
            found[gpu] = min(used, key=distance)
            used[found[gpu]] += 1
    return found


def cores_of(
    topology: Topology,
    gpus: Sequence[int],
    *,
    allowed: Sequence[int] | None = None,
    siblings: Sequence[Sequence[int]] = (),
) -> dict[int, tuple[int, ...]]:
    """For each of the GPUs that have a rank, CPUs of its own: whole cores of the NUMA node, shared out evenly.

    `allowed` are the CPUs that the processes may use (a cpuset); a GPU with none of them near takes part in all of
    them. `siblings` are the hardware threads of each core; without them each CPU counts as a core. A GPU whose CPUs
    nothing says gets none.
    """
    may = None if allowed is None else set(allowed)
    near = {gpu: _near(topology, gpu) for gpu in gpus}
    if may is not None:
        near = {gpu: tuple(cpu for cpu in cpus if cpu in may) or tuple(sorted(may)) for gpu, cpus in near.items()}
    sharing: dict[tuple[int, ...], list[int]] = {}
    for gpu, cpus in near.items():
        sharing.setdefault(cpus, []).append(gpu)
    found: dict[int, tuple[int, ...]] = {}
    for cpus, those in sharing.items():
        cores = _cores(cpus, siblings)
        for number, gpu in enumerate(those):
            own = cores[number * len(cores) // len(those) : (number + 1) * len(cores) // len(those)]
            # Fewer cores than ranks: they share.
            own = own or cores[number % len(cores) : number % len(cores) + 1] if cores else []
            found[gpu] = tuple(sorted(cpu for core in own for cpu in core))
    return {gpu: found[gpu] for gpu in gpus}


def _near(topology: Topology, gpu: int) -> tuple[int, ...]:
    """All CPUs near a GPU: those of its NUMA node, if that is known, for nvidia-smi's list is often not whole."""
    known: Mapping[int, tuple[int, ...]] = {node.index: node.cpus for node in topology.numa_nodes}
    value: Gpu = topology.gpus[gpu]
    for node in value.numa_nodes or ():
        if known.get(node):
            return known[node]
    return () if value.cpus is None or looks_cut(value.cpus) else value.cpus


def _cores(cpus: Sequence[int], siblings: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The CPUs by core, in the order of their first ones."""
    left = set(cpus)
    core_of = {cpu: tuple(core) for core in siblings for cpu in core}
    cores: list[tuple[int, ...]] = []
    for cpu in cpus:
        if cpu in left:
            core = tuple(each for each in core_of.get(cpu, (cpu,)) if each in left)
            left.difference_update(core)
            cores.append(core)
    return cores
