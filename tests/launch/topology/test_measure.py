"""Measured links: real collectives of real ranks, in the place of the estimates."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from topology_cases import hgx, pairs, render

from stepladder.launch.cli import main
from stepladder.launch.placement.machines import cpu_machine
from stepladder.launch.topology import read_topology
from stepladder.launch.topology.measure import beside, groups_of, modelled_s, with_measured
from stepladder.launch.topology.probe import GroupTime, Measured, PairTime
from stepladder.launch.topology.sysfs import adapter_bytes_s, card_bytes_s


def measured() -> Measured:
    speeds = {(0, 1): 1e9, (0, 2): 2e9, (1, 2): 4e9}
    times = [PairTime(ranks=pair, bandwidth_bytes_s=speed, latency_s=1e-6) for pair, speed in speeds.items()]
    whole = GroupTime(ranks=(0, 1, 2), pattern="all_gather", payload_bytes=3_000_000, seconds=0.002)
    return Measured(pairs=tuple(times), groups=(whole,))


def test_measured_links_take_the_place_of_estimates_both_ways() -> None:
    now = with_measured(cpu_machine("here", 3), measured())
    assert now.gpu_link(0, 1).bandwidth_bytes_s == now.gpu_link(1, 0).bandwidth_bytes_s == 1e9
    assert all(now.gpu_link(i, j).measured is (i != j) for i in range(3) for j in range(3))
    assert read_topology(json.dumps(now.to_json()), "kept").links == now.links


def test_what_the_pairs_make_of_a_group_is_the_closed_form_of_a_ring() -> None:
    now = with_measured(cpu_machine("here", 3), measured())
    # a ring of three goes over every pair: two thirds of the payload over the slowest link, two hops
    assert modelled_s(now, (0, 1, 2), "all_gather", 3e6) == pytest.approx(2e6 / 1e9 + 2 * 1e-6)
    lines = "\n".join(beside(cpu_machine("here", 3), measured()))
    assert "GPU0-GPU1" in lines
    assert "all_gather of 0,1,2" in lines


def test_groups_are_islands_and_everybody() -> None:
    assert groups_of(read_topology(render(hgx()), "hgx")) == [tuple(range(8))]
    bridges = read_topology(render(pairs([(0, 1), (2, 3)], 4)), "bridges")
    assert groups_of(bridges) == [(0, 1, 2, 3)]


def test_speeds_of_adapters_and_cards_are_the_systems(tmp_path: Path) -> None:
    def say(path: str, text: str) -> None:
        (tmp_path / "sys/class" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/class" / path).write_text(text + "\n")

    assert adapter_bytes_s(tmp_path) is None
    assert card_bytes_s(None, tmp_path) is None
    for name, rate, state in (("mlx5_0", "400 Gb/sec (4X NDR)", "4: ACTIVE"), ("mlx5_1", "10 Gb/sec", "1: DOWN")):
        say(f"infiniband/{name}/ports/1/rate", rate)
        say(f"infiniband/{name}/ports/1/state", state)
    assert adapter_bytes_s(tmp_path) == 50e9
    for name, speed, state in (("eth0", "10000", "up"), ("eth1", "100000", "down"), ("eth2", "-1", "up")):
        say(f"net/{name}/speed", speed)
        say(f"net/{name}/operstate", state)
    assert card_bytes_s(None, tmp_path) == 1.25e9
    assert card_bytes_s("eth1", tmp_path) == 12.5e9
    assert card_bytes_s("eth2", tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ranks", "2"], "--ranks: has no effect without --measure"),
        (["x.txt", "--measure"], "--measure: times this machine, and not one from a file"),
        (["--measure", "--ranks", "1"], "--ranks 1: a link has two ends"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(["topo", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.slow
def test_every_pair_and_the_group_are_timed_by_gloo(stepladder: Callable[..., CompletedProcess[str]]) -> None:
    done = stepladder("topo", "--measure", "--ranks", 3, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    speeds = [speed for row in value["bandwidth_bytes_s"] for speed in row if speed is not None]
    assert value["measured"]
    assert len(speeds) == 6
    assert all(1e5 < speed < 1e12 for speed in speeds)
    told = stepladder("topo", "--measure", "--ranks", 3).stdout
    assert all(f"{pattern} of 0,1,2" in told for pattern in ("all_reduce", "all_gather", "reduce_scatter"))
