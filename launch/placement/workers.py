"""The machines of a run, from what its workers report: whose device is where, and what each of them sees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..topology import Node, Topology, TopologyError
from ..topology.solve import HostCpus
from .hosts import natural
from .reports import Report
from .views import whole_of


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine with its workers, by the launcher's ranks."""

    name: str
    ranks: tuple[int, ...]
    positions: tuple[int, ...]
    """Of their devices."""
    visible: tuple[tuple[int, ...], ...]
    """The devices that each sees, in its order."""
    adapters: tuple[tuple[str, ...], ...]
    """The adapters that each sees."""
    topology: Topology
    in_parts: bool
    """Whether no worker sees all of it, so that nobody knows how nvidia-smi would count."""
    cpus: HostCpus
    num_numa: int
    network_bytes_s: float | None

    def node(self) -> Node:
        """With the devices of nobody's out of use."""
        others = frozenset(range(len(self.topology.gpus))) - frozenset(self.positions)
        return Node(name=self.name, topology=self.topology, reserved=others, adapter_bytes_s=self.network_bytes_s)


def hosts_of(reports: Sequence[Report]) -> list[Host]:
    """The machines in the order of their names. Raises: TopologyError if one cannot be placed."""
    kernels: dict[str, list[str]] = {}
    for each in reports:
        kernels.setdefault(each.host, [])
        if each.boot_id not in kernels[each.host]:
            kernels[each.host].append(each.boot_id)
    members: dict[str, list[int]] = {}
    for rank, each in enumerate(reports):
        twins = len(kernels[each.host]) > 1
        members.setdefault(f"{each.host}-{each.boot_id[:8]}" if twins else each.host, []).append(rank)
    return [_host(name, members[name], reports) for name in sorted(members, key=natural)]


def named(hosts: Sequence[Host]) -> str:
    """The hosts and how many ranks each has, for a sentence."""
    names = ", ".join(f"{host.name} ({len(host.ranks)})" for host in hosts[:4])
    return names + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")


def _host(name: str, ranks: Sequence[int], reports: Sequence[Report]) -> Host:
    ranks = sorted(ranks, key=lambda rank: (reports[rank].group, reports[rank].local_rank))
    told = [reports[rank] for rank in ranks]
    problem = next((each.problem for each in told if each.problem), "")
    if problem:
        raise TopologyError(f"host {name}: {problem}")
    first = next((each for each in told if each.local_rank == 0), told[0])
    parts = [each for each in told if each.machine is not None]
    if not parts:
        topology, in_parts = first.topology(len(ranks)), False
        positions = tuple(range(len(ranks)))
        visible, adapters = tuple(positions for _ in ranks), tuple(() for _ in ranks)
    else:
        seen = [part.topology(len(ranks)) for part in parts]
        whole = whole_of(name, seen)
        topology = whole.topology
        in_parts = all(len(each.gpus) < len(topology.gpus) for each in seen)
        own = [_part_of(each, parts) for each in told]
        visible = tuple(
            tuple(whole.positions[part][at] for at in _visible(name, seen[part], each.visible))
            for each, part in zip(told, own, strict=True)
        )
        adapters = tuple(tuple(nic.device for nic in seen[part].nics) for part in own)
        positions = tuple(_position(name, each, sees) for each, sees in zip(told, visible, strict=True))
    if len(set(positions)) < len(positions):
        raise TopologyError(f"host {name}: two ranks have one GPU; give every rank its own")
    return Host(
        name=name,
        ranks=tuple(ranks),
        positions=positions,
        visible=visible,
        adapters=adapters,
        topology=topology,
        in_parts=in_parts,
        # What its workers may use together: somebody may have bound each to its own already.
        cpus=replace(first.cpus(), allowed=tuple(sorted({cpu for each in told for cpu in each.allowed}))),
        num_numa=max(len(each.numa) for each in told),
        network_bytes_s=min((each.network_bytes_s for each in told if each.network_bytes_s), default=None),
    )


def _part_of(report: Report, parts: Sequence[Report]) -> int:
    """Which part of the machine a worker sees: what it says itself, or the first worker of its launcher's agent."""
    own = next((i for i, part in enumerate(parts) if part.token == report.token), None)
    return own if own is not None else next((i for i, part in enumerate(parts) if part.group == report.group), 0)


def _visible(name: str, topology: Topology, variable: str | None) -> tuple[int, ...]:
    """Positions of the GPUs that a worker sees, in CUDA's order by bus."""
    if variable is None:
        return tuple(range(len(topology.gpus)))
    if "MIG-" in variable:
        raise TopologyError(f"host {name}: ranks work on parts of GPUs (MIG), which reach no others; switch MIG off")
    found: list[int] = []
    for each in (part.strip() for part in variable.split(",")):
        here = [i for i, gpu in enumerate(topology.gpus)
                if each == str(i) or (each.startswith("GPU-") and (gpu.uuid or "").startswith(each))]  # fmt: skip
        if len(here) != 1:
            break  # CUDA reads the list up to the first entry that is no device
        found += here
    return tuple(found)


def _position(name: str, report: Report, visible: Sequence[int]) -> int:
    if report.local_rank >= len(visible):
        raise TopologyError(
            f"host {name}: local rank {report.local_rank} has no GPU, for {len(visible)} are visible; "
            f"start fewer ranks or unset CUDA_VISIBLE_DEVICES"
        )
    return visible[report.local_rank]
