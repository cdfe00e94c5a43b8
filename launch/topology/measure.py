"""Measured figures in the place of estimated ones: a rank for each device of this machine times real collectives."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .demand import Pattern, Traffic
from .errors import TopologyError, shown
from .islands import islands_of
from .probe import Measured
from .value import LinkKind, Topology

_GLOO_BYTES, _NCCL_BYTES = 4 * 2**20, 64 * 2**20
_PATIENCE_S = 600.0
_START = f"from {__name__.rpartition('.')[0]}.probe import main; main()"


def measure(topology: Topology, *, on_gpus: bool) -> tuple[Topology, Measured]:
    """The topology with measured links between its devices, and the times. Raises: TopologyError."""
    size = len(topology.gpus)
    if size < 2:
        raise TopologyError("--measure: one device has no link to time; use --ranks N on a machine without GPUs")
    groups = groups_of(topology)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        _run_ranks(size, {"on_gpus": on_gpus, "payload_bytes": _NCCL_BYTES if on_gpus else _GLOO_BYTES,
                          "groups": groups, "out": str(out)})  # fmt: skip
        measured = Measured.of_value(json.loads(out.read_text()))
    return with_measured(topology, measured), measured


def groups_of(topology: Topology) -> list[tuple[int, ...]]:
    """Islands of more than two, and all together."""
    islands = [island.gpus for island in islands_of(topology) if len(island.gpus) > 2]
    everybody = tuple(range(len(topology.gpus)))
    return [*islands, *([everybody] if everybody not in islands and len(everybody) > 2 else [])]


def with_measured(topology: Topology, measured: Measured) -> Topology:
    """Links of pairs that were timed, with what that gave."""
    rows = [list(row) for row in topology.links]
    for pair in measured.pairs:
        for i, j in (pair.ranks, pair.ranks[::-1]):
            if rows[i][j].kind is not LinkKind.SELF:
                rows[i][j] = replace(
                    rows[i][j],
                    bandwidth_bytes_s=pair.bandwidth_bytes_s,
                    latency_s=pair.latency_s,
                    measured=True,
                )
    return replace(topology, links=tuple(tuple(row) for row in rows))


def _run_ranks(size: int, wanted: dict[str, object]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
        "STEPLADDER_PROBE": json.dumps(wanted),
    }
    given.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    given.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", _START],
            env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [rank.communicate(timeout=_PATIENCE_S)[1] for rank in ranks]
    except subprocess.TimeoutExpired as error:
        raise TopologyError(
            f"--measure: {size} ranks were not done in {_PATIENCE_S:.0f} s; are devices busy?"
        ) from error
    finally:
        for rank in ranks:
            rank.kill()
    failed = next((text for rank, text in zip(ranks, said, strict=True) if rank.returncode), None)
    if failed is not None:
        last = failed.strip().splitlines()[-1:] or ["no word"]
        raise TopologyError(f"--measure: a rank has failed ({shown(last[0])}); see that torch can use every device")


def beside(estimated: Topology, measured: Measured) -> Iterator[str]:
    """Lines: each pair and each collective of a group, estimated and measured."""
    yield ""
    yield f"{'pair':<16}{'label':<8}{'GB/s estimated':>16}{'measured':>10}{'us a hop':>12}{'measured':>10}"
    for pair in measured.pairs:
        i, j = pair.ranks
        link = estimated.gpu_link(i, j)
        name = f"{estimated.gpus[i].name}-{estimated.gpus[j].name}"
        yield (
            f"{name:<16}{link.label:<8}{link.bandwidth_bytes_s / 1e9:>16.1f}{pair.bandwidth_bytes_s / 1e9:>10.2f}"
            f"{link.latency_s * 1e6:>12.1f}{pair.latency_s * 1e6:>10.1f}"
        )
    if not measured.groups:
        return
    now = with_measured(estimated, measured)
    yield ""
    yield f"{'collective':<34}{'MiB':>8}{'ms by estimates':>17}{'by pairs':>10}{'measured':>10}"
    for each in measured.groups:
        devices = ",".join(map(str, each.ranks))
        by_estimates, by_pairs = (
            modelled_s(one, each.ranks, each.pattern, each.payload_bytes) for one in (estimated, now)
        )
        yield (
            f"{each.pattern + ' of ' + devices:<34}{each.payload_bytes / 2**20:>8.1f}{by_estimates * 1e3:>17.2f}"
            f"{by_pairs * 1e3:>10.2f}{each.seconds * 1e3:>10.2f}"
        )


def modelled_s(topology: Topology, devices: Sequence[int], pattern: str, payload_bytes: float) -> float:
    """What the model says of one collective."""
    from .cluster import Cluster, Node
    from .demand import Mesh
    from .solve import as_launched

    traffic = Traffic(axes=("group",), pattern=Pattern(pattern), payload_bytes=payload_bytes)
    mesh = Mesh.of({"group": len(devices)})
    places = [("here", device) for device in devices]
    return as_launched(mesh, [traffic], Cluster(nodes=(Node(name="here", topology=topology),)), places).seconds
