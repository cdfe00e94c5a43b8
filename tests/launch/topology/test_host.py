"""The machine is read from NVML, nvidia-smi or ROCm, and the kernel's files; every tool and file here is made up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from topology_cases import cube_mesh, pairs, render, rocm

from stepladder.launch.topology import LinkKind, TopologyError
from stepladder.launch.topology.host import Answer, Host, Runner, inactive_nvlinks, read_host
from stepladder.launch.topology.nvml import normal_bus_id
from stepladder.launch.topology.oddities import oddities_of
from stepladder.launch.topology.sysfs import cpus, kind_between, numa_nodes


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def kernel(root: Path, *, allowed: str = "0-7", nodes: Sequence[str] = ("0-3", "4-7")) -> Path:
    cpu = "sys/devices/system/cpu"
    return write(
        root,
        {
            "sys/devices/system/node/online": f"0-{len(nodes) - 1}\n",
            **{f"sys/devices/system/node/node{i}/cpulist": f"{each}\n" for i, each in enumerate(nodes)},
            f"{cpu}/online": "0-7\n",
            **{f"{cpu}/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n" for i in range(8)},
            "proc/self/status": f"Name:\tx\nCpus_allowed_list:\t{allowed}\n",
        },
    )


def tools(**answers: str | Answer) -> Runner:
    """Commands by their last word: `m="..."` answers `nvidia-smi topo -m`."""

    def run(command: Sequence[str]) -> Answer | None:
        answer = answers.get(command[-1].strip("-"))
        return Answer(code=0, text=answer) if isinstance(answer, str) else answer

    return run


def host(root: Path, run: Runner, **environment: str) -> Host:
    return read_host(environment, run=run, root=root, nvml=None)


def test_without_nvml_the_tools_are_asked_and_the_kernel_knows_the_cores(tmp_path: Path) -> None:
    listed = "\n".join(f"GPU {i}: Tesla V100-SXM2-32GB (UUID: GPU-{i})" for i in range(8))
    found = host(kernel(tmp_path, allowed="0-5"), tools(m=render(cube_mesh()), L=listed))
    assert [[link.label for link in row] for row in found.topology.links] == cube_mesh().labels
    assert found.topology.gpus[3].model == "Tesla V100-SXM2-32GB"
    assert [node.cpus for node in found.topology.numa_nodes] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert found.cpus.allowed == (0, 1, 2, 3, 4, 5)
    assert found.cpus.siblings == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_amd_is_asked_where_there_is_no_nvidia_smi(tmp_path: Path) -> None:
    found = host(kernel(tmp_path), tools(showtopo=rocm(lambda i, j: "XGMI", 4, lambda i: 0)))
    assert found.topology.gpu_link(0, 3).kind is LinkKind.XGMI


@pytest.mark.parametrize(
    ("answers", "environment", "said"),
    [
        ({}, {}, "neither nvidia-smi nor rocm-smi answers"),
        ({"m": Answer(code=9, text="NVIDIA-SMI has failed because it couldn't communicate")}, {}, "talk to the driver"),
        ({"m": Answer(code=6, text="No devices were found")}, {}, "sees no GPU"),
        ({"m": render(pairs([(0, 1)]))}, {"CUDA_VISIBLE_DEVICES": ""}, "hides all of the 4 GPUs"),
        ({"m": render(pairs([(0, 1)]))}, {"CUDA_VISIBLE_DEVICES": "-1,0"}, "hides all of the 4 GPUs"),
    ],
)
def test_a_machine_without_gpus_to_see_is_one_sentence(
    tmp_path: Path, answers: dict[str, Any], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(TopologyError) as caught:
        host(kernel(tmp_path), tools(**answers), **environment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def odd(root: Path, run: Runner, **environment: str) -> str:
    found = host(root, run, **environment)
    return "\n".join(oddities_of(found.topology, found))


def test_what_the_environment_and_the_cgroup_do_is_said(tmp_path: Path) -> None:
    run = tools(m=render(pairs([(0, 1), (2, 3)])))
    write(
        kernel(tmp_path, allowed="0-2"), {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000"}
    )
    said = odd(tmp_path, run, CUDA_VISIBLE_DEVICES="0,2")
    assert "CUDA_DEVICE_ORDER is not PCI_BUS_ID" in said
    assert "CUDA_VISIBLE_DEVICES = 0,2: hides GPU1, GPU3" in said
    assert "this process may use 3 of 8 CPUs (0-2)" in said
    assert "the cgroup grants the time of 1.5 CPUs" in said
    assert "GPU2, GPU3: none of the CPUs of NUMA node 1 may be used" in said
    quiet = odd(kernel(tmp_path / "b"), run, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert quiet == ""


def test_gpus_divided_by_mig_and_nvlinks_that_are_down_are_said(tmp_path: Path) -> None:
    listed = (
        "GPU 0: NVIDIA A100 (UUID: GPU-0)\n  MIG 1g.5gb     Device  0: (UUID: MIG-1)\nGPU 1: NVIDIA A100 (UUID: GPU-1)"
    )
    status = "GPU 0: NVIDIA A100 (UUID: GPU-0)\n\t Link 0: 25 GB/s\n\t Link 1: <inactive>\n"
    said = odd(kernel(tmp_path), tools(m=render(pairs([(0, 1), (2, 3)])), L=listed, s=status))
    assert "GPU0 is divided by MIG" in said
    assert "GPU1 is divided" not in said
    assert "GPU0: 1 of 2 NVLinks are down" in said
    assert inactive_nvlinks("GPU 0: x\n\t Link 0: <inactive>\n") == [], "no bridge is no fault"


def test_a_cgroup_of_version_1_limits_too(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:cpu,cpuacct:/job\n", "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "250000",
             "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000"}  # fmt: skip
    assert cpus(write(kernel(tmp_path), files)).quota_cpus == 2.5
    files["sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "-1"
    assert cpus(write(tmp_path, files)).quota_cpus is None


def test_a_machine_whose_kernel_says_nothing_is_no_error(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path) == ()
    assert cpus(tmp_path).online == ()


@pytest.mark.parametrize(
    ("a", "b", "same_numa", "kind"),
    [
        ("p0/port/up/down1/gpu", "p0/port/up/down2/nic", True, LinkKind.PIX),
        ("p0/port/up/down1/up2/down3/gpu", "p0/port/up/down2/nic", True, LinkKind.PXB),
        ("p0/port1/gpu", "p0/port2/nic", True, LinkKind.PHB),
        ("p0/port1/gpu", "p4/port2/nic", True, LinkKind.NODE),
        ("p0/port1/gpu", "p8/port2/nic", False, LinkKind.SYS),
        ("p0/port1/0000:01:00.0", "p0/port1/0000:01:00.1", True, LinkKind.PIX),
        ("", "p0/port1/nic", True, LinkKind.NODE),
    ],
)
def test_a_label_follows_from_pci_paths(a: str, b: str, same_numa: bool, kind: LinkKind) -> None:
    assert kind_between(a.split("/") if a else (), b.split("/"), same_numa) is kind


class FakeNvml:
    """Four GPUs: 0-1 and 2-3 have four NVLinks each; a switch if asked for."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, switch: bool = False, fails: bool = False, num_gpus: int = 4) -> None:
        self.switch, self.fails, self.num_gpus, self.is_open = switch, fails, num_gpus, False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.num_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{handle + 1}0:00.0")

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:  # noqa: N802
        if link >= 6:
            raise self.NVMLError("Invalid Argument")
        return int(link < 4)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:  # noqa: N802
        return 2 if self.switch else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> SimpleNamespace:  # noqa: N802
        return self.nvmlDeviceGetPciInfo(handle ^ 1)

    def nvmlDeviceGetTopologyCommonAncestor(self, a: int, b: int) -> int:  # noqa: N802
        return 50

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        return [int(handle == 3), 0]


def test_nvml_knows_nvlinks_uuids_and_mig(tmp_path: Path) -> None:
    nvml = FakeNvml()
    found = read_host({}, root=kernel(tmp_path), nvml=nvml)
    labels = [[link.label for link in row] for row in found.topology.links]
    assert labels == [["X", "NV4", "SYS", "SYS"], ["NV4", "X", "SYS", "SYS"], ["SYS", "SYS", "X", "NV4"],
                      ["SYS", "SYS", "NV4", "X"]]  # fmt: skip
    assert found.topology.gpus[2].uuid == "GPU-2"
    assert found.topology.gpus[2].bus_id == "0000:30:00.0"
    assert [note[:4] for note in found.topology.notes] == ["GPU3"]
    assert not nvml.is_open
    switched = read_host({}, root=tmp_path, nvml=FakeNvml(switch=True)).topology
    assert {link.label for row in switched.links for link in row} == {"X", "NV4"}


def test_nvml_and_sysfs_together_place_adapters(tmp_path: Path) -> None:
    root = kernel(tmp_path)
    bus = "sys/devices/pci0000:00/0000:00:01.0/0000:05:00.0"
    for down, device in (("0000:06:01.0", "0000:10:00.0"), ("0000:06:02.0", "0000:11:00.0")):
        write(root, {f"{bus}/{down}/{device}/numa_node": "1\n"})
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    (root / "sys/bus/pci/devices/0000:10:00.0").symlink_to(root / f"{bus}/0000:06:01.0/0000:10:00.0")
    (root / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    (root / "sys/class/infiniband/mlx5_0/device").symlink_to(root / f"{bus}/0000:06:02.0/0000:11:00.0")
    topology = read_host({}, root=root, nvml=FakeNvml()).topology
    assert topology.nics[0].device == "mlx5_0"
    assert topology.nics[0].bus_id == "0000:11:00.0"
    assert topology.nic_link(0, 0).kind is LinkKind.PIX
    assert topology.gpus[0].numa_node == 1
    assert topology.gpus[0].cpus == (4, 5, 6, 7)
    assert topology.nic_link(1, 0).kind is LinkKind.SYS, "nothing is known of GPU1's place"


def test_a_driver_that_does_not_answer_nvml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="Driver Not Loaded: the driver does not answer"):
        read_host({}, root=tmp_path, run=tools(), nvml=FakeNvml(fails=True))
    with pytest.raises(TopologyError, match="the driver sees no GPU"):
        read_host({}, root=tmp_path, run=tools(), nvml=FakeNvml(num_gpus=0))
    amd = tools(showtopo=rocm(lambda i, j: "XGMI", 2, lambda i: 0))
    assert len(read_host({}, root=tmp_path, run=amd, nvml=FakeNvml(fails=True)).topology.gpus) == 2


def test_a_gpu_is_hidden_by_number_or_uuid_and_parts_of_one_hide_nothing(tmp_path: Path) -> None:
    def hidden(visible: str) -> str:
        found = read_host({"CUDA_VISIBLE_DEVICES": visible}, root=tmp_path, nvml=FakeNvml())
        return next((each for each in oddities_of(found.topology, found) if "hides" in each), "")

    assert hidden("GPU-0,GPU-3").endswith("hides GPU1, GPU2")
    assert hidden("2,-1,0").endswith("hides GPU0, GPU1, GPU3"), "CUDA reads up to the first that is none"
    assert hidden("MIG-abc/1/0") == ""


def test_bus_ids_are_those_of_sysfs() -> None:
    assert normal_bus_id("00000000:19:00.0") == "0000:19:00.0"
    assert normal_bus_id("00010000:AB:00.0") == "0000:ab:00.0"
