"""What a placement is worth, measured: a decoder step of TP x DP with gloo on hosts whose links are shaped.

`make bench-place`, as root. Hosts are network namespaces of this machine: their own traffic goes through a loopback of
1 Gbit/s, traffic to others through a card of 20 Mbit/s. Printed beside each figure is the model's, which is told the
rates, the traffic of the recipe, and one measured time: that of a step when nothing is shaped. Numbers of scenes on the
command line choose among them.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "shared"))

from netns import CARD, Agents, Host, hosts, why_not

from stepladder.launch.placement.machines import cpu_machine
from stepladder.launch.placement.traffic import mesh_of, traffic_of
from stepladder.launch.plan import make_plan
from stepladder.launch.recipe import read
from stepladder.launch.topology import Cluster, Mesh, Network, Node, Pattern, Traffic
from stepladder.launch.topology.solve import as_launched, solve

RECIPE = """
name = "place"
[run]
num_steps = {steps}
log_every = {steps}
device = "cpu"
[model.decoder]
dim = 192
num_layers = 2
num_heads = 4
ffn_dim = 512
vocab_size = 256
[data.synthetic]
[batch]
microbatch_size = 4
sequence_length = 256
[mesh]
dp_shard = 2
tp = 2
[strategies.fsdp2]
[strategies.tp]
[strategies.adamw]
"""
STEPS, WARM_UP = 7, 2
CARD_BITS_S, LOOPBACK_BITS_S = 20e6, 1e9
FRAMES = 1448 / 1514
"""Of the bits on a wire, those that a TCP connection carries."""
LATENCY_S = 1e-3
"""Of a hop of gloo between processes that share two cores."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to start the job: the host of each of the launcher's ranks, and what is done about it."""

    name: str
    launched: tuple[str, ...]
    placement: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Hosts with addresses by which torchrun counts their agents, one rank each."""

    name: str
    addresses: dict[str, tuple[int, ...]]
    arms: tuple[Arm, ...]


TURNS, ORDER = ("a", "b", "a", "b"), ("a", "a", "b", "b")
SCENES = (
    Scene(
        name="two hosts with two ranks",
        addresses={"a": (1, 3, 5), "b": (2, 4, 6)},
        arms=(
            Arm(name="in turns", launched=TURNS, placement="rank-order"),
            Arm(name="rank order", launched=ORDER, placement="rank-order"),
            Arm(name="placed", launched=TURNS, placement="auto"),
        ),
    ),
    Scene(
        name="hosts with one, two and one rank",
        addresses={"a": (1,), "b": (2, 3), "c": (4,)},
        arms=(
            Arm(name="rank order", launched=("a", "b", "b", "c"), placement="rank-order"),
            Arm(name="placed", launched=("a", "b", "b", "c"), placement="auto"),
        ),
    ),
)


def step_s(found: dict[str, Host], arm: Arm, recipe: Path, folder: Path) -> float:
    """Median of a step, seconds, on the rank that takes longest to tell."""
    agents = Agents()
    addresses: list[tuple[Host, str]] = []
    last = 0
    for name in arm.launched:  # the next address of the host that sorts behind those that are taken
        host = found[name]
        address = next(each for each in host.addresses if int(each.split(".")[-1]) > last)
        last = int(address.split(".")[-1])
        addresses.append((host, address))
    endpoint = f"{addresses[0][1]}:29400"
    times = folder / "times.json"
    job = ["run", str(recipe), "--out", str(folder / "run"), "--placement", arm.placement, "--step-times", str(times)]
    for host, address in addresses:
        agents.start(host, address, job, endpoint=endpoint, num_agents=len(addresses))
    ended = agents.wait(540)
    if any(code for code, _ in ended):
        raise SystemExit(f"{arm.name}: a rank failed\n{ended[0][1][-3000:]}")
    told = json.loads(times.read_text())
    return statistics.median(told["step_s"][WARM_UP:])


def by_gloo(traffic: Sequence[Traffic]) -> list[Traffic]:
    """What gloo makes of it: nothing overlaps, and a reduce-scatter is an all-reduce of which a part is kept."""
    return [
        replace(
            each, weight=1.0, pattern=Pattern.ALL_REDUCE if each.pattern is Pattern.REDUCE_SCATTER else each.pattern
        )
        for each in traffic
    ]


def modelled_s(scene: Scene, arm: Arm, mesh: Mesh, traffic: Sequence[Traffic]) -> float:
    """Communication of a step by the model."""
    count = {name: arm.launched.count(name) for name in scene.addresses}
    nodes: list[Node] = []
    for name, number in count.items():
        machine = cpu_machine(name, number)
        # A loopback is one device for both directions of a ring.
        links = tuple(
            tuple(replace(link, bandwidth_bytes_s=LOOPBACK_BITS_S / 16, latency_s=LATENCY_S) if i != j else link
                  for j, link in enumerate(row)) for i, row in enumerate(machine.links)
        )  # fmt: skip
        nodes.append(Node(name=name, topology=replace(machine, links=links)))
    network = Network(adapter_bytes_s=CARD_BITS_S * FRAMES / 8, latency_s=LATENCY_S)
    cluster = Cluster(nodes=tuple(nodes), network=network)
    if arm.placement == "auto":
        return solve(mesh, traffic, cluster).seconds
    seen = dict.fromkeys(count, 0)
    places: list[tuple[str, int]] = []
    for name in arm.launched:
        places.append((name, seen[name]))
        seen[name] += 1
    return as_launched(mesh, traffic, cluster, places).seconds


def main() -> int:
    reason = why_not()
    if reason:
        print(f"bench-place: not here: {reason}")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and take the hosts down
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as kept:
        recipe = Path(kept) / "place.toml"
        recipe.write_text(RECIPE.format(steps=STEPS))
        plan = make_plan(read(str(recipe)), num_gpus=0, num_ranks=4, started=True)
        mesh, traffic = mesh_of(plan), by_gloo(traffic_of(plan))
        worst = 0.0
        print(f"{'scene':<34}{'ranks':<12}{'ms a step':>10}{'modelled':>10}{'times placed':>14}{'modelled':>10}")
        chosen = [SCENES[int(each) - 1] for each in sys.argv[1:]] or SCENES
        for number, scene in enumerate(chosen):
            worst = max(worst, _measure(scene, mesh, traffic, recipe, Path(kept) / str(number)))
    print(f"largest error of a modelled ratio: {100 * worst:.0f} % (goal 25 %)")
    return 0


def _measure(scene: Scene, mesh: Mesh, traffic: Sequence[Traffic], recipe: Path, kept: Path) -> float:
    """Print a scene; return the largest relative error of a ratio."""
    placed = scene.arms[-1]
    with hosts(scene.addresses) as found:
        free_s = step_s(found, placed, recipe, _folder(kept, "free"))
        print(f"{scene.name:<34}{'not shaped':<12}{free_s * 1e3:>10.0f}", flush=True)
        for host in found.values():
            host.shape(CARD, CARD_BITS_S)
            host.shape("lo", LOOPBACK_BITS_S)
        measured = {arm.name: step_s(found, arm, recipe, _folder(kept, arm.name)) for arm in scene.arms}
    predicted = {arm.name: free_s + modelled_s(scene, arm, mesh, traffic) for arm in scene.arms}
    worst = 0.0
    for arm in scene.arms:
        ratio = measured[arm.name] / measured[placed.name]
        expected = predicted[arm.name] / predicted[placed.name]
        worst = max(worst, abs(expected / ratio - 1))
        print(
            f"{'':<34}{arm.name:<12}{measured[arm.name] * 1e3:>10.0f}{predicted[arm.name] * 1e3:>10.0f}"
            f"{ratio:>14.2f}{expected:>10.2f}",
            flush=True,
        )
    return worst


def _folder(kept: Path, name: str) -> Path:
    folder = kept / name.replace(" ", "-")
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
