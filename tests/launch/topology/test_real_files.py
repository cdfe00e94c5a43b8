"""Outputs of real machines are read to what a person reads in them; STEPLADDER_TOPOLOGIES names their folder.

The expected values were typed from the files by eye. Rows are abbreviated: `NV18*8` is a label eight times.
"""

import os
from pathlib import Path

import pytest

from stepladder.launch.topology import TopologyError, read_file
from stepladder.launch.topology.cpu_list import format_numbers

HALVES = ("0-55,112-167 0", "56-111,168-223 1")
READ: dict[str, tuple[str, list[str], list[str]]] = {
    # the rows of the GPUs; CPU Affinity and NUMA Affinity of the GPUs; the adapters
    "2gpu-nv2-stas.txt": ("X NV2 / NV2 X", ["0-23 -"] * 2, []),
    "2gpu-phb-consumer-stas.txt": ("X PHB / PHB X", ["0-11 -"] * 2, []),
    "a6000-8gpu-4bridges-baobab.txt": (
        "X NV4 NODE NODE SYS*6 / NV4 X NODE NODE SYS*6 / NODE NODE X NV4 SYS*6 / NODE NODE NV4 X SYS*6 /"
        "SYS*4 X NV4 NODE*4 / SYS*4 NV4 X NODE*4 / SYS*4 NODE NODE X NV4 PHB PHB / SYS*4 NODE NODE NV4 X NODE NODE",
        ["0-63 0"] * 4 + ["64-127 1"] * 4,
        ["mlx5_0", "mlx5_1"],
    ),
    "dell-h-8gpu-12nic-topo-mp-deepep.txt": (
        "X NODE*3 SYS*4 PIX*3 NODE*3 SYS*6 / NODE X NODE*2 SYS*4 NODE*3 PIX NODE*2 SYS*6 /"
        "NODE*2 X NODE SYS*4 NODE*4 PIX NODE SYS*6 / NODE*3 X SYS*4 NODE*5 PIX SYS*6 /"
        "SYS*4 X NODE*3 SYS*6 PIX*3 NODE*3 / SYS*4 NODE X NODE*2 SYS*6 NODE*3 PIX NODE*2 /"
        "SYS*4 NODE*2 X NODE SYS*6 NODE*4 PIX NODE / SYS*4 NODE*3 X SYS*6 NODE*5 PIX",
        ["0,2,4,6,8,10 0"] * 4 + ["1,3,5,7,9,11 1"] * 4,
        [f"mlx5_{i}" for i in range(12)],
    ),
    "dgx-h100-8gpu-12nic-talos-truncated.txt": (
        "X NV18*7 PXB NODE*5 SYS*6 / NV18 X NV18*6 NODE*3 PXB NODE*2 SYS*6 / NV18*2 X NV18*5 NODE*4 PXB NODE SYS*6 /"
        "NV18*3 X NV18*4 NODE*5 PXB SYS*6 / NV18*4 X NV18*3 SYS*6 PXB NODE*5 /"
        "NV18*5 X NV18*2 SYS*6 NODE*3 PXB NODE*2 /"
        "NV18*6 X NV18 SYS*6 NODE*4 PXB NODE / NV18*7 X SYS*6 NODE*5 PXB",
        [HALVES[0]] * 4 + [HALVES[1]] * 4,
        [f"NIC{i}" for i in range(12)],
    ),
    "dgx1-v100-8gpu-msccl.txt": (
        "X NV1 NV1 NV2 NV2 SYS SYS SYS PIX SYS PHB SYS / NV1 X NV2 NV1 SYS NV2 SYS SYS PIX SYS PHB SYS /"
        "NV1 NV2 X NV2 SYS SYS NV1 SYS PHB SYS PIX SYS / NV2 NV1 NV2 X SYS SYS SYS NV1 PHB SYS PIX SYS /"
        "NV2 SYS SYS SYS X NV1 NV1 NV2 SYS PIX SYS PHB / SYS NV2 SYS SYS NV1 X NV2 NV1 SYS PIX SYS PHB /"
        "SYS SYS NV1 SYS NV1 NV2 X NV2 SYS PHB SYS PIX / SYS SYS SYS NV1 NV2 NV1 NV2 X SYS PHB SYS PIX",
        ["0-19,40-59 -"] * 4 + ["20-39,60-79 -"] * 4,
        ["mlx5_0", "mlx5_2", "mlx5_1", "mlx5_3"],
    ),
    "gb10-spark-1gpu-4nic.txt": ("X NODE*4", ["0-19 0"], ["rocep1s0f0", "rocep1s0f1", "roceP2p1s0f0", "roceP2p1s0f1"]),
    "gb10-spark-1gpu-headrows-capped.txt": ("X NODE*4", ["0-19 0"], ["NIC0", "NIC1", "NIC2", "NIC3"]),
    "gb10-spark-1gpu-nonic.txt": ("X", ["0-19 0"], []),
    "gb200-4gpu-8nic-openshift.txt": (
        "X NV18*3 SYS*8 / NV18 X NV18*2 SYS*8 / NV18*2 X NV18 SYS*8 / NV18*3 X SYS*8",
        ["0-71 0,2-17"] * 2 + ["72-143 1,18-33"] * 2,
        [f"mlx5_{i}" for i in range(8)],
    ),
    "h100-6gpu-partial-container.txt": (
        "X NV18*5 NODE*2 / NV18 X NV18*4 NODE*2 / NV18*2 X NV18*3 NODE*2 /"
        "NV18*3 X NV18*2 SYS*2 / NV18*4 X NV18 SYS*2 / NV18*5 X SYS*2",
        ["0-47,96-143 0"] * 3 + ["48-95,144-191 1"] * 3,
        ["NIC0", "NIC1"],
    ),
    "h100-8gpu-1nic-vm-dstack.txt": (
        "X NV18*7 SYS / NV18 X NV18*6 SYS / NV18*2 X NV18*5 SYS / NV18*3 X NV18*4 SYS / NV18*4 X NV18*3 SYS /"
        "NV18*5 X NV18*2 SYS / NV18*6 X NV18 SYS / NV18*7 X SYS",
        ["0-103 0"] * 4 + ["104-207 1"] * 4,
        ["mlx5_0"],
    ),
    "h100-8gpu-9nic-nccl1453-truncated.txt": (
        "X NV18*7 SYS*5 NODE*3 PIX / NV18 X NV18*6 SYS*5 NODE*2 PIX NODE / NV18*2 X NV18*5 SYS*5 NODE PIX NODE*2 /"
        "NV18*3 X NV18*4 SYS*5 PIX NODE*3 / NV18*4 X NV18*3 SYS NODE*3 PIX SYS*4 / NV18*5 X NV18*2 SYS NODE*2 PIX NODE "
        "SYS*4 / NV18*6 X NV18 SYS NODE PIX NODE*2 SYS*4 / NV18*7 X SYS PIX NODE*3 SYS*4",
        ["0-79 0"] * 4 + ["80-159 1"] * 4,
        [f"NIC{i}" for i in range(9)],
    ),
    "h100-8gpu-vm208-stas.txt": ("NVSWITCH", ["0-51,104-155 0"] * 4 + ["52-103,156-207 1"] * 4, []),
    "hgx-b200-8gpu-noaff-cutlass.txt": ("NVSWITCH", ["- -"] * 8, []),
    "hgx-h100-8gpu-compact-stas.txt": ("NVSWITCH", ["0-51 0"] * 4 + ["52-103 1"] * 4, []),
    "hopper-8gpu-4nic-kubevirt-guest.txt": (
        "X NV18*7 SYS SYS NODE PXB / NV18 X NV18*6 SYS SYS NODE PIX / NV18*2 X NV18*5 SYS SYS PXB NODE /"
        "NV18*3 X NV18*4 SYS SYS PIX NODE / NV18*4 X NV18*3 NODE PXB SYS SYS / NV18*5 X NV18*2 NODE PIX SYS SYS /"
        "NV18*6 X NV18 PXB NODE SYS SYS / NV18*7 X PIX NODE SYS SYS",
        ["0-23 0"] * 4 + ["24-47 1"] * 4,
        [f"mlx5_{i}" for i in range(4)],
    ),
    "hopper-8gpu-8nic-reversednics-truncated.txt": (
        "X NV18*7 SYS*4 NODE*3 PIX / NV18 X NV18*6 SYS*4 NODE*2 PIX NODE / NV18*2 X NV18*5 SYS*4 NODE PIX NODE*2 /"
        "NV18*3 X NV18*4 SYS*4 PIX NODE*3 / NV18*4 X NV18*3 NODE*3 PIX SYS*4 / NV18*5 X NV18*2 NODE*2 PIX NODE SYS*4 /"
        "NV18*6 X NV18 NODE PIX NODE*2 SYS*4 / NV18*7 X PIX NODE*3 SYS*4",
        ["0-63 0"] * 4 + ["64-127 1"] * 4,
        [f"NIC{i}" for i in range(8)],
    ),
    "k80-4gpu-mlx4-soc-microway.txt": (
        "X PIX PHB PHB PHB / PIX X PHB PHB PHB / PHB PHB X PIX PHB / PHB PHB PIX X PHB",
        ["0-11 -"] * 4,
        ["mlx4_0"],
    ),
    "mi300x-8gpu-rocm-dstack.txt": (
        "X XGMI*7 / XGMI X XGMI*6 / XGMI*2 X XGMI*5 / XGMI*3 X XGMI*4 / XGMI*4 X XGMI*3 / XGMI*5 X XGMI*2 /"
        "XGMI*6 X XGMI / XGMI*7 X",
        ["- 0"] * 4 + ["- 1"] * 4,
        [],
    ),
    "nchc-h200-8gpu-cpuset-srun.txt": (
        "X NV18*7 PIX NODE*9 / NV18 X NV18*6 NODE*3 PIX NODE*6 / NV18*2 X NV18*5 NODE*4 PIX NODE*5 /"
        "NV18*3 X NV18*4 NODE*5 PIX NODE*4 / NV18*4 X NV18*3 NODE*6 PIX NODE*3 / NV18*5 X NV18*2 NODE*7 PIX NODE*2 /"
        "NV18*6 X NV18 NODE*8 PIX NODE / NV18*7 X NODE*9 PIX",
        ["none 0"] * 4 + ["56 1"] * 4,
        [f"mlx5_{i}" for i in range(10)],
    ),
    "pcie-4gpu-4nic-2numa-coyote2.txt": (
        "X NODE SYS SYS NODE NODE SYS SYS / NODE X SYS SYS NODE NODE SYS SYS /"
        "SYS SYS X NODE SYS SYS NODE NODE / SYS SYS NODE X SYS SYS NODE NODE",
        ["0-31 0"] * 2 + ["32-63 1"] * 2,
        [f"NIC{i}" for i in range(4)],
    ),
    "pcie-4gpu-pxb-pix-nccl667.txt": (
        "X PXB SYS SYS / PXB X SYS SYS / SYS SYS X PIX / SYS SYS PIX X",
        ["0-27,56-83 0"] * 2 + ["28-55,84-111 1"] * 2,
        [],
    ),
    "polaris-a100-4gpu-markdown-alcf.txt": (
        "X NV4*3 SYS SYS / NV4 X NV4*2 SYS PHB / NV4*2 X NV4 SYS SYS / NV4*3 X PHB SYS",
        ["24-31,56-63 3", "16-23,48-55 2", "8-15,40-47 1", "0-7,32-39 0"],
        ["mlx5_0", "mlx5_1"],
    ),
    "rtx4090-8gpu-2nic-gogpualloc17.txt": (
        "X SYS*9 / SYS X SYS*8 / SYS*2 X SYS*7 / SYS*3 X SYS*6 / SYS*4 X SYS*5 / SYS*5 X SYS*4 /"
        "SYS*6 X SYS PHB PHB / SYS*7 X SYS SYS",
        [HALVES[0]] * 4 + [HALVES[1]] * 4,
        ["NIC0", "NIC1"],
    ),
    "rtx5070-2gpu-headerglued.txt": ("X PHB / PHB X", ["0-23 0"] * 2, []),
    "rtx5090-2gpu-phb-club3090.txt": ("X PHB / PHB X", ["0-63 0"] * 2, []),
    "synthetic-4gpu-nv1pairs-litgpt.txt": (
        "X NV1 SYS SYS / NV1 X SYS SYS / SYS SYS X NV1 / SYS SYS NV1 X",
        ["0-7 -"] * 2 + ["8-15 -"] * 2,
        [],
    ),
    "v100-8gpu-hcm-newfmt-1nic.txt": (
        "X NV1 NV1 NV2 NV2 SYS SYS SYS NODE / NV1 X NV2 NV1 SYS NV2 SYS SYS NODE / NV1 NV2 X NV2 SYS SYS NV1 SYS NODE /"
        "NV2 NV1 NV2 X SYS SYS SYS NV1 NODE / NV2 SYS SYS SYS X NV1 NV1 NV2 SYS / SYS NV2 SYS SYS NV1 X NV2 NV1 SYS /"
        "SYS SYS NV1 SYS NV1 NV2 X NV2 SYS / SYS SYS SYS NV1 NV2 NV1 NV2 X SYS",
        ["0-19,40-59 0"] * 4 + ["20-39,60-79 1"] * 4,
        ["NIC0"],
    ),
    "v100-8gpu-hcm-vm-phb.txt": (
        "X NV1 NV1 NV2 NV2 PHB PHB PHB / NV1 X NV2 NV1 PHB NV2 PHB PHB / NV1 NV2 X NV2 PHB PHB NV1 PHB /"
        "NV2 NV1 NV2 X PHB PHB PHB NV1 / NV2 PHB PHB PHB X NV1 NV1 NV2 / PHB NV2 PHB PHB NV1 X NV2 NV1 /"
        "PHB PHB NV1 PHB NV1 NV2 X NV2 / PHB PHB PHB NV1 NV2 NV1 NV2 X",
        ["0-63 0-1"] * 8,
        [],
    ),
    "azure-ndv2-topo.xml": (
        "X PHB*3 SYS*4 PHB / PHB X PHB*2 SYS*4 PHB / PHB*2 X PHB SYS*4 PHB / PHB*3 X SYS*4 PHB /"
        "SYS*4 X PHB*3 SYS / SYS*4 PHB X PHB*2 SYS / SYS*4 PHB*2 X PHB SYS / SYS*4 PHB*3 X SYS",
        ["0-19 0"] * 4 + ["20-39 1"] * 4,
        ["NIC0"],
    ),
    "azure-ndv5-topo.xml": (
        "X PHB*3 SYS*4 PIX PHB*3 SYS*4 / PHB X PHB*2 SYS*4 PHB PIX PHB*2 SYS*4 /"
        "PHB*2 X PHB SYS*4 PHB*2 PIX PHB SYS*4 /"
        "PHB*3 X SYS*4 PHB*3 PIX SYS*4 / SYS*4 X PHB*3 SYS*4 PIX PHB*3 / SYS*4 PHB X PHB*2 SYS*4 PHB PIX PHB*2 /"
        "SYS*4 PHB*2 X PHB SYS*4 PHB*2 PIX PHB / SYS*4 PHB*3 X SYS*4 PHB*3 PIX",
        ["0-47 0"] * 4 + ["48-95 1"] * 4,
        [f"NIC{i}" for i in range(8)],
    ),
    "aws-p4d-24xl-topo.xml": (
        "X PIX PHB PHB SYS*4 PIX PHB SYS SYS / PIX X PHB PHB SYS*4 PIX PHB SYS SYS /"
        "PHB PHB X PIX SYS*4 PHB PIX SYS SYS /"
        "PHB PHB PIX X SYS*4 PHB PIX SYS SYS / SYS*4 X PIX PHB PHB SYS SYS PIX PHB /"
        "SYS*4 PIX X PHB PHB SYS SYS PIX PHB /"
        "SYS*4 PHB PHB X PIX SYS SYS PHB PIX / SYS*4 PHB PHB PIX X SYS SYS PHB PIX",
        ["0-23,48-71 0"] * 4 + ["24-47,72-95 1"] * 4,
        [f"NIC{i}" for i in range(4)],
    ),
}
REFUSED = {
    "a100-4gpu-2nic-mangled.txt": "GPU0 to GPU2 = NV4NV4SYS: the cells run into each other",
    "azure-ncv4-graph.xml": "rings that NCCL chose",
    "dgx-a100-8gpu-12nic-nccl1505-truncated.txt": "GPU5 has no row",
    "gb200-4gpu-abbrev-nemorl.txt": "abbreviated",
    "h-8gpu-4rails-even-nccl1357-truncated.txt": "GPU7 to GPU4 = NV",
    "hopper-8gpu-14nic-topo-mp-deepep60-truncated.txt": "GPU4 to NIC7 = SY",
    "hopper-8gpu-18nic-deepep145-truncated.txt": "GPU4 has 1 cells",
    "hopper-8gpu-36nic-vfs-wrapglued-sglang.txt": "GPU0 to NIC12 = NODENODE: the cells run into each other",
    "k8s53497-8gpu-mlx4-truncated.txt": "GPU5 has no row",
    "lscpu-della-princeton.txt": "lscpu",
    "lscpu-h100-vm208-dstack.txt": "lscpu",
    "metax-8gpu-ht-mxsmi.txt": "mx-smi",
    "nvidia-smi-q-h100-1gpu-della-princeton.txt": "nvidia-smi -q",
    "nvlink-status-a10-inactive-gpud.txt": "the text is empty",
    "nvlink-status-a100-8gpu-gpud.txt": "nvidia-smi nvlink -s",
    "nvlink-status-rtx3090.txt": "nvidia-smi nvlink -s",
    "p2p-p-8gpu-nccl-docs.txt": "topo -p2p",
    "p2p-r-l4-2gpu-cns-stas.txt": "topo -p2p",
    "slurmd-G-links-a6000-8gpu-baobab.txt": "slurmd -G",
    "v100-4gpu-mixednv-pod-fake.txt": "GPU2 has no row",
}


def folder() -> Path:
    named = os.environ.get("STEPLADDER_TOPOLOGIES")
    if named is None:
        pytest.skip("STEPLADDER_TOPOLOGIES names no folder with outputs of real machines")
    return Path(named)


def rows(text: str) -> list[list[str]]:
    if text == "NVSWITCH":
        return [["X" if i == j else "NV18" for j in range(8)] for i in range(8)]
    found: list[list[str]] = []
    for row in text.split("/"):
        words = [word.split("*") for word in row.split()]
        found.append([label for label, *times in words for _ in range(int(times[0]) if times else 1)])
    return found


@pytest.mark.parametrize("name", READ)
def test_a_real_file_is_read_to_what_stands_in_it(name: str) -> None:
    topology = read_file(folder() / name)
    expected, affinities, adapters = READ[name]
    gpus = range(len(topology.gpus))
    assert [[link.label for link in topology.links[i]] for i in gpus] == rows(expected)
    read = [
        ("-" if gpu.cpus is None else format_numbers(gpu.cpus) or "none")
        + " "
        + ("-" if gpu.numa_nodes is None else format_numbers(gpu.numa_nodes))
        for gpu in topology.gpus
    ]
    assert read == affinities
    assert [nic.device for nic in topology.nics] == adapters


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_file_that_is_no_whole_matrix_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(TopologyError) as caught:
        read_file(folder() / name)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_of_the_folder_is_forgotten() -> None:
    present = {path.name for path in folder().iterdir() if path.suffix in (".txt", ".xml")}
    assert present == READ.keys() | REFUSED.keys()


def test_the_matrix_without_nvlink_is_recognised() -> None:
    assert read_file(folder() / "dell-h-8gpu-12nic-topo-mp-deepep.txt").pci_only
    assert not read_file(folder() / "pcie-4gpu-pxb-pix-nccl667.txt").pci_only
    assert not read_file(folder() / "dgx1-v100-8gpu-msccl.txt").pci_only
