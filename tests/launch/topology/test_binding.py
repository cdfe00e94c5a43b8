"""Adapters are the nearest ones, and cores are whole, near and shared evenly."""

from dataclasses import replace

from topology_cases import case, hgx, render

from stepladder.launch.topology import NumaNode, Topology, read_topology
from stepladder.launch.topology.binding import adapters_of, cores_of
from stepladder.launch.topology.value import Gpu


def test_each_gpu_gets_the_adapter_behind_its_switch() -> None:
    assert adapters_of(read_topology(render(hgx()), "a"), range(8)) == {i: i for i in range(8)}
    backwards = case(8, lambda i, j: "NV18", nics=8, nic=lambda g, n: "PIX" if g + n == 7 else "NODE")
    assert adapters_of(read_topology(render(backwards), "a"), range(8)) == {i: 7 - i for i in range(8)}


def test_two_adapters_of_a_pair_of_gpus_get_one_each() -> None:
    dgx = case(4, lambda i, j: "NV12", nics=4, nic=lambda g, n: "PXB" if g // 2 == n // 2 else "SYS")
    assert adapters_of(read_topology(render(dgx), "a"), range(4)) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_an_adapter_far_from_every_gpu_is_left_out_and_used_only_if_all_are() -> None:
    front = case(2, lambda i, j: "NV18", nics=2, nic=lambda g, n: "SYS" if n == 0 else "NODE")
    assert adapters_of(read_topology(render(front), "a"), range(2)) == {0: 1, 1: 1}
    all_far = case(4, lambda i, j: "NV18", nics=2)
    assert adapters_of(read_topology(render(all_far), "a"), range(4)) == {0: 0, 1: 1, 2: 0, 3: 1}
    assert adapters_of(read_topology(render(case(2, lambda i, j: "PHB")), "a"), range(2)) == {}


def machine(cpus: tuple[str, ...] = ("0-3,8-11", "4-7,12-15")) -> Topology:
    read = case(4, lambda i, j: "NODE", numa=lambda i: i // 2)
    read.cpus = [cpus[i // 2] for i in range(4)]
    return read_topology(render(read), "a")


def test_cores_of_a_numa_node_are_shared_out_whole() -> None:
    siblings = [(i, i + 8) for i in range(8)]
    found = cores_of(machine(), range(4), siblings=siblings)
    assert found == {0: (0, 1, 8, 9), 1: (2, 3, 10, 11), 2: (4, 5, 12, 13), 3: (6, 7, 14, 15)}
    assert cores_of(machine(), [0], siblings=siblings) == {0: (0, 1, 2, 3, 8, 9, 10, 11)}, "alone on its node"


def test_cores_outside_the_cpuset_are_not_given() -> None:
    assert cores_of(machine(), range(4), allowed=range(4)) == {0: (0,), 1: (1,), 2: (2,), 3: (3,)}, "far GPUs share too"


def test_more_ranks_than_cores_share_them() -> None:
    found = cores_of(machine(), range(4), allowed=[1, 5])
    assert found == {0: (1,), 1: (1,), 2: (5,), 3: (5,)}


def test_the_numa_node_is_believed_and_not_a_list_that_was_cut() -> None:
    cut = machine(("0,2,4,6,8,10", "1,3,5,7,9,11"))
    assert cores_of(cut, range(4)) == {0: (), 1: (), 2: (), 3: ()}, "nothing else is known"
    even, odd = tuple(range(0, 40, 2)), tuple(range(1, 40, 2))
    known = replace(cut, numa_nodes=(NumaNode(index=0, cpus=even), NumaNode(index=1, cpus=odd)))
    assert cores_of(known, [0, 2]) == {0: even, 2: odd}


def test_the_first_numa_node_with_cpus_counts() -> None:
    grace = Gpu(index=0, numa_nodes=(0, 2, 3))
    nodes = (NumaNode(index=0, cpus=(0, 1)), NumaNode(index=2, cpus=()))
    one = replace(read_topology(render(case(1, lambda i, j: "X")), "a"), gpus=(grace,), numa_nodes=nodes)
    assert cores_of(one, [0]) == {0: (0, 1)}
