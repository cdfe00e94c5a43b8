"""`stepladder place`: a recipe, machines from files, and the plan that comes of them; mistakes are one sentence."""

import errno
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from topology_cases import cube_mesh, hgx, render

from stepladder.launch.cli import main
from stepladder.launch.placement.hosts import natural
from stepladder.launch.topology import Topology, read_topology
from stepladder.launch.topology.placement import from_json

TP2 = '[mesh]\ntp = 2\n[strategies.tp]\n[strategies.fsdp2]\n'  # fmt: skip


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    path = tmp_path / "cube.txt"
    path.write_text(render(cube_mesh()))
    return path


def place(*arguments: Any) -> int:
    return main(["place", *map(str, arguments)])


def test_pairs_of_tp_sit_on_double_links_of_a_cube_mesh(
    recipe_file: Callable[..., Path], cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    assert place(recipe_file(TP2), "--topology", f"dgx={cube}", "--out", out) == 0
    said = capsys.readouterr().out
    assert "mesh        dp_shard 4 x tp 2 on 1 machines with 8 usable devices" in said
    assert "less, by the model" in said
    plan = from_json(out.read_text(), "plan.json")
    assert plan.gain > 1.02
    machine = read_topology(cube.read_text(), "cube")
    pairs = [(plan.seats[rank].gpu, plan.seats[rank + 1].gpu) for rank in range(0, 8, 2)]
    assert all(machine.gpu_link(*pair).num_nvlinks == 2 for pair in pairs)
    assert {seat.host for seat in plan.seats} == {"dgx"}


def test_one_file_stands_for_all_nodes_and_failed_devices_get_no_rank(
    recipe_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hgx.txt"
    path.write_text(render(hgx()))
    recipe, hosts = recipe_file(TP2), ("--hosts", "node10,node2")
    assert place(recipe, "--topology", path, "--nodes", 2, *hosts, "--failed", "node2:3,5", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["mesh"] == {"dp_shard": 7, "tp": 2}
    seats = plan["seats"]
    assert {seat["host"] for seat in seats} == {"node10", "node2"}
    assert not [seat for seat in seats if seat["host"] == "node2" and seat["gpu"] in (3, 5)]
    together = [{seat["host"] for seat in seats[rank : rank + 2]} for rank in range(0, 14, 2)]
    assert all(len(hosts) == 1 for hosts in together)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--topology", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--topology", "{cube}", "--set", "mesh.dp_shard=16"], "mesh: 32 ranks are more than the 8 usable GPUs"),
        (["--topology", "{cube}", "--links", "speed=1"], "--links speed=1: not one of adapter, latency"),
        (["--topology", "{cube}", "--links", "adapter=0"], "--links adapter=0: no network has that, 1000"),
        (["--topology", "{cube}", "--links", "adapter=1e-320,latency=1e308"], "--links adapter=1e-320: no network has"),
        (["--topology", "{cube}", "--links", "latency=inf"], "--links latency=inf: no network has that, 0 to 60"),
        (["--topology", "{cube}", "--links", "uplink=5e9/nan"], "--links uplink=5e9/nan: no network has that"),
        (["--topology", "{cube}", "--links", "latency=1,latency=2"], "--links latency=2: latency has a figure already"),
        (["--topology", "{cube}", "--switches", "cube:a/b", "--switches", "cube:a/c"], "--switches cube: is below a/b"),
        (["--topology", "{cube}", "--failed", "cube:1", "--failed", "cube:x"], "--failed cube:x: no list of GPUs"),
        (["--topology", "{cube}", "--failed", "other:1"], "--failed other: no such host; the hosts are cube"),
        (["--topology", "{cube}", "--failed", "cube:x"], "--failed cube:x: no list of GPUs"),
        (["--topology", "{cube}", "--failed", "cube:9"], "GPU9 is failed or reserved, but it has 8 GPUs"),
        (["--topology", "{cube}", "--reserved", "3"], "--reserved 3: names no host"),
        (["--topology", "{cube},{cube}", "--nodes", "3"], "2 files, 2 hosts and 3 nodes do not go together"),
        (["--topology", "{cube}", "--nodes", "0"], "--nodes 0: a cluster has 1 to"),
        (["--topology", "{cube}", "--ranks", "0"], "--ranks 0: a run needs at least 1 rank"),
        (["--topology", "{cube}", "--out", "/nowhere/plan"], "/nowhere/plan: the folder /nowhere does not exist"),
        (["--topology", "{cube}", "--out", "/"], "/: is a folder; name a file in it"),
        (["--nodes", "2"], "of which machines? add --topology FILE"),
        (["--topology", "{error}"], "error.txt: "),
    ],
)
def test_a_mistake_is_one_sentence(
    recipe_file: Callable[..., Path],
    cube: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    failed = cube.with_name("error.txt")
    failed.write_text("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")
    given = [each.format(cube=cube, error=failed) for each in arguments]
    assert place(recipe_file(TP2), *given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize("option", ["--failed", "--reserved"])
def test_an_option_said_twice_for_a_host_counts_twice(
    recipe_file: Callable[..., Path], cube: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    more = [option, "dgx:2", option, "dgx:0,1", option, "dgx:1"]
    assert place(recipe_file(TP2), "--topology", f"dgx={cube}", "--ranks", 4, "--json", *more) == 0
    seats = json.loads(capsys.readouterr().out)["seats"]
    assert len(seats) == 4
    assert not {0, 1, 2} & {seat["gpu"] for seat in seats}


def test_a_host_name_is_no_line_of_its_own(
    recipe_file: Callable[..., Path], cube: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place(recipe_file(TP2), "--topology", cube, "--hosts", "a\x1b[31m\nerror: run") == 0
    said = capsys.readouterr().out
    assert "host        a?[31m?error: run  device:rank" in said
    assert "\x1b" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_sentence_and_cuts_no_plan(
    recipe_file: Callable[..., Path], cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, recipe = [sys.executable, "-P", "-m", "stepladder"], recipe_file(TP2)
    for words in (["topo", cube], ["place", recipe, "--topology", cube, "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*command, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "standard output: cannot be written: No space left on device" in done.stderr
    kept = tmp_path / "plan.json"
    kept.write_text("of yesterday")

    def half(path: Path, text: str, **more: Any) -> int:
        with path.open("w") as file:
            file.write(text[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert place(recipe, "--topology", cube, "--out", kept) == 2
    assert kept.read_text() == "of yesterday"
    assert list(tmp_path.glob(".partial*")) == []


def test_hosts_are_sorted_as_people_count_whatever_they_are_called() -> None:
    many = "7" * 5_000
    names = ["node10", f"node{many}", "node2", "node02", "²", "node", "٣", many, "9"]
    ordered = ["9", many, "node", "node02", "node2", "node10", f"node{many}", "²", "٣"]
    for seed in range(5):
        random.Random(seed).shuffle(names)
        assert sorted(names, key=natural) == ordered


def test_a_machine_without_gpus_says_so(
    recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stepladder.launch.topology.host.run_command", lambda command: None)
    monkeypatch.setattr("stepladder.launch.topology.host.load_nvml", lambda: None)
    monkeypatch.setenv("PATH", "")
    assert place(recipe_file(TP2)) == 2
    assert "there is no GPU to see" in capsys.readouterr().err


@pytest.mark.parametrize("case", [cube_mesh(), hgx()], ids=["cube", "hgx"])
def test_a_topology_survives_being_kept_as_json(case: Any) -> None:
    first = read_topology(render(case), "topo.txt")
    again = read_topology(json.dumps(first.to_json()), "topo.json")
    assert kept(again) == kept(first)


def kept(topology: Topology) -> Any:
    return topology.gpus, topology.nics, topology.numa_nodes, topology.links, topology.switched, topology.notes


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("gpus"),
        lambda value: value["labels"].pop(),
        lambda value: value["labels"][0].__setitem__(1, "FAST"),
        lambda value: value["bandwidth_bytes_s"][0].__setitem__(1, None),
        lambda value: value["bandwidth_bytes_s"][0].__setitem__(1, 0),
        lambda value: value["gpus"].__setitem__(0, 7),
        lambda value: value["numa_nodes"].append({"index": "x", "cpus": ""}),
    ],
)
def test_a_damaged_one_is_one_sentence(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    from stepladder.launch.topology import TopologyError

    value = read_topology(render(hgx()), "topo.txt").to_json()
    damage(value)
    with pytest.raises(TopologyError, match=r"topo\.json: this is no topology as `stepladder topo --json` writes it"):
        read_topology(json.dumps(value), "topo.json")
