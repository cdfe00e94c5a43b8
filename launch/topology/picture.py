"""A topology as lines for a terminal: the matrix in colours, islands, what is slow, what is odd."""

from collections.abc import Iterator

from .cpu_list import format_numbers
from .islands import islands_of, slowest_pairs
from .value import FAST, Link, LinkKind, Topology

_RESET = "\x1b[0m"
_MAX_PAIRS = 6


def draw(topology: Topology, oddities: tuple[str, ...], *, colour: bool) -> Iterator[str]:
    """The lines."""
    yield _summary(topology)
    yield ""
    yield from _matrix(topology, colour)
    named = [f"{nic.name} {nic.device}" for nic in topology.nics if nic.device != nic.name]
    if named:
        yield "adapters: " + ", ".join(named)
    yield ""
    yield from _islands(topology)
    slow = slowest_pairs(topology)
    if slow is not None:
        link, pairs = slow
        words = ", ".join(f"GPU{i}-GPU{j}" for i, j in pairs[:_MAX_PAIRS])
        more = f" and {len(pairs) - _MAX_PAIRS} more pairs" if len(pairs) > _MAX_PAIRS else ""
        yield f"slowest   {link.label} {_rate(link)}: {words}{more}"
    if oddities:
        yield ""
        yield "odd"
        yield from (f"  - {each}" for each in oddities)


def _summary(topology: Topology) -> str:
    models = list(dict.fromkeys(gpu.model for gpu in topology.gpus if gpu.model))
    what = f" ({', '.join(models)})" if models else ""
    nodes = {gpu.numa_node for gpu in topology.gpus if gpu.numa_node is not None}
    numa = f", {len(nodes)} NUMA node{'s' * (len(nodes) != 1)}" if nodes else ""
    return (
        f"{topology.source}: {len(topology.gpus)} GPU{'s' * (len(topology.gpus) != 1)}{what}, "
        f"{len(topology.nics)} adapter{'s' * (len(topology.nics) != 1)}{numa}"
    )


def _matrix(topology: Topology, colour: bool) -> Iterator[str]:
    names = topology.names()
    columns = [i for i in range(len(names)) if i < len(topology.gpus) or len(topology.nics) <= 16]
    width = max(len(name) for name in names) + 1
    cells = {i: max(len(names[i]), *(len(row[i].label) for row in topology.links)) + 1 for i in columns}
    tail = any(gpu.cpus is not None or gpu.numa_nodes for gpu in topology.gpus)
    yield " " * width + "".join(names[i].rjust(cells[i]) for i in columns) + ("  NUMA  CPUs" if tail else "")
    for i, name in enumerate(names):
        row = "".join(_paint(topology.links[i][j], cells[j], colour) for j in columns)
        yield (name.ljust(width) + row + (_tail(topology, i) if tail else "")).rstrip()
    if len(columns) < len(names):
        yield f"(columns of {len(topology.nics)} adapters left out; their rows stand above)"


def _tail(topology: Topology, i: int) -> str:
    if i >= len(topology.gpus):
        return ""
    gpu = topology.gpus[i]
    numa = "-" if gpu.numa_nodes is None else format_numbers(gpu.numa_nodes)
    cpus = "-" if gpu.cpus is None else format_numbers(gpu.cpus) or "none"
    return f"  {numa:<4}  {cpus}"


def _paint(link: Link, width: int, colour: bool) -> str:
    text = link.label.rjust(width)
    if not colour:
        return text
    return f"\x1b[{_colour(link)}m{text}{_RESET}"


def _colour(link: Link) -> int:
    if link.kind is LinkKind.SELF:
        return 2
    if link.kind in FAST:
        return 32
    if link.kind.distance <= LinkKind.PXB.distance:
        return 36
    return 33 if link.kind in (LinkKind.PHB, LinkKind.NODE) else 31


def _islands(topology: Topology) -> Iterator[str]:
    for island in islands_of(topology):
        names = ", ".join(f"GPU{i}" for i in island.gpus)
        if not island.labels:
            yield f"island    {names}: alone"
            continue
        labels = "/".join(island.labels)
        how = f"{labels} through a switch" if topology.switched else labels
        partly = "" if island.complete else ", not every pair"
        yield f"island    {names}: {how}{partly}, {island.bandwidth_bytes_s / 1e9:.0f} GB/s one way"


def _rate(link: Link) -> str:
    return f"{link.bandwidth_bytes_s / 1e9:.0f} GB/s" + ("" if link.measured else " (estimate)")
