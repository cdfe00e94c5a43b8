"""`stepladder topo`: how the GPUs and adapters of a machine are connected, from the machine itself or from a file."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..profiling.trace.spelling import printable
from .errors import ExitCode, UsageError
from .outputs import show, show_text

if TYPE_CHECKING:
    from .topology import Topology

_MOST_RANKS = 32
_COLOUR = re.compile(r"(\x1b\[\d{1,2}m)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="what `nvidia-smi topo -m` or `rocm-smi --showtopo` said; - for standard input (default: this machine)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--measure", action="store_true", help="time collectives over each pair and group of this machine's devices"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="with --measure: so many ranks on the CPU, by gloo")


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Read and show. Raises: UsageError if there is no topology to show."""
    from .topology.errors import TopologyError
    from .topology.islands import islands_of
    from .topology.oddities import oddities_of

    if options.ranks is not None and not options.measure:
        raise UsageError("--ranks: has no effect without --measure; add it, or remove --ranks")
    if options.file is not None and options.measure:
        raise UsageError("--measure: times this machine, and not one from a file; remove FILE")
    told: list[str] = []
    try:
        if options.ranks is not None:
            from .placement.machines import cpu_machine

            topology, odd = cpu_machine("this machine's CPU", _at_least_two(options.ranks)), ()
        elif options.file is None:
            from .topology.host import read_host

            host = read_host(os.environ)
            topology, odd = host.topology, oddities_of(host.topology, host)
        else:
            topology = _from_file(options.file)
            odd = oddities_of(topology)
        if options.measure:
            from .topology.measure import beside, measure

            estimated = topology
            topology, measured = measure(estimated, on_gpus=options.ranks is None)
            told = list(beside(estimated, measured))
    except TopologyError as error:
        raise UsageError(str(error)) from error
    if options.json:
        islands = [island.to_json() for island in islands_of(topology)]
        show_text(json.dumps(topology.to_json() | {"islands": islands, "oddities": list(odd)}, indent=1))
        return ExitCode.DONE
    from .topology.picture import draw

    colour = _has_colours()
    lines = [*draw(topology, odd, colour=colour), *told]
    if colour:
        show_text("\n".join(map(_painted, lines)))
    else:
        show(lines)
    return ExitCode.DONE


def _painted(line: str) -> str:
    """A line with the drawing's colours, and with nothing else that a terminal would obey."""
    return "".join(part if _COLOUR.fullmatch(part) else printable(part) for part in _COLOUR.split(line))


def _at_least_two(ranks: int) -> int:
    if not 2 <= ranks <= _MOST_RANKS:
        raise UsageError(f"--ranks {ranks}: a link has two ends; use 2 to {_MOST_RANKS}")
    return ranks


def _from_file(name: str) -> "Topology":
    from .topology.matrix import read_file, read_topology

    if name == "-":
        return read_topology(sys.stdin.buffer.read(8_000_000).decode(errors="replace"), "standard input")
    return read_file(Path(name))


def _has_colours() -> bool:
    """Whether standard output is a terminal whose user wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
