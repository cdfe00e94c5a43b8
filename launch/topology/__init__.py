"""What is connected with what, and which rank belongs where.

    topology = read_topology(text, "topo.txt")           one value, from whichever tool (`matrix`, `host`)
    islands_of(topology), oddities_of(topology)          what is fast, what is odd (`islands`, `oddities`)
    solve(mesh, traffic, cluster)                        the assignment of ranks that communicates least (`solve`)

Reading needs the standard library alone; only the search over clusters loads numpy, so `solve` is imported from its own
module. Figures are estimates until measured.
"""

from .cluster import Cluster, Network, Node
from .demand import Mesh, Pattern, Traffic
from .errors import TopologyError
from .matrix import read_file, read_topology
from .placement import Placement, Seat
from .value import Gpu, Link, LinkKind, Nic, NumaNode, Topology

__all__ = [
    "Cluster",
    "Gpu",
    "Link",
    "LinkKind",
    "Mesh",
    "Network",
    "Nic",
    "Node",
    "NumaNode",
    "Pattern",
    "Placement",
    "Seat",
    "Topology",
    "TopologyError",
    "Traffic",
    "read_file",
    "read_topology",
]
