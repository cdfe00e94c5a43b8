"""A topology as `stepladder topo --json` writes it, read back: from files of many hosts, and from what hosts tell."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .cpu_list import parse_numbers
from .errors import TopologyError, shown
from .value import Gpu, Link, LinkKind, Nic, NumaNode, Topology

_NVLINKS = re.compile(r"NV([0-9]{1,2})")
_GPU = re.compile(r"GPU([0-9]{1,3})")
_MOST_DEVICES = 512
_MOST_NUMBER = 1 << 31
_MOST_FIGURE = 1e18
"""Bytes a second, or seconds: far above any link's."""
_MOST_TEXT = 1_000


def looks_saved(text: str) -> bool:
    """Whether a text is JSON rather than what a tool prints."""
    return text.lstrip("\ufeff \t\r\n")[:1] == "{"


def read_saved(text: str, source: str) -> Topology:
    """The topology in a text. Raises: TopologyError, one sentence."""
    try:
        found: Any = json.loads(text.lstrip("\ufeff"))
        return from_value(found, source)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise TopologyError(
            f"{source}: this is no topology as `stepladder topo --json` writes it ({shown(error)}); make it again"
        ) from error


def from_value(found: Mapping[str, Any], source: str) -> Topology:
    """The topology in plain values. Raises: ValueError, KeyError, TypeError and their kin."""
    gpus = tuple(_gpu(each) for each in found["gpus"])
    nics = tuple(
        Nic(
            name=_name(each["name"]),
            device=_name(each["device"]),
            numa_node=_number(each["numa_node"]),
            bus_id=_text(each["bus_id"]),
        )
        for each in found["nics"]
    )
    names = [each.name for each in (*gpus, *nics)]
    if len(set(names)) != len(names):
        raise ValueError(f"two devices are named {next(name for name in names if names.count(name) > 1)}")
    size = len(gpus) + len(nics)
    if not 1 <= len(gpus) <= size <= _MOST_DEVICES:
        raise ValueError(f"{len(gpus)} GPUs")
    tables = [found[key] for key in ("labels", "bandwidth_bytes_s", "latency_s")]
    if any(len(table) != size or any(len(row) != size for row in table) for table in tables):
        raise ValueError(f"not {size} rows of {size} links")
    links = _links(*tables, measured=bool(found["measured"]))
    _check_links(links, names)
    return Topology(
        source=source,
        gpus=gpus,
        nics=nics,
        numa_nodes=tuple(
            NumaNode(index=_whole(each["index"]), cpus=_numbers(each["cpus"]) or ()) for each in found["numa_nodes"]
        ),
        links=links,
        switched=bool(found["switched"]),
        pci_only=bool(found["pci_only"]),
        notes=tuple(_plain(str(each)) for each in found["notes"]),
    )


def _links(
    labels: Sequence[Sequence[str]],
    speeds: Sequence[Sequence[float | None]],
    latencies: Sequence[Sequence[float | None]],
    *,
    measured: bool,
) -> tuple[tuple[Link, ...], ...]:
    """Each different link once: thousands of hosts tell of the same few."""
    known: dict[tuple[str, float | None, float | None], Link] = {}

    def link(label: str, speed: float | None, seconds: float | None) -> Link:
        key = (label, speed, seconds)
        if key not in known:
            known[key] = _link(label, speed, seconds, measured)
        return known[key]

    rows = zip(labels, speeds, latencies, strict=True)
    return tuple(tuple(map(link, *row)) for row in rows)


def _check_links(links: Sequence[Sequence[Link]], names: Sequence[str]) -> None:
    """Raises: ValueError if a device is linked with itself or two are told apart by who tells."""
    for i, row in enumerate(links):
        for j, link in enumerate(row[: i + 1]):
            if (link.kind is LinkKind.SELF) != (i == j):
                raise ValueError(f"{names[i]} to {names[j]} is {link.label}: only a device to itself is X")
            if link != links[j][i]:
                raise ValueError(f"{names[i]} to {names[j]} differs from {names[j]} to {names[i]}")


def _gpu(each: Mapping[str, Any]) -> Gpu:
    name = _GPU.fullmatch(_name(each["name"]))
    if name is None:
        raise ValueError(f"a GPU named {each['name']}")
    return Gpu(
        index=int(name[1]),
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


def _figure(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _MOST_FIGURE:
        raise ValueError(f"a figure of {value}")
    return float(value)


def _numbers(text: Any) -> tuple[int, ...] | None:
    if text is None:
        return None
    found = parse_numbers(str(text))
    if found is None:
        raise ValueError(f"numbers {text}")
    return found


def _number(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_NUMBER:
        raise ValueError(f"a number {value}")
    return value


def _text(value: Any) -> str | None:
    return None if value is None else _plain(str(value))


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a name {value}")
    return _plain(value)


def _plain(text: str) -> str:
    """Without what speaks to a terminal, and no longer than a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_TEXT])
