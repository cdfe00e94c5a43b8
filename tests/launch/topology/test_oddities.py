"""What is fast, slow and odd about a machine is said, and nothing of an ordinary one."""

from topology_cases import Case, case, cube_mesh, hgx, pairs, pcie_box, render

from stepladder.launch.topology import Topology, read_topology
from stepladder.launch.topology.islands import islands_of, slowest_pairs
from stepladder.launch.topology.oddities import oddities_of


def read(machine: Case, prefix: str = "") -> Topology:
    return read_topology(prefix + render(machine), "topo.txt")


def said(machine: Case, prefix: str = "") -> str:
    return "\n".join(oddities_of(read(machine, prefix)))


def test_islands_are_those_of_the_fast_links() -> None:
    found = islands_of(read(pairs([(0, 2), (1, 3)])))
    assert [island.gpus for island in found] == [(0, 2), (1, 3)]
    whole = islands_of(read(cube_mesh()))
    assert [island.gpus for island in whole] == [tuple(range(8))]
    assert not whole[0].complete
    assert whole[0].labels == ("NV2", "NV1")
    assert islands_of(read(hgx()))[0].complete
    assert [island.gpus for island in islands_of(read(pcie_box()))] == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_the_slowest_pairs_are_named_unless_all_are_equal() -> None:
    found = slowest_pairs(read(pairs([(0, 1), (2, 3)])))
    assert found is not None
    assert found[0].label == "SYS"
    assert found[1] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert slowest_pairs(read(hgx())) is None


def test_ordinary_machines_have_nothing_odd() -> None:
    assert said(hgx()) == ""
    assert said(pcie_box()) == ""
    assert said(pairs([(0, 1), (2, 3)])) == ""


def test_a_split_nvlink_pair_is_odd() -> None:
    assert "GPU0 and GPU2 are an NVLink pair (NV4) that rank order splits" in said(pairs([(0, 2), (1, 3)]))


def test_a_missing_bridge_is_odd() -> None:
    assert "GPU2, GPU3: no NVLink, while others have" in said(pairs([(0, 1)]))


def test_links_that_are_down_behind_a_switch_are_odd() -> None:
    weak = case(8, lambda i, j: "NV16" if 3 in (i, j) else "NV18")
    assert "GPU3: fewer NVLinks than others" in said(weak)


def test_adapters_that_are_far_or_in_another_order_are_odd() -> None:
    def reverse(gpu: int, nic: int) -> str:
        return "PIX" if gpu + nic == 7 else "NODE"

    assert "GPU0-NIC7 (mlx5_7)" in said(case(8, lambda i, j: "NV18", nics=8, nic=reverse))
    front = case(8, lambda i, j: "NV18", nics=9, nic=lambda g, n: "SYS" if n == 8 else "PIX" if g == n else "NODE")
    assert "NIC8 (mlx5_8): SYS to every GPU: for storage or management" in said(front)
    even = case(8, lambda i, j: "NV18", nics=4, nic=lambda g, n: "PIX" if g == 2 * n else "SYS")
    assert "GPU1, GPU3, GPU5, GPU7: no adapter on its side" in said(even)
    virtual = case(8, lambda i, j: "NV18", nics=1)
    assert "every adapter is SYS to every GPU" in said(virtual)


def test_what_a_cpuset_does_to_the_columns_is_odd() -> None:
    machine = case(4, lambda i, j: "NV18" if i == j else "NODE", numa=lambda i: i // 2)
    machine.cpus = ["", "", "0,2,4,6,8,10", "0,2,4,6,8,10"]
    text = said(machine)
    assert "GPU0, GPU1: no CPU near it is in this cpuset" in text
    assert "GPU2, GPU3: CPU Affinity 0,2,4,6,8,10 is cut after six" in text
    assert "GPU0-GPU2, GPU0-GPU3, GPU1-GPU2, GPU1-GPU3: NODE, but on different NUMA nodes" in text


def test_the_order_and_number_of_gpus_on_numa_nodes_can_be_odd() -> None:
    assert "not in the order of their NUMA nodes: 3, 2, 1, 0" in said(case(4, lambda i, j: "NV4", numa=lambda i: 3 - i))
    assert "3 on node 0, 1 on node 1" in said(case(4, lambda i, j: "PHB", numa=lambda i: i // 3))


def test_mixed_models_and_the_wrong_matrix_are_odd() -> None:
    listed = "GPU 0: NVIDIA L4 (UUID: GPU-a)\nGPU 1: NVIDIA L40S (UUID: GPU-b)\n"
    assert "the GPUs differ: 1 x NVIDIA L4, 1 x NVIDIA L40S" in said(case(2, lambda i, j: "PHB"), listed)
    assert "leaves NVLink out" in said(pcie_box(), "$ nvidia-smi topo -mp\n")
