"""What is connected with what, and which rank belongs where.

    topology = read_topology(text, "topo.txt")           one value, from whichever tool (`matrix`, `host`)
    islands_of(topology), oddities_of(topology)          what is fast, what is odd
    solve(mesh, traffic, cluster)                        the assignment of ranks to devices that communicates least

Reading needs the standard library alone; only the search over clusters loads numpy. Figures are estimates until
measured.
"""

from .errors import TopologyError
from .matrix import read_file, read_topology
from .value import Gpu, Link, LinkKind, Nic, NumaNode, Topology

__all__ = [
    "Gpu",
    "Link",
    "LinkKind",
    "Nic",
    "NumaNode",
    "Topology",
    "TopologyError",
    "read_file",
    "read_topology",
]
