"""Reading `nvidia-smi topo -m` as people have it: of any driver since 2014, from a file, a log or a web page.

    topology = read_topology(Path("topo.txt").read_text(), "topo.txt")

Also read: `rocm-smi --showtopo`, a topology that NCCL dumped or a cloud ships (XML), a matrix as a Markdown table, and
what `stepladder topo --json` has written.
Models are taken from the lines of `nvidia-smi -L`, adapters' names from the legend, if the text has them. Texts are
untrusted: sizes are limited, nothing is guessed, and what cannot be understood ends in one sentence.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from .assemble import UNKNOWN, Label, assemble
from .cpu_list import parse_numbers
from .errors import TopologyError, shown
from .grid import RAW, Grid, Row, read_grid
from .markdown import unfold_table
from .nccl_xml import looks_like_xml, read_nccl_xml
from .plain_text import MAX_CHARACTERS, plain_lines
from .rocm import looks_like_rocm, read_rocm
from .saved import looks_saved, read_saved
from .value import Gpu, LinkKind, Nic, Topology

_LEGEND = re.compile(r"\s*(NIC\d{1,3}): (\S+)", re.ASCII)
_MODEL = re.compile(r"\s*GPU (\d{1,3}): (.{1,100}?) \(UUID: ([\w-]{1,64})\)", re.ASCII)
_PCI_ONLY = re.compile(r"topo +(?:-mp|--matrix_pci)\b")


def read_topology(text: str, source: str) -> Topology:
    """The topology in a text; `source` is named in errors. Raises: TopologyError, one sentence."""
    text = text.lstrip("\ufeff")  # a byte order mark, as editors on Windows leave it
    if looks_saved(text):
        return read_saved(text, source)
    lines = plain_lines(text, source)
    if looks_like_xml(lines):
        return read_nccl_xml(lines, source)
    if looks_like_rocm(lines):
        return read_rocm(lines, source)
    return _from_grid(read_grid(unfold_table(lines), source), lines, source)


def read_file(path: Path) -> Topology:
    """The topology in a file. Raises: TopologyError, also for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise TopologyError(
            f"{path}: cannot be read: {error.strerror}; give a file with `nvidia-smi topo -m`"
        ) from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # a redirection of PowerShell
    return read_topology(content.decode(encoding, errors="replace"), str(path))


def _from_grid(grid: Grid, lines: Sequence[str], source: str) -> Topology:
    labels = _square(grid, source)
    notes = list(grid.notes)
    models = {int(match[1]): (match[2], match[3]) for line in lines if (match := _MODEL.match(line))}
    gpus = [_gpu(i, grid.rows[name], models.get(i), notes) for i, name in enumerate(grid.devices[: grid.num_gpus])]
    named = {match[1]: match[2] for line in grid.after if (match := _LEGEND.fullmatch(line))}
    nics = [Nic(name=name, device=shown(named.get(name, name))) for name in grid.devices[grid.num_gpus :]]
    fast = any(label.kind is LinkKind.NVLINK for row in labels for label in row)
    return assemble(
        source=source,
        gpus=gpus,
        nics=nics,
        labels=labels,
        pci_only=not fast and any(_PCI_ONLY.search(line) for line in lines),
        notes=notes,
    )


def _square(grid: Grid, source: str) -> list[list[Label]]:
    """Labels of all pairs, from either row if one is missing. Raises: TopologyError if rows disagree."""
    names = grid.devices
    labels = [[UNKNOWN] * len(names) for _ in names]
    for i, name in enumerate(names):
        for j, word in enumerate(grid.rows[name].labels if name in grid.rows else ()):
            labels[i][j] = _label(word)
            if (word == "X") != (i == j):
                raise TopologyError(
                    f"{source}: {name} to {names[j]} = {word}: only a device to itself is X, so cells are missing or "
                    f"moved; {RAW}"
                )
    for i, name in enumerate(names):
        labels[i][i] = Label(kind=LinkKind.SELF)
        for j in range(i):
            here, there = labels[i][j], labels[j][i]
            if here is UNKNOWN or there is UNKNOWN:
                labels[i][j] = labels[j][i] = here if there is UNKNOWN else there
            elif here != there:
                raise TopologyError(
                    f"{source}: {name} to {names[j]} = {here}, but {names[j]} to {name} = {there}: cells are missing "
                    f"or moved; {RAW}"
                )
    return labels


def _label(word: str) -> Label:
    if word.startswith("NV"):
        return Label(kind=LinkKind.NVLINK, num_nvlinks=int(word[2:]))
    return Label(kind=LinkKind.SYS if word == "SOC" else LinkKind(word))  # SOC: its name until 2016


def _gpu(index: int, row: Row, model: tuple[str, str] | None, notes: list[str]) -> Gpu:
    cpu_text, numa_text = row.tail.get("CPU Affinity"), row.tail.get("NUMA Affinity")
    cpus = None if cpu_text in (None, "N/A") else parse_numbers(cpu_text or "")
    numa = parse_numbers(numa_text) if numa_text and numa_text != "N/A" else None
    memory = row.tail.get("GPU NUMA ID", "")
    for title, text, read in (("CPU Affinity", cpu_text, cpus), ("NUMA Affinity", numa_text, numa)):
        if text not in (None, "", "N/A") and read is None:
            notes.append(f"GPU{index}: {title} = {shown(text)} is no list of numbers and is left out")
    return Gpu(
        index=index,
        model=shown(model[0]) if model else None,
        uuid=model[1] if model else None,
        cpus=cpus,
        numa_nodes=numa or None,
        memory_numa_node=int(memory) if re.fullmatch(r"[0-9]{1,5}", memory) else None,
    )
