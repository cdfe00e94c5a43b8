"""The matrix is read in every form, or refused in one sentence that says where and what to do."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_cases import XML, Case, cube_mesh, hgx, mutants, pairs, pcie_box, render, rocm, survives

from stepladder.launch.topology import TopologyError, read_topology
from stepladder.launch.topology.cpu_list import format_numbers, parse_numbers

CASES = {"cube mesh": cube_mesh(), "hgx": hgx(12), "pcie": pcie_box(), "bridges": pairs([(0, 2), (1, 3)])}


def labels_of(text: str) -> list[list[str]]:
    return [[link.label for link in row] for row in read_topology(text, "topo.txt").links]


def refusal(text: str) -> str:
    with pytest.raises(TopologyError) as caught:
        read_topology(text, "topo.txt")
    return str(caught.value)


@pytest.mark.parametrize(("name", "form", "columns"), list(product(CASES, ("tabs", "columns"), (0, 1, 2, 3))))
def test_every_form_of_a_machine_gives_its_matrix(name: str, form: str, columns: int) -> None:
    machine = CASES[name]
    for ansi, legend in product((False, True), repeat=2):
        topology = read_topology(render(machine, form=form, columns=columns, ansi=ansi, legend=legend), "topo.txt")
        assert [[link.label for link in row] for row in topology.links] == machine.labels
        assert [nic.device for nic in topology.nics] == machine.nics
        assert topology.notes == ()
        for gpu, cpus, numa in zip(topology.gpus, machine.cpus, machine.numa, strict=True):
            assert gpu.cpus == (parse_numbers(cpus) if columns > 0 else None)
            assert gpu.numa_nodes == ((int(numa),) if columns > 1 else None)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_gpus=st.integers(1, 9), nics=st.integers(0, 5))
def test_any_matrix_is_read_as_it_was_written(data: st.DataObject, num_gpus: int, nics: int) -> None:
    size = num_gpus + nics
    labels = [["X"] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            names = ["PIX", "PXB", "PHB", "NODE", "SYS"] + (["NV1", "NV4", "NV18"] if i < num_gpus else [])
            labels[i][j] = labels[j][i] = data.draw(st.sampled_from(names))
    cpus = data.draw(st.lists(st.sampled_from(["0-7", "", "0,2,4,6,8,10", "48-63,176-191"]), min_size=num_gpus,
                              max_size=num_gpus))  # fmt: skip
    numa = [str(data.draw(st.integers(0, 9))) for _ in range(num_gpus)]
    machine = Case(num_gpus=num_gpus, labels=labels, nics=[f"mlx5_{i}" for i in range(nics)], cpus=cpus, numa=numa)
    for form in ("tabs", "columns"):
        text = render(machine, form=form, legend=data.draw(st.booleans()), ansi=data.draw(st.booleans()))
        topology = read_topology(text, "topo.txt")
        assert [[link.label for link in row] for row in topology.links] == labels
        assert [gpu.cpus for gpu in topology.gpus] == [parse_numbers(each) for each in cpus]
        assert [gpu.numa_nodes for gpu in topology.gpus] == [(int(each),) for each in numa]


def test_what_stands_around_the_matrix_does_not_matter() -> None:
    text = render(pairs([(0, 1), (2, 3)]), form="columns")
    expected = labels_of(text)
    assert labels_of("srun: job 9 queued\n" + text) == expected
    assert labels_of("$ nvidia-smi topo -m" + text) == expected, "a prompt in front of the header"
    assert labels_of("".join(f"    {line}\n" for line in text.split("\n"))) == expected, "indented"
    assert labels_of("".join(f"> {line}\n" for line in text.split("\n"))) == expected, "quoted in a mail"
    assert labels_of("".join(f"0: {line}\n1: {line}\n" for line in text.split("\n"))) == expected, "srun --label"
    assert labels_of(text.replace("\n", "\r\n")) == expected
    assert labels_of("\ufeff" + text) == expected
    assert labels_of(text.replace("        GPU0", "[4m        GPU0", 1).replace("ID\n", "ID[0m\n", 1)) == expected


def test_an_empty_cpu_column_does_not_take_the_value_of_the_next() -> None:
    machine = pairs([(0, 1), (2, 3)])
    machine.cpus = ["", "", "56", "56"]
    for form in ("tabs", "columns"):
        gpus = read_topology(render(machine, form=form), "topo.txt").gpus
        assert [gpu.cpus for gpu in gpus] == [(), (), (56,), (56,)]
        assert [gpu.numa_node for gpu in gpus] == [0, 0, 1, 1]


def test_affinities_that_run_into_each_other_are_left_out_and_the_matrix_kept() -> None:
    text = (
        "        GPU0    CPU Affinity    NUMA Affinity   GPU NUMA ID\nGPU0     X      0-31,64-950               N/A\n"
    )
    topology = read_topology(text, "topo.txt")
    assert topology.gpus[0].cpus is topology.gpus[0].numa_nodes is None
    assert "run into each other" in topology.notes[0]


def test_numa_affinity_may_be_a_list_and_the_memory_of_a_gpu_a_node() -> None:
    text = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    text += "GPU0\t X \tNV18\t0-71\t0,2-17\t\t4\nGPU1\tNV18\t X \t72-143\t1,18-33\t\tN/A\n"
    gpus = read_topology(text, "topo.txt").gpus
    assert [gpu.numa_node for gpu in gpus] == [0, 1]
    assert gpus[0].numa_nodes == (0, *range(2, 18))
    assert [gpu.memory_numa_node for gpu in gpus] == [4, None]


def test_the_old_name_of_the_way_between_sockets_is_understood() -> None:
    text = "        GPU0    GPU1    mlx4_0  CPU Affinity\n"
    text += "GPU0     X      SOC     PHB     0-7\nGPU1    SOC      X      SOC     8-15\nmlx4_0  PHB     SOC      X \n"
    topology = read_topology(text, "topo.txt")
    assert [link.label for link in topology.links[0]] == ["X", "SYS", "PHB"]
    assert topology.nics[0].device == "mlx4_0"


def test_rows_of_adapters_may_be_missing_but_not_those_of_gpus() -> None:
    whole = render(hgx(4), legend=False)
    lines = whole.split("\n")
    cut = read_topology("\n".join(lines[:10]), "topo.txt")
    assert [link.label for link in cut.links[0][:12]] == hgx(4).labels[0]
    assert cut.links[8][0].label == "PIX", "known from the row of the GPU"
    assert cut.links[9][11].label == "?", "NIC1 to NIC3: in rows that are not there"
    assert "ends before the row" in cut.notes[0]
    assert "GPU7 has no row" in refusal("\n".join(lines[:8]))


def test_models_and_their_speeds_come_from_the_list_of_gpus() -> None:
    listed = "GPU 0: NVIDIA RTX A6000 (UUID: GPU-1)\nGPU 1: NVIDIA RTX A6000 (UUID: GPU-2)\n"
    text = "\tGPU0\tGPU1\nGPU0\t X \tNV4\nGPU1\tNV4\t X \n"
    known = read_topology(listed + text, "topo.txt")
    assert [gpu.model for gpu in known.gpus] == ["NVIDIA RTX A6000"] * 2
    assert [gpu.uuid for gpu in known.gpus] == ["GPU-1", "GPU-2"]
    assert known.gpu_link(0, 1).bandwidth_bytes_s == 4 * 12e9
    a100 = read_topology(listed.replace("RTX A6000", "A100-SXM4-80GB") + text, "topo.txt")
    assert a100.gpu_link(0, 1).bandwidth_bytes_s == 4 * 20e9


def test_more_nvlinks_than_a_gpu_has_mean_a_switch() -> None:
    assert read_topology(render(hgx()), "a").switched
    assert not read_topology(render(cube_mesh()), "a").switched
    assert read_topology(render(hgx()), "a").gpu_link(0, 5).bandwidth_bytes_s == pytest.approx(18 * 20.6e9)


def test_rocm_is_read() -> None:
    text = rocm(lambda i, j: "PCIE" if (i, j) in ((0, 1), (0, 2)) else "XGMI", 4, lambda i: i // 2)
    topology = read_topology(text, "showtopo")
    assert [link.label for link in topology.links[0]] == ["X", "NODE", "SYS", "XGMI"]
    assert [gpu.numa_node for gpu in topology.gpus] == [0, 0, 1, 1]
    assert "the row is out of order" in refusal(text.replace("GPU2   PCIE", "GPU1   PCIE"))
    assert "no link type of ROCm" in refusal(text.replace("XGMI", "WARP"))


def test_ncclss_xml_is_read() -> None:
    topology = read_topology(XML, "topo.xml")
    expected = [["X", "PIX", "PHB", "SYS", "PIX"], ["PIX", "X", "PHB", "SYS", "PIX"], ["PHB", "PHB", "X", "SYS", "PHB"],
                ["SYS", "SYS", "SYS", "X", "SYS"], ["PIX", "PIX", "PHB", "SYS", "X"]]  # fmt: skip
    assert [[link.label for link in row] for row in topology.links] == expected
    assert [node.cpus for node in topology.numa_nodes] == [tuple(range(16)), tuple(range(16, 32))]
    assert topology.nics[0].numa_node == 0
    dumped = XML.replace(
        '<pci busid="0000:90:1c.0" class="0x030200" link_speed="8 GT/s" link_width="16"/>',
        '<pci busid="0000:90:1c.0" class="0x030200"><gpu dev="3" sm="70">'
        '<nvlink target="0000:10:1c.0" count="2" tclass="0x030200"/></gpu></pci>',
    )
    assert read_topology(dumped, "topo.xml").links[3][0].label == "NV2"
    assert "entities" in refusal('<!DOCTYPE a [<!ENTITY b "c">]><system>&b;</system>')
    assert "damaged" in refusal(XML[:300])
    assert "rings that NCCL chose" in refusal('<graphs version="1">\n<graph id="0"/></graphs>')


HEADER = "        GPU0    GPU1    CPU Affinity\n"
REFUSED = {
    "": "the text is empty",
    "hello": "no line with GPU0, GPU1, ... begins a matrix",
    HEADER: "GPU0 has no row",
    HEADER + "GPU0     X      NV4NV4SYS  0-7\nGPU1    NV4      X      0-7\n": "run into each other",
    HEADER + "GPU0     X\n": "has 1 cells, but the header has 2 devices",
    HEADER + "GPU0     X      WARP\nGPU1    WARP     X\n": "GPU0 to GPU1 = WARP: no label of nvidia-smi",
    HEADER + "GPU0    NV4      X\nGPU1     X      NV4\n": "only a device to itself is X",
    HEADER + "GPU0     X      NV4\nGPU1    SYS      X\n": "GPU1 to GPU0 = SYS, but GPU0 to GPU1 = NV4",
    HEADER + "GPU0     X      NV4\nGPU1NV4      X\n": "run into each other",
    "  GPU0  ... NIC5  CPU Affinity\nGPU0  X ... SYS\n": "abbreviated with `...`",
    "        GPU0    GPU2\nGPU0     X      NV4\nGPU2    NV4      X\n": "a part is missing",
    HEADER + "GPU0    X       HT\nGPU1    HT      X\n": "mx-smi (MetaX)",
    " \tGPU0\tGPU1\n GPU0\tX\tCNS\n GPU1\tCNS\tX\n": "topo -p2p",
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure": "talk to the driver",
    "Failed to initialize NVML: Driver/library version mismatch": "different versions",
    "No devices were found": "sees no GPU",
    "bash: nvidia-smi: command not found": "there is no nvidia-smi here",
    "GPU 0: NVIDIA A100 (UUID: GPU-1)\n\t Link 0: 25 GB/s\n": "nvidia-smi nvlink -s",
    "Architecture: x86_64\nNUMA node0 CPU(s): 0-7\n": "lscpu",
}


@pytest.mark.parametrize("text", REFUSED, ids=REFUSED.values())
def test_what_is_no_matrix_is_refused_in_one_sentence(text: str) -> None:
    said = refusal(text)
    assert said.startswith("topo.txt")
    assert REFUSED[text] in said
    assert "\n" not in said


def test_sizes_are_limited() -> None:
    assert "too many" in refusal("x" * 3_000_000)
    assert "more than" in refusal("GPU0\n" * 30_000)
    names = "\t".join(f"GPU{i}" for i in range(400))
    assert "400 devices are more than" in refusal(f"\t{names}\n")


def test_control_characters_of_a_text_do_not_reach_the_terminal() -> None:
    said = refusal(HEADER + "GPU0     X      \x07\x1b]0;title\x07EVIL\nGPU1\tEVIL\tX\n")
    assert said.isprintable()


def test_a_damaged_text_is_read_or_refused_in_one_sentence() -> None:
    found = [survives(text) for text in mutants(150, seed=5)]
    assert found.count(True) > 10
    assert found.count(False) > 10


@given(st.sets(st.integers(0, 300)))
def test_lists_of_numbers_are_written_as_they_are_read(numbers: set[int]) -> None:
    assert parse_numbers(format_numbers(numbers)) == tuple(sorted(numbers))


@pytest.mark.parametrize("text", ["3-1", "1,1", "4,2", "0-99999", "a", "1-", ",", "0--2"])
def test_what_is_no_list_of_numbers_is_none(text: str) -> None:
    assert parse_numbers(text) is None
