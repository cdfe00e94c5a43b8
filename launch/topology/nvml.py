"""The GPUs as the driver's library tells them: through `nvidia-ml-py`, where it is installed (the extra `topology`).

Before the text of nvidia-smi, because it knows UUIDs and bus ids, and MIG. Adapters come from sysfs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import sysfs
from .assemble import SELF, Label, assemble
from .errors import TopologyError, shown
from .value import Gpu, LinkKind, Nic, NumaNode, Topology

_KINDS = {
    0: LinkKind.PSB,
    10: LinkKind.PIX,
    20: LinkKind.PXB,
    30: LinkKind.PHB,
    40: LinkKind.NODE,
    50: LinkKind.SYS,
}
"""`nvmlGpuTopologyLevel_t`."""
_MAX_NVLINKS = 36
_TO_SWITCH = 2  # nvmlIntNvLinkDeviceType_t


def load_nvml() -> Any:
    """The library's module; None if it is not installed."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return pynvml


def read_nvml(nvml: Any, root: Path = sysfs.ROOT) -> Topology:
    """The topology of this machine. Raises: TopologyError if the driver does not answer or shows no GPU."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise TopologyError(f"NVML: {shown(error)}: the driver does not answer; load it, or give a file") from error
    try:
        return _read(nvml, root)
    except nvml.NVMLError as error:
        raise TopologyError(
            f"NVML: {shown(error)}: a GPU does not answer; look at `nvidia-smi`, or give a file"
        ) from error
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, root: Path) -> Topology:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if not handles:
        raise TopologyError("NVML: the driver sees no GPU: is this the machine, and may this container see them?")
    nodes = sysfs.numa_nodes(root)
    cpus = {node.index: node.cpus for node in nodes}
    places = [sysfs.gpu_place(_bus_id(nvml, handle), root) for handle in handles]
    gpus = [
        Gpu(
            index=i,
            model=shown(_text(nvml.nvmlDeviceGetName(handle))),
            uuid=shown(_text(nvml.nvmlDeviceGetUUID(handle))),
            bus_id=_bus_id(nvml, handle),
            cpus=cpus.get(node) if node is not None else None,
            numa_nodes=None if node is None else (node,),
        )
        for i, (handle, (_, node)) in enumerate(zip(handles, places, strict=True))
    ]
    nics = sysfs.nics(root)
    nic_places = [sysfs.pci_path(root / "sys/class/infiniband" / nic.device / "device") for nic in nics]
    labels = _gpu_labels(nvml, handles, gpus, len(gpus) + len(nics))
    whole: list[tuple[tuple[str, ...], int | None]] = [*places]
    whole.extend((path, nic.numa_node) for path, nic in zip(nic_places, nics, strict=True))
    for i in range(len(whole)):
        for j in range(len(whole)):
            if i >= len(gpus) or j >= len(gpus):
                labels[i][j] = SELF if i == j else _near(whole[i], whole[j])
    notes = list(_mig(nvml, handles))
    return assemble(
        source="NVML", gpus=gpus, nics=_numbered(nics), labels=labels, numa_nodes=_known(nodes), notes=notes
    )


def _gpu_labels(nvml: Any, handles: list[Any], gpus: list[Gpu], total: int) -> list[list[Label]]:
    """Square for all devices, filled for GPUs."""
    size = len(handles)
    links = [_nvlinks(nvml, handle) for handle in handles]
    labels = [[SELF] * total for _ in range(total)]
    for i in range(size):
        for j in range(i):
            direct = links[i].get(gpus[j].bus_id or "", 0)
            switched = min(links[i].get("switch", 0), links[j].get("switch", 0))
            if direct or switched:
                label = Label(kind=LinkKind.NVLINK, num_nvlinks=max(direct, switched))
            else:
                level = nvml.nvmlDeviceGetTopologyCommonAncestor(handles[i], handles[j])
                label = Label(kind=_KINDS.get(int(level), LinkKind.UNKNOWN))
            labels[i][j] = labels[j][i] = label
    return labels


def _nvlinks(nvml: Any, handle: Any) -> dict[str, int]:
    """Active NVLinks by the bus id at the other end, those to a switch together."""
    found: dict[str, int] = {}
    for number in range(_MAX_NVLINKS):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, number):
                continue
        except nvml.NVMLError:  # no such link, or no NVLink at all
            break
        try:
            kind = int(nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, number))
            remote = _text(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, number).busId)
        except nvml.NVMLError:
            continue
        end = "switch" if kind == _TO_SWITCH else normal_bus_id(remote)
        found[end] = found.get(end, 0) + 1
    return found


def _mig(nvml: Any, handles: list[Any]) -> Iterator[str]:
    for i, handle in enumerate(handles):
        try:
            current, _ = nvml.nvmlDeviceGetMigMode(handle)
        except nvml.NVMLError:
            continue
        if current:
            yield (
                f"GPU{i} is divided by MIG: its parts reach no other GPU by NVLink or peer to peer; "
                f"switch MIG off (`nvidia-smi -i {i} -mig 0`) for more than one rank"
            )


def _near(a: tuple[tuple[str, ...], int | None], b: tuple[tuple[str, ...], int | None]) -> Label:
    return Label(kind=sysfs.kind_between(a[0], b[0], a[1] is not None and a[1] == b[1]))


def _numbered(nics: tuple[Nic, ...]) -> list[Nic]:
    return [
        Nic(name=f"NIC{i}", device=nic.device, numa_node=nic.numa_node, bus_id=nic.bus_id) for i, nic in enumerate(nics)
    ]


def _known(nodes: tuple[NumaNode, ...]) -> tuple[NumaNode, ...]:
    return tuple(node for node in nodes if node.cpus)


def _bus_id(nvml: Any, handle: Any) -> str:
    return normal_bus_id(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))


def normal_bus_id(text: str) -> str:
    """A PCI address as sysfs writes it, with four digits of the domain: the driver writes eight."""
    domain, _, rest = text.strip().lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}:{rest}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
