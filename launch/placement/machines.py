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
_LINK_HELP = "write bytes per second and seconds, as adapter=50e9,latency=14e-6,uplink=400e9"


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the options of `stepladder place` say of the machines."""

    files: tuple[str, ...] = ()
    """`FILE` or `HOST=FILE` each; one alone may stand for all hosts."""
    hosts: tuple[str, ...] = ()
    num_nodes: int | None = None
    links: str = ""
    switches: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of a host, outermost first: `spine0/leaf3`."""
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Numbers of GPUs of a host, as `0,4-6`."""
    reserved: Mapping[str, str] = field(default_factory=dict[str, str])


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
            raise TopologyError(f"{option} {shown(unknown)}: no such host; the hosts are {', '.join(names[:8])}")
    switches = tuple(each for each in said.switches.get(node.name, "").split("/") if each)
    return replace(
        node,
        failed=_gpus("--failed", node.name, said.failed),
        reserved=_gpus("--reserved", node.name, said.reserved),
        switches=switches,
    )


def _gpus(option: str, name: str, given: Mapping[str, str]) -> frozenset[int]:
    found = parse_numbers(given.get(name, ""))
    if found is None:
        raise TopologyError(f"{option} {name}:{shown(given[name])}: no list of GPUs; write {option} {name}:0,4-6")
    return frozenset(found)


def network_of(links: str) -> Network:
    """The network in a text: `adapter=50e9,latency=14e-6,cross_rail=25e9,uplink=400e9/1600e9`.

    Raises: TopologyError.
    """
    network = Network()
    for part in (each for each in links.split(",") if each):
        key, _, text = part.partition("=")
        figures: list[float] = []
        with contextlib.suppress(ValueError):
            figures = [float(each) for each in text.split("/")]
        if key not in _LINKS or not figures or (key != "uplink" and len(figures) > 1):
            raise TopologyError(f"--links {shown(part)}: not one of {', '.join(_LINKS)} with its figure; {_LINK_HELP}")
        match key:
            case "adapter":
                network = replace(network, adapter_bytes_s=figures[0])
            case "latency":
                network = replace(network, latency_s=figures[0])
            case "cross_rail":
                network = replace(network, cross_rail_bytes_s=figures[0])
            case _:
                network = replace(network, uplink_bytes_s=tuple(figures))
    return network


def by_host(option: str, given: Sequence[str]) -> dict[str, str]:
    """`HOST:VALUE` each. Raises: TopologyError."""
    found: dict[str, str] = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not (name and colon and value):
            raise TopologyError(f"{option} {shown(each)}: names no host; write {option} HOST:VALUE")
        found[name] = value
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
