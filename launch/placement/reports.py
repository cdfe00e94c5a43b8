"""What a worker says of itself before there is a process group: its machine, its device, the CPUs that it may use."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..topology import Topology, TopologyError
from ..topology.saved import from_value
from ..topology.solve import HostCpus
from ..topology.sysfs import ROOT, adapter_bytes_s, card_bytes_s, cpus, numa_nodes, read_text
from .hosts import host_name
from .machines import cpu_machine


@dataclass(frozen=True, kw_only=True)
class Report:
    """Of one worker. Lists of numbers are tuples; a machine is told by its first worker alone."""

    token: str
    """Of this process, so that what an earlier one has left in the store is not taken for it."""
    host: str
    boot_id: str
    """Of the machine's kernel: tells machines of one name apart."""
    group: int
    """Which of the launcher's agents has started it."""
    local_rank: int
    visible: str | None
    """CUDA_VISIBLE_DEVICES."""
    allowed: tuple[int, ...]
    machine: Mapping[str, Any] | None = None
    """As `Topology.to_json` says it; None for a worker of the CPU, and for all but an agent's first."""
    siblings: tuple[tuple[int, ...], ...] = ()
    numa: tuple[tuple[int, ...], ...] = ()
    """The CPUs of each NUMA node."""
    network_bytes_s: float | None = None
    """Of an adapter, as the system says."""
    problem: str = ""
    """Why there is no topology."""

    def to_text(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_text(text: str | bytes) -> "Report":
        """What `to_text` has made."""
        value: dict[str, Any] = json.loads(text)
        for key in ("siblings", "numa"):
            value[key] = tuple(tuple(each) for each in value[key])
        value["allowed"] = tuple(value["allowed"])
        return Report(**value)

    def topology(self, num_places: int) -> Topology:
        """The machine of which this is the first report; without a GPU, so many places for ranks."""
        if self.machine is None:
            return cpu_machine(self.host, num_places)
        return from_value(self.machine, self.host)

    def cpus(self) -> HostCpus:
        """The machine's, as this worker may use them."""
        return HostCpus(allowed=self.allowed, siblings=self.siblings)


def report_here(*, on_gpus: bool, local_rank: int, environment: Mapping[str, str], root: Path = ROOT) -> Report:
    """What this process has to say."""
    here = cpus(root)
    report = Report(
        token=secrets.token_hex(8),
        host=host_name(environment),
        boot_id=read_text(root / "proc/sys/kernel/random/boot_id") or "",
        group=_number(environment.get("GROUP_RANK", "0")),
        local_rank=local_rank,
        visible=environment.get("CUDA_VISIBLE_DEVICES"),
        allowed=here.allowed,
    )
    if local_rank:
        return report
    nodes = tuple(node.cpus for node in numa_nodes(root) if node.cpus)
    first = replace(report, siblings=here.siblings, numa=nodes)
    if not on_gpus:
        return replace(first, network_bytes_s=card_bytes_s(environment.get("GLOO_SOCKET_IFNAME"), root))
    first = replace(first, network_bytes_s=adapter_bytes_s(root))
    from ..topology.host import read_host

    try:
        return replace(first, machine=read_host(environment).topology.to_json())
    except TopologyError as error:
        return replace(first, problem=str(error))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
