"""Reading a topology in NCCL's XML: what it dumps (NCCL_TOPO_DUMP_FILE), what clouds ship with their virtual machines.

A virtual machine's own PCIe tree is flat, so there this file is the only truth: which GPU and which adapter are behind
which switch, and near which socket. A file that ships with a cloud has no NVLinks; NCCL asks the driver for them.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .assemble import SELF, Label, assemble
from .errors import TopologyError, shown
from .foreign import what_it_is
from .grid import MAX_DEVICES
from .value import Gpu, LinkKind, Nic, NumaNode, Topology

_GPU_CLASSES = ("0x0300", "0x0302", "0x0380")
_NIC_CLASSES = ("0x0200", "0x0207")
_SWITCH_CLASS = "0x0680"
_MAX_DEPTH = 32
_RAW = "give the file that NCCL_TOPO_DUMP_FILE or the cloud names"


@dataclass(kw_only=True)
class _Device:
    bus_id: str
    is_gpu: bool
    numa_node: int
    bridges: tuple[int, ...]
    """The PCIe bridges above, outermost first, each a number of its own."""
    nvlinks: dict[str, int] = field(default_factory=dict[str, int])
    """NVLinks by the bus id of what they end at, and `switch`."""
    name: str = ""


def looks_like_xml(lines: Sequence[str]) -> bool:
    """Whether a text is XML."""
    first = next((line for line in lines if line.strip()), "")
    return first.lstrip().startswith("<")


def read_nccl_xml(lines: Sequence[str], source: str) -> Topology:
    """The topology in the file. Raises: TopologyError, one sentence."""
    text = "\n".join(lines)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise TopologyError(f"{source}: the XML declares entities, which no topology of NCCL does; {_RAW}")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise TopologyError(f"{source}: the XML is damaged ({error}); {_RAW}") from error
    if root.tag != "system":
        said = what_it_is(lines)
        raise TopologyError(f"{source}: {said or f'the XML is no topology but <{shown(root.tag)}>; {_RAW}'}")
    devices: list[_Device] = []
    nodes: list[NumaNode] = []
    for cpu in root.iter("cpu"):
        index = _integer(cpu.get("numaid", "-1"))
        if index >= 0:  # -1: the kernel knows of no NUMA nodes
            nodes.append(NumaNode(index=index, cpus=_mask(cpu.get("affinity", ""))))
        devices.extend(_devices(cpu, index, (), 0, source))
    gpus, nics = [each for each in devices if each.is_gpu], [each for each in devices if not each.is_gpu]
    if not gpus or len(devices) > MAX_DEVICES:
        raise TopologyError(f"{source}: {len(gpus)} GPUs and {len(nics)} adapters are no machine's; {_RAW}")
    whole = [*gpus, *nics]
    labels = [[SELF if i == j else _label(a, b) for j, b in enumerate(whole)] for i, a in enumerate(whole)]
    cpus = {node.index: node.cpus for node in nodes}
    notes = (
        [] if any(gpu.nvlinks for gpu in gpus) else ["the file has no NVLinks; a machine may have them all the same"]
    )
    return assemble(
        source=source,
        gpus=[
            Gpu(
                index=i,
                bus_id=gpu.bus_id,
                cpus=cpus.get(gpu.numa_node),
                numa_nodes=(gpu.numa_node,) if gpu.numa_node >= 0 else None,
            )
            for i, gpu in enumerate(gpus)
        ],
        nics=[
            Nic(
                name=f"NIC{i}",
                device=nic.name or f"NIC{i}",
                numa_node=nic.numa_node if nic.numa_node >= 0 else None,
                bus_id=nic.bus_id,
            )
            for i, nic in enumerate(nics)
        ],
        labels=labels,
        numa_nodes=nodes,
        notes=notes,
    )


def _devices(
    above: ElementTree.Element, numa_node: int, bridges: tuple[int, ...], depth: int, source: str
) -> Iterator[_Device]:
    """GPUs and adapters below an element."""
    if depth > _MAX_DEPTH:
        raise TopologyError(f"{source}: PCIe bridges {_MAX_DEPTH} deep are no machine's; {_RAW}")
    for element in above:
        if element.tag == "pci":
            kind = element.get("class", "")[:6]
            gpu, nic = element.find("gpu"), element.find("nic")
            is_gpu = gpu is not None or (kind in _GPU_CLASSES and not len(element))
            if is_gpu or nic is not None or (kind in _NIC_CLASSES and not len(element)):
                net = None if nic is None else nic.find("net")
                yield _Device(
                    bus_id=shown(element.get("busid", "?")),
                    is_gpu=is_gpu,
                    numa_node=numa_node,
                    bridges=bridges,
                    nvlinks=_nvlinks(gpu) if gpu is not None else {},
                    name="" if net is None else shown(net.get("name", "")),
                )
            else:
                yield from _devices(element, numa_node, (*bridges, id(element)), depth + 1, source)


def _nvlinks(gpu: ElementTree.Element) -> dict[str, int]:
    found: dict[str, int] = {}
    for link in gpu.iter("nvlink"):
        end = "switch" if link.get("tclass", "").startswith(_SWITCH_CLASS) else link.get("target", "?").lower()
        found[end] = found.get(end, 0) + min(max(_integer(link.get("count", "1")), 0), 99)
    return found


def _label(a: _Device, b: _Device) -> Label:
    direct = a.nvlinks.get(b.bus_id.lower(), 0)
    switched = min(a.nvlinks.get("switch", 0), b.nvlinks.get("switch", 0))
    if direct or switched:
        return Label(kind=LinkKind.NVLINK, num_nvlinks=max(direct, switched))
    if a.numa_node != b.numa_node:
        return Label(kind=LinkKind.SYS)
    common = sum(1 for _ in _common(a.bridges, b.bridges))
    if not common:
        return Label(kind=LinkKind.PHB)
    below = max(len(a.bridges), len(b.bridges)) - common
    return Label(kind=LinkKind.PXB if below else LinkKind.PIX)


def _common(a: Sequence[int], b: Sequence[int]) -> Iterator[int]:
    for here, there in zip(a, b, strict=False):
        if here != there:
            return
        yield here


def _integer(text: str) -> int:
    return int(text) if re.fullmatch(r"-?[0-9]{1,6}", text) else -1


def _mask(text: str) -> tuple[int, ...]:
    """CPUs of a mask in groups of 32 bits, the highest first: `00000000,000fffff`."""
    groups = text.split(",")
    if not all(re.fullmatch(r"[0-9a-fA-F]{1,8}", group) for group in groups) or len(groups) > 512:
        return ()
    value = int("".join(group.rjust(8, "0") for group in groups), 16)
    return tuple(i for i in range(value.bit_length()) if value >> i & 1)
