"""`stepladder place`: which rank of a recipe sits on which device of which machine, and what that is worth."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ExitCode, UsageError
from .outputs import check_target, show, show_text, writing

if TYPE_CHECKING:
    from .plan import Plan
    from .schema import Recipe
    from .topology import Cluster
    from .topology.solve import HostCpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE", help="change a key"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks (default: the mesh's, or one a usable GPU)")
    parser.add_argument(
        "--topology",
        metavar="[HOST=]FILE,...",
        help="`nvidia-smi topo -m` or `stepladder topo --json` of each machine, or one for all (default: this machine)",
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="so many machines like the one in the file")
    parser.add_argument("--hosts", metavar="A,B,...", help="their host names, in the order of the files")
    parser.add_argument(
        "--links", default="", metavar="KEY=FIGURE,...", help="the network: adapter, latency, cross_rail, uplink"
    )
    for name, help_ in (
        ("--switches", "switches above a host, outermost first: HOST:SPINE/LEAF"),
        ("--failed", "GPUs that do not work: HOST:0,4-6"),
        ("--reserved", "GPUs that are somebody else's: HOST:0,4-6"),
    ):
        parser.add_argument(name, action="append", default=[], metavar="HOST:VALUE", help=help_)
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the plan, for `stepladder run --placement FILE`")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Find the placement, print it, keep it. Raises: UsageError."""
    from ..profiling.capture import publish
    from . import recipe as recipes
    from .placement.picture import lines_of
    from .placement.traffic import mesh_of, traffic_of
    from .topology import TopologyError

    if options.out is not None:
        check_target(options.out)
    recipe = recipes.read(options.recipe, options.overrides)
    try:
        cluster, cpus = _machines(options)
        plan = _plan(recipe, options.ranks, cluster)
        from .topology.solve import solve

        traffic = traffic_of(plan)
        found = solve(mesh_of(plan), traffic, cluster, cpus=cpus)
    except TopologyError as error:
        raise UsageError(str(error)) from error
    text = json.dumps(found.to_json() | {"recipe": recipe.name}, indent=1)
    if options.out is not None:
        with writing(options.out):
            publish(options.out, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
    if options.json:
        show_text(text)
        return ExitCode.DONE
    axes = " x ".join(f"{name} {size}" for name, size in zip(found.mesh.names, found.mesh.sizes, strict=True))
    notes = dict.fromkeys(note for node in cluster.nodes for note in node.topology.notes)
    lines = [f"mesh        {axes} on {len(cluster.nodes)} machines with {cluster.num_usable} usable devices"]
    lines += [*lines_of(found, traffic), *(f"note        {note}" for note in notes)]
    if options.out is not None:
        lines += [f"kept        {options.out}; use it with: stepladder run {options.recipe} --placement {options.out}"]
    show(lines)
    return ExitCode.DONE


def _machines(options: argparse.Namespace) -> "tuple[Cluster, dict[str, HostCpus]]":
    """The cluster of the options, or this machine. Raises: TopologyError."""
    from .placement.machines import Described, by_host, cluster_of
    from .topology import Cluster, Node
    from .topology.host import hidden_gpus, read_host
    from .topology.solve import HostCpus

    if options.topology is not None:
        described = Described(
            files=_list(options.topology),
            hosts=_list(options.hosts or ""),
            num_nodes=options.nodes,
            links=options.links,
            switches=by_host("--switches", options.switches),
            failed=by_host("--failed", options.failed),
            reserved=by_host("--reserved", options.reserved),
        )
        return cluster_of(described), {}
    if options.nodes or options.hosts or options.failed or options.reserved or options.switches:
        raise UsageError("--nodes, --hosts, --switches, --failed, --reserved: of which machines? add --topology FILE")
    from .placement.hosts import host_name

    host = read_host(os.environ)
    hidden = frozenset(hidden_gpus(host.topology, host.environment))
    node = Node(name=host_name(os.environ), topology=host.topology, reserved=hidden)
    return Cluster(nodes=(node,)), {node.name: HostCpus(allowed=host.cpus.allowed, siblings=host.cpus.siblings)}


def _list(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _plan(recipe: "Recipe", ranks: int | None, cluster: "Cluster") -> "Plan":
    """The plan of the recipe on so many devices as the cluster has, or as its mesh wants."""
    from ..strategies.check import owned_axes
    from .plan import make_plan

    if ranks is not None and ranks < 1:
        raise UsageError(f"--ranks {ranks}: a run needs at least 1 rank")
    least, usable = recipe.mesh.least_ranks, cluster.num_usable
    wanted = ranks or recipe.mesh.required_ranks(owned_axes(recipe.strategies)) or max(1, usable // least) * least
    return make_plan(recipe, num_gpus=max(1, cluster.num_usable), num_ranks=wanted, started=True)
