"""A topology as `stepladder topo --json` writes it, read back: from files of many hosts, and from what hosts tell."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .cpu_list import parse_numbers
from .errors import TopologyError, shown
from .value import Gpu, Link, LinkKind, Nic, NumaNode, Topology

_NVLINKS = re.compile(r"NV(\d{1,2})")
_MOST_DEVICES = 512


def looks_saved(text: str) -> bool:
    """Whether a text is JSON rather than what a tool prints."""
    return text.lstrip()[:1] == "{"


def read_saved(text: str, source: str) -> Topology:
    """The topology in a text. Raises: TopologyError, one sentence."""
    try:
        found: Any = json.loads(text)
        return from_value(found, source)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise TopologyError(
            f"{source}: this is no topology as `stepladder topo --json` writes it ({shown(error)}); make it again"
        ) from error


def from_value(found: Mapping[str, Any], source: str) -> Topology:
    """The topology in plain values. Raises: ValueError, KeyError, TypeError and their kin."""
    gpus = tuple(_gpu(i, each) for i, each in enumerate(found["gpus"]))
    nics = tuple(
        Nic(
            name=str(each["name"]),
            device=str(each["device"]),
            numa_node=_number(each["numa_node"]),
            bus_id=_text(each["bus_id"]),
        )
        for each in found["nics"]
    )
    size = len(gpus) + len(nics)
    if not 1 <= len(gpus) <= size <= _MOST_DEVICES:
        raise ValueError(f"{len(gpus)} GPUs")
    tables = [found[key] for key in ("labels", "bandwidth_bytes_s", "latency_s")]
    if any(len(table) != size or any(len(row) != size for row in table) for table in tables):
        raise ValueError(f"not {size} rows of {size} links")
    measured = bool(found["measured"])
    labels, speeds, latencies = tables
    links = tuple(
        tuple(_link(labels[i][j], speeds[i][j], latencies[i][j], measured) for j in range(size)) for i in range(size)
    )
    return Topology(
        source=source,
        gpus=gpus,
        nics=nics,
        numa_nodes=tuple(
            NumaNode(index=int(each["index"]), cpus=_numbers(each["cpus"]) or ()) for each in found["numa_nodes"]
        ),
        links=links,
        switched=bool(found["switched"]),
        pci_only=bool(found["pci_only"]),
        notes=tuple(str(each) for each in found["notes"]),
    )


def _gpu(position: int, each: Mapping[str, Any]) -> Gpu:
    name = str(each["name"])
    return Gpu(
        index=int(name.removeprefix("GPU")) if name.removeprefix("GPU").isdigit() else position,
        model=_text(each["model"]),
        uuid=_text(each["uuid"]),
        bus_id=_text(each["bus_id"]),
        cpus=_numbers(each["cpus"]),
        numa_nodes=_numbers(each["numa_nodes"]),
        memory_numa_node=_number(each["memory_numa_node"]),
    )


def _link(label: str, bandwidth: float | None, latency: float | None, measured: bool) -> Link:
    nvlinks = _NVLINKS.fullmatch(label)
    kind = LinkKind.NVLINK if nvlinks else LinkKind(label)
    itself = kind is LinkKind.SELF
    speed, seconds = (math.inf, 0.0) if itself else (_figure(bandwidth), _figure(latency))
    if not speed > 0:
        raise ValueError(f"a link of {speed} bytes a second")
    return Link(
        kind=kind,
        num_nvlinks=int(nvlinks[1]) if nvlinks else 0,
        bandwidth_bytes_s=speed,
        latency_s=seconds,
        measured=measured and not itself,
    )


def _figure(value: float | None) -> float:
    found = float(value)  # pyright: ignore[reportArgumentType]
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"a figure of {found}")
    return found


def _numbers(text: Any) -> tuple[int, ...] | None:
    if text is None:
        return None
    found = parse_numbers(str(text))
    if found is None:
        raise ValueError(f"numbers {text}")
    return found


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
