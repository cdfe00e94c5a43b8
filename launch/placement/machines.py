"""A cluster from what a user says of it: files with topologies, hosts, GPUs that are out of use, and links between."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..topology import Cluster, Network, Node, Topology, TopologyError
from ..topology.cpu_list import parse_numbers
from ..topology.errors import shown
from ..topology.matrix import read_file

_MOST_NODES = 16_384
_LINKS = ("adapter", "latency", "cross_rail", "uplink")
_SPEED, _LATENCY = (1e3, 1e15, "bytes per second"), (0.0, 60.0, "seconds")
"""Beyond them a step's seconds would be no number; a modem and a link to the moon are within."""
_LINK_HELP = "write bytes per second and seconds, as adapter=50e9,latency=14e-6,uplink=400e9"


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the options of `stepladder place` say of the machines."""

    files: tuple[str, ...] = ()
    """`FILE` or `HOST=FILE` each; one alone may stand for all hosts."""
    hosts: tuple[str, ...] = ()
    num_nodes: int | None = None
    links: str = ""
    switches: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Of a host, outermost first: `spine0/leaf3`; of each host once."""
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Numbers of GPUs of a host, as `0,4-6`; said several times, they add up."""
    reserved: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


def cluster_of(said: Described) -> Cluster:
    """The machines. Raises: TopologyError, one sentence."""
    named = [_split(each) for each in said.files]
    topologies = [read_file(Path(path)) for _, path in named]
    count = max(len(topologies), len(said.hosts)) if said.num_nodes is None else said.num_nodes
    if not 1 <= count <= _MOST_NODES:
        raise TopologyError(f"--nodes {count}: a cluster has 1 to {_MOST_NODES} nodes; give such a number")
    if len(topologies) == 1:
        topologies, named = topologies * count, [(None if count > 1 else named[0][0], named[0][1])] * count
    names = list(said.hosts) or [name or _name(path, i, len(named)) for i, (name, path) in enumerate(named)]
    if not len(topologies) == len(names) == count:
        raise TopologyError(
            f"--topology: {len(topologies)} files, {len(names)} hosts and {count} nodes do not go together; give one "
            f"file for all nodes or one for each, and as many hosts"
        )
    nodes = [Node(name=name, topology=each) for name, each in zip(names, topologies, strict=True)]
    return Cluster(nodes=tuple(_with_state(node, said, names) for node in nodes), network=network_of(said.links))


def _split(text: str) -> tuple[str | None, str]:
    name, equals, path = text.partition("=")
    return (name, path) if equals and not Path(text).exists() else (None, text)


def _name(path: str, position: int, count: int) -> str:
    return Path(path).stem if count == 1 else f"node{position}"


def _with_state(node: Node, said: Described, names: Sequence[str]) -> Node:
    for option, given in (("--failed", said.failed), ("--reserved", said.reserved), ("--switches", said.switches)):
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            raise TopologyError(
                f"{option} {shown(unknown)}: no such host; the hosts are {', '.join(map(shown, names[:8]))}"
            )
    return replace(
        node,
        failed=_gpus("--failed", node.name, said.failed),
        reserved=_gpus("--reserved", node.name, said.reserved),
        switches=_switches(node.name, said.switches.get(node.name, ())),
    )


def _gpus(option: str, name: str, given: Mapping[str, Sequence[str]]) -> frozenset[int]:
    found: set[int] = set()
    for text in given.get(name, ()):
        numbers = parse_numbers(text)
        if numbers is None:
            raise TopologyError(
                f"{option} {shown(name)}:{shown(text)}: no list of GPUs; write {option} {shown(name)}:0,4-6"
            )
        found.update(numbers)
    return frozenset(found)


def _switches(name: str, given: Sequence[str]) -> tuple[str, ...]:
    if len(given) > 1:
        ways = " and ".join(shown(each) for each in given[:2])
        raise TopologyError(f"--switches {shown(name)}: is below {ways}; a host has one way up, keep one of them")
    return tuple(each for each in given[0].split("/") if each) if given else ()


def network_of(links: str) -> Network:
    """The network in a text: `adapter=50e9,latency=14e-6,cross_rail=25e9,uplink=400e9/1600e9`.

    Raises: TopologyError.
    """
    found: dict[str, tuple[float, ...]] = {}
    for part in (each.strip() for each in links.split(",") if each.strip()):
        key, _, text = part.partition("=")
        figures: tuple[float, ...] = ()
        with contextlib.suppress(ValueError):
            figures = tuple(float(each) for each in text.split("/"))
        if key not in _LINKS or not figures or (key != "uplink" and len(figures) > 1):
            raise TopologyError(f"--links {shown(part)}: not one of {', '.join(_LINKS)} with its figure; {_LINK_HELP}")
        if key in found:
            raise TopologyError(f"--links {shown(part)}: {key} has a figure already; keep one of them")
        least, most, unit = _LATENCY if key == "latency" else _SPEED
        if not all(least <= figure <= most for figure in figures):  # nan neither
            raise TopologyError(
                f"--links {shown(part)}: no network has that, {least:g} to {most:g} {unit} is possible; {_LINK_HELP}"
            )
        found[key] = figures
    given = Network()
    return replace(
        given,
        adapter_bytes_s=found.get("adapter", (given.adapter_bytes_s,))[0],
        latency_s=found.get("latency", (given.latency_s,))[0],
        cross_rail_bytes_s=found.get("cross_rail", (given.cross_rail_bytes_s,))[0],
        uplink_bytes_s=found.get("uplink", ()),
    )


def by_host(option: str, given: Sequence[str]) -> dict[str, list[str]]:
    """`HOST:VALUE` each, all values of a host together. Raises: TopologyError."""
    found: dict[str, list[str]] = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not (name and colon and value):
            raise TopologyError(f"{option} {shown(each)}: names no host; write {option} HOST:VALUE")
        found.setdefault(name, []).append(value)
    return found


def cpu_machine(source: str, num_ranks: int) -> Topology:
    """A host whose ranks compute on the CPU: as many places as ranks, each as near to any other."""
    from ..topology.links import estimate, family_of
    from ..topology.value import Gpu, LinkKind

    family = family_of(None, ())
    itself, other = estimate(LinkKind.SELF, family), estimate(LinkKind.PHB, family)
    places = range(num_ranks)
    return Topology(
        source=source,
        gpus=tuple(Gpu(index=i, model="CPU") for i in places),
        links=tuple(tuple(itself if i == j else other for j in places) for i in places),
    )
