"""Topologies that were edited, damaged or mixed are one sentence; what is only unusual is read."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from topology_cases import case, cube_mesh, render

from stepladder.launch.topology import TopologyError, read_topology
from stepladder.launch.topology.oddities import oddities_of

WHOLE = read_topology(render(cube_mesh()), "topo.txt").to_json()


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(found: Any) -> None:
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return edit


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "an endless number": put("gpus", 0, "memory_numa_node", value=float("inf")),
    "an adapter's half node": put("nics", 0, "numa_node", value=0.5),
    "a huge bandwidth": put("bandwidth_bytes_s", 0, 1, value=10**400),
    "a bandwidth of one way": put("bandwidth_bytes_s", 0, 1, value=1.0),
    "a latency of one way": put("latency_s", 0, 1, value=1.0),
    "a link of none with another": put("labels", 0, 1, value="X"),
    "a link with itself": put("labels", 0, 0, value="SYS"),
    "two GPUs of one name": put("gpus", 1, "name", value="GPU0"),
    "a GPU of no number": put("gpus", 1, "name", value="GPU\u00b2"),
    "an adapter of a GPU's name": put("nics", 0, "name", value="GPU0"),
    "a node below zero": put("numa_nodes", value=[{"index": -1, "cpus": "0"}]),
    "a label that is a list": put("labels", 0, 1, value=[]),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_topology_is_refused_in_one_sentence(name: str) -> None:
    found = copy.deepcopy(WHOLE)
    EDITS[name](found)
    with pytest.raises(TopologyError, match="make it again") as caught:
        read_topology(json.dumps(found), "saved.json")
    assert str(caught.value).isprintable()


def test_a_saved_topology_says_nothing_to_the_terminal() -> None:
    found = copy.deepcopy(WHOLE)
    for edit in (
        put("gpus", 0, "model", value="\x1b[31mEVIL\x1b[0m\nerror"),
        put("nics", 0, "name", value="nic\x07"),
        put("nics", 0, "device", value="mlx5_0\x1b[2J"),
        put("notes", value=["one\x1b[1m\ntwo"]),
    ):
        edit(found)
    read = read_topology(json.dumps(found), "saved.json")
    texts = [read.gpus[0].model or "", read.nics[0].name, read.nics[0].device, *read.notes]
    assert all(text.isprintable() for text in texts)


def test_a_byte_order_mark_before_a_topology_is_none_of_it() -> None:
    text = json.dumps(WHOLE)
    assert read_topology("\ufeff" + text, "a") == read_topology(text, "a")


def test_only_ascii_digits_are_numbers() -> None:
    row = "GPU0\tX\tNV1\t0\t0\t\t{}\nGPU1\tNV1\tX\t0\t0\t\t{}\n"
    header = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    assert read_topology(header + row.format("\u00b2", "\u00b2"), "a").gpus[0].memory_numa_node is None
    assert read_topology(header + row.format("2", "2"), "a").gpus[0].memory_numa_node == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\tGPU0\tmlx5_0\tmlx5_0\nGPU0\tX\tPIX\tPIX\n", "two columns are named mlx5_0"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV100\nGPU1\tNV100\tX\n", "NV100: no label"),
        ("\tGPU0\tGPU1\n\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU1\tNV4\tX\n", "a second header begins"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV4\n\tGPU0\tGPU1\nGPU1\tNV4\tX\n", "line 3: GPU0 comes again"),
    ],
)
def test_mixed_matrices_say_what_is_mixed(text: str, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        read_topology(text, "topo.txt")


def test_a_machine_of_one_node_in_xml_has_no_numa_node() -> None:
    found = read_topology(
        '<system><cpu numaid="-1"><pci class="0x030200" busid="1"><gpu/></pci>'
        '<pci class="0x020000" busid="2"><nic><net name="a"/></nic></pci></cpu></system>',
        "topo.xml",
    )
    assert found.nics[0].numa_node is None
    assert found.gpus[0].numa_node is None
    assert found.numa_nodes == ()


def test_adapters_in_order_are_not_odd_whatever_the_order_of_columns() -> None:
    machine = case(8, lambda i, j: "NV2", nics=4, nic=lambda g, n: "PIX" if g // 2 == (0, 2, 1, 3)[n] else "PHB")
    machine.nics = ["mlx5_0", "mlx5_2", "mlx5_1", "mlx5_3"]
    assert not [each for each in oddities_of(read_topology(render(machine), "a")) if "another order" in each]
    far = case(4, lambda i, j: "NV4", nics=2, nic=lambda g, n: "PHB" if (g, n) in ((3, 0), (1, 1)) else "SYS")
    said = [each for each in oddities_of(read_topology(render(far), "a")) if "another order" in each]
    assert said == ["adapters are in another order than GPUs: GPU1-NIC1 (mlx5_1), GPU3-NIC0 (mlx5_0)"]
