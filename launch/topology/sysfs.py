"""What Linux says of the machine: NUMA nodes, cores, the CPUs that this process may use, adapters and where they sit.

Every function takes the folder that stands for `/`, so that a test can make one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cpu_list import parse_numbers
from .value import LinkKind, Nic, NumaNode

ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class Cpus:
    """The CPUs of a machine."""

    allowed: tuple[int, ...]
    """That this process may use: its affinity, which the cgroup's cpuset has narrowed."""
    online: tuple[int, ...]
    siblings: tuple[tuple[int, ...], ...]
    """The hardware threads of each core; empty if the system does not say."""
    quota_cpus: float | None
    """CPUs' worth of time that the cgroup grants, however many it may run on; None without a limit."""


def read_text(path: Path) -> str | None:
    """A small file of the kernel; None if there is none."""
    try:
        return path.read_text(errors="replace")[:65_536].strip()
    except OSError:
        return None


def numa_nodes(root: Path = ROOT) -> tuple[NumaNode, ...]:
    """The NUMA nodes, those without CPUs (memory of GPUs, CXL) too."""
    folder = root / "sys/devices/system/node"
    found: list[NumaNode] = []
    for index in parse_numbers(read_text(folder / "online") or "") or ():
        cpus = parse_numbers(read_text(folder / f"node{index}/cpulist") or "")
        found.append(NumaNode(index=index, cpus=cpus or ()))
    return tuple(found)


def cpus(root: Path = ROOT) -> Cpus:
    """The CPUs, and those that this process may use."""
    folder = root / "sys/devices/system/cpu"
    online = parse_numbers(read_text(folder / "online") or "") or ()
    status = read_text(root / "proc/self/status") or ""
    line = next((line for line in status.splitlines() if line.startswith("Cpus_allowed_list:")), "")
    allowed = parse_numbers(line.partition(":")[2]) if line else None
    if allowed is None:
        allowed = (
            tuple(sorted(os.sched_getaffinity(0))) if root == ROOT and hasattr(os, "sched_getaffinity") else online
        )
    cores = {parse_numbers(read_text(folder / f"cpu{cpu}/topology/thread_siblings_list") or "") for cpu in online}
    siblings = tuple(sorted(core for core in cores if core))
    present = tuple(cpu for cpu in allowed if cpu in set(online)) if online else allowed
    return Cpus(allowed=present, online=online or allowed, siblings=siblings, quota_cpus=_quota(root))


def _quota(root: Path) -> float | None:
    """The smallest limit of CPU time from this process's cgroup upwards, of version 2 or 1."""
    limits: list[float] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if not controllers else "cpu")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            limit = _limit(base.joinpath(*parts[:depth]))
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def _limit(folder: Path) -> float | None:
    both = (read_text(folder / "cpu.max") or "").split()
    if len(both) != 2:
        both = [read_text(folder / "cpu.cfs_quota_us") or "", read_text(folder / "cpu.cfs_period_us") or ""]
    if not all(text.isdigit() for text in both) or int(both[1]) == 0:  # `max` and -1: no limit
        return None
    return int(both[0]) / int(both[1])


def nics(root: Path = ROOT) -> tuple[Nic, ...]:
    """The adapters that can do RDMA, in the order of their names."""
    folder = root / "sys/class/infiniband"
    found: list[Nic] = []
    for name in sorted(_entries(folder)):
        node = read_text(folder / name / "device/numa_node") or "-1"
        place = pci_path(folder / name / "device")
        numa = int(node) if node.isdigit() else None
        found.append(Nic(name=name, device=name, numa_node=numa, bus_id=place[-1] if place else None))
    return tuple(found)


def adapter_bytes_s(root: Path = ROOT) -> float | None:
    """One way, of the slowest adapter that can do RDMA and is up; None if there is none or it does not say."""
    folder = root / "sys/class/infiniband"
    found: list[float] = []
    for name in _entries(folder):
        for port in _entries(folder / name / "ports"):
            words = (read_text(folder / name / "ports" / port / "rate") or "").split()  # 400 Gb/sec (4X NDR)
            state = read_text(folder / name / "ports" / port / "state") or ""
            if len(words) > 1 and words[1] == "Gb/sec" and words[0].replace(".", "", 1).isdigit() and "ACTIVE" in state:
                found.append(float(words[0]) * 1e9 / 8)
    return min((each for each in found if each > 0), default=None)


def card_bytes_s(name: str | None, root: Path = ROOT) -> float | None:
    """One way, of the network card of a name, or of the fastest one that is up; None if none says."""
    folder = root / "sys/class/net"
    names = [name] if name else [each for each in _entries(folder) if read_text(folder / each / "operstate") == "up"]
    speeds = [read_text(folder / each / "speed") or "" for each in names]  # Mbit/s, -1 where there is no link
    return max((int(each) * 1e6 / 8 for each in speeds if each.isdigit() and int(each) > 0), default=None)


def pci_path(device: Path) -> tuple[str, ...]:
    """The PCI functions from the root complex down to a device: ("pci0000:00", "0000:00:01.0", "0000:19:00.0")."""
    try:
        parts = device.resolve(strict=True).parts
    except (OSError, RuntimeError):
        return ()
    start = next((i for i, part in enumerate(parts) if part.startswith("pci") and ":" in part), None)
    if start is None:
        return ()
    end = next((i for i in range(start + 1, len(parts)) if parts[i].count(":") != 2), len(parts))
    return parts[start:end]


def gpu_place(bus_id: str, root: Path = ROOT) -> tuple[tuple[str, ...], int | None]:
    """The PCI path of a GPU and its NUMA node."""
    folder = root / "sys/bus/pci/devices" / bus_id
    node = read_text(folder / "numa_node") or "-1"
    return pci_path(folder), int(node) if node.isdigit() else None


def kind_between(a: Sequence[str], b: Sequence[str], same_numa: bool) -> LinkKind:
    """What lies between two devices, from their PCI paths, as the driver would call it.

    A switch is an upstream port with its downstream ports: two devices right below one switch see a single bridge.
    """
    if not a or not b:
        return LinkKind.NODE if same_numa else LinkKind.SYS
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    if common == 0:
        return LinkKind.NODE if same_numa else LinkKind.SYS
    if common == 1:  # the root complex alone
        return LinkKind.PHB
    # Functions of one card differ in their last part alone and are covered too.
    return LinkKind.PIX if max(len(a), len(b)) - common <= 2 else LinkKind.PXB


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
