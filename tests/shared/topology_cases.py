"""Matrices of known machines, written in the forms of nvidia-smi's eras; and texts damaged at random."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from stepladder.launch.topology import TopologyError, read_topology

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""
COLUMNS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")


@dataclass(kw_only=True)
class Case:
    """A machine: labels of all devices, GPUs first, and for each GPU its CPUs and NUMA node as printed."""

    num_gpus: int
    labels: list[list[str]]
    nics: list[str] = field(default_factory=list[str])
    cpus: list[str] = field(default_factory=list[str])
    numa: list[str] = field(default_factory=list[str])

    def names(self, legend: bool) -> list[str]:
        nics = [f"NIC{i}" for i in range(len(self.nics))] if legend else self.nics
        return [*(f"GPU{i}" for i in range(self.num_gpus)), *nics]


def case(num_gpus: int, link: Callable[[int, int], str], *, nic: Callable[[int, int], str] | None = None, nics: int = 0,
         cpus_per_gpu: int = 4, numa: Callable[[int], int] = lambda i: 0) -> Case:  # fmt: skip
    """From a rule for pairs of GPUs and one for a GPU and an adapter; adapters are NODE to each other."""
    size = num_gpus + nics
    labels = [["X"] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            if i < num_gpus:
                label = link(j, i)
            elif j < num_gpus:
                label = nic(j, i - num_gpus) if nic is not None else "SYS"
            else:
                label = "NODE"
            labels[i][j] = labels[j][i] = label
    cpus = [f"{cpus_per_gpu * numa(i)}-{cpus_per_gpu * (numa(i) + 1) - 1}" for i in range(num_gpus)]
    return Case(
        num_gpus=num_gpus,
        labels=labels,
        nics=[f"mlx5_{i}" for i in range(nics)],
        cpus=cpus,
        numa=[str(numa(i)) for i in range(num_gpus)],
    )


def _half(i: int) -> int:
    return i // 4


_CUBE = {(0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
         (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2}  # fmt: skip


def cube_mesh() -> Case:
    """Eight V100: the hybrid cube mesh."""
    return case(8, lambda i, j: f"NV{_CUBE[i, j]}" if (i, j) in _CUBE else "SYS", numa=_half, cpus_per_gpu=20,
                nics=4, nic=lambda g, n: "PIX" if g // 2 == n else "PHB" if g // 4 == n // 2 else "SYS")  # fmt: skip


def hgx(nics: int = 8) -> Case:
    """Eight GPUs behind NVSwitch, an adapter each."""
    return case(8, lambda i, j: "NV18", numa=_half, nics=nics, cpus_per_gpu=56,
                nic=lambda g, n: "PIX" if g == n else "NODE" if _half(g) == _half(n) else "SYS")  # fmt: skip


def pcie_box(switches: int = 2) -> Case:
    """Eight GPUs on PCIe, so many behind each switch, two sockets."""
    return case(8, lambda i, j: "PIX" if i // switches == j // switches else "NODE" if _half(i) == _half(j) else "SYS",
                numa=_half, cpus_per_gpu=32)  # fmt: skip


def pairs(bridged: Sequence[tuple[int, int]], num_gpus: int = 4, label: str = "NV4") -> Case:
    """GPUs with bridges between some pairs, two sockets."""
    linked = {tuple(sorted(pair)) for pair in bridged}
    half = num_gpus // 2
    return case(num_gpus, lambda i, j: label if (i, j) in linked else "NODE" if i // half == j // half else "SYS",
                numa=lambda i: i // half)  # fmt: skip


def render(what: Case, *, form: str = "tabs", columns: int = 3, ansi: bool = False, legend: bool = True) -> str:
    """As nvidia-smi writes it: with tabs, or as a terminal shows those (`columns`); with so many columns at the end."""
    names = what.names(legend)
    tab_rows = ["\t" + "\t".join([*names, *COLUMNS[:columns]])]
    if ansi:
        tab_rows[0] = f"\x1b[4m{tab_rows[0]}\x1b[0m"
    for i, name in enumerate(names):
        cells = [" X " if label == "X" else label for label in what.labels[i]]
        tail = [what.cpus[i], what.numa[i], "\tN/A"] if i < what.num_gpus else ["", "", "\t"]
        tab_rows.append("\t".join([name, *cells, *tail[:columns]]))
    text = "\n".join(tab_rows)
    if form == "columns":
        text = "\n".join(_expand(line) for line in text.split("\n"))
    nics = "".join(f"  NIC{i}: {nic}\n" for i, nic in enumerate(what.nics))
    return text + "\n" + (LEGEND if legend else "") + (f"\nNIC Legend:\n\n{nics}" if legend and nics else "")


def _expand(line: str) -> str:
    """Tabs to the next multiple of 8; escapes take no room."""
    out, column, i = "", 0, 0
    while i < len(line):
        if line[i] == "\x1b":
            end = line.index("m", i) + 1
            out += line[i:end]
            i = end
            continue
        if line[i] == "\t":
            room = 8 - column % 8
            out, column = out + " " * room, column + room
        else:
            out, column = out + line[i], column + 1
        i += 1
    return out


def rocm(kinds: Callable[[int, int], str], num_gpus: int, numa: Callable[[int], int]) -> str:
    """As `rocm-smi --showtopo` writes it."""
    names = [f"GPU{i}" for i in range(num_gpus)]
    lines = [f"{'=' * 26} ROCm System Management Interface {'=' * 26}"]
    for title, cell in (
        ("Weight between two GPUs", lambda i, j: "15"),
        ("Hops between two GPUs", lambda i, j: "1"),
        ("Link Type between two GPUs", kinds),
    ):
        lines += [f"{'=' * 31} {title} {'=' * 31}", " " * 7 + "".join(name.ljust(13) for name in names)]
        for i in range(num_gpus):
            row = ["0" if i == j else cell(min(i, j), max(i, j)) for j in range(num_gpus)]
            lines.append(names[i].ljust(7) + "".join(each.ljust(13) for each in row))
        lines.append("")
    lines.append(f"{'=' * 39} Numa Nodes {'=' * 39}")
    lines += [f"GPU[{i}]\t\t: (Topology) Numa Node: {numa(i)}" for i in range(num_gpus)]
    return "\n".join(lines) + "\n"


XML = """<system version="1">
  <cpu numaid="0" affinity="00000000,0000ffff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="85">
    <pci busid="ffff:ff:01.0" class="0x060400" link_speed="8 GT/s" link_width="16">
      <pci busid="0000:10:1c.0" class="0x030200" link_speed="8 GT/s" link_width="16"/>
      <pci busid="0000:10:1d.0" class="0x030200" link_speed="8 GT/s" link_width="16"/>
      <pci busid="0000:10:1b.0" class="0x020000" link_speed="8 GT/s" link_width="16"/>
    </pci>
    <pci busid="0000:20:1c.0" class="0x030200" link_speed="8 GT/s" link_width="16"/>
  </cpu>
  <cpu numaid="1" affinity="ffff0000" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="85">
    <pci busid="0000:90:1c.0" class="0x030200" link_speed="8 GT/s" link_width="16"/>
  </cpu>
</system>
"""


def texts() -> list[str]:
    """One of each form, for damaging."""
    return [
        render(cube_mesh(), columns=1, legend=False),
        render(hgx(), form="columns", ansi=True),
        render(hgx(12), ansi=True),
        render(pcie_box(), columns=2),
        "srun: job 7 queued\n" + render(pairs([(0, 2), (1, 3)]), form="columns", columns=2),
        "| |GPU0|GPU1|NUMA Affinity|\n|-|-|-|-|\n|GPU0|X|NV4|0|\n|GPU1|NV4|X|0|\n",
        rocm(lambda i, j: "XGMI" if (i, j) != (0, 3) else "PCIE", 4, lambda i: i // 2),
        XML,
    ]


_PIECES = ("\t", "\n", " ", "GPU0", "NIC3", "X", "NV99999", "NV", "SYS", "\x1b[4m", "[0m", "|", "...", "N/A", "0-",
           "9" * 30, "é", "\x00", "<", "&x;", "CPU Affinity", "=", ",", "-1", "\r", "XGMI", "\u202e")  # fmt: skip


def mutants(number: int, seed: int) -> Iterator[str]:
    """So many damaged texts."""
    chance, whole = random.Random(seed), texts()
    for _ in range(number):
        text = chance.choice(whole)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            text = _damage(text, chance)
        yield text


def _damage(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text) + 1)
    end = min(len(text), at + chance.choice((1, 3, 10, 200)))
    lines = text.split("\n")
    line = chance.randrange(len(lines))
    return chance.choice(
        (
            lambda: text[:at],
            lambda: text[:at] + text[end:],
            lambda: text[:at] + chance.choice(_PIECES) + text[at:],
            lambda: text[:at] + chance.choice(_PIECES) + text[end:],
            lambda: text[:at] + text[at:end] * 3 + text[end:],
            lambda: "\n".join(lines[:line] + lines[line + 1 :]),
            lambda: "\n".join([*lines[:line], lines[chance.randrange(len(lines))], *lines[line:]]),
            lambda: text.replace("\t", "        "),
            lambda: text.replace("\n", chance.choice((" ", "\r\n", "\n\n")), chance.choice((1, 1000))),
        )
    )()


def survives(text: str) -> bool:
    """Whether a text is read; False if it is refused in one sentence. All that one may do with the value is done."""
    from stepladder.launch.topology.islands import islands_of
    from stepladder.launch.topology.oddities import oddities_of
    from stepladder.launch.topology.picture import draw

    try:
        topology = read_topology(text, "topo.txt")
    except TopologyError as error:
        said = str(error)
        assert "\n" not in said, said
        assert len(said) < 600, said
        assert said.isprintable(), said
        return False
    size = len(topology.gpus) + len(topology.nics)
    assert [len(row) for row in topology.links] == [size] * size
    assert sorted(gpu for island in islands_of(topology) for gpu in island.gpus) == list(range(len(topology.gpus)))
    for line in draw(topology, oddities_of(topology), colour=False):
        assert line.isprintable(), line
    return True
