"""Reading `rocm-smi --showtopo`: hops, kinds of link and NUMA nodes of AMD GPUs."""

import re
from collections.abc import Sequence

from .assemble import SELF, Label, assemble
from .errors import TopologyError, shown
from .grid import MAX_DEVICES
from .value import Gpu, LinkKind, Topology

_SECTION = re.compile(r"\s*=+ (.*?) =+\s*")
_NUMA = re.compile(r"\s*GPU\[(\d{1,3})\]\s*: \(Topology\) Numa Node: (-?\d{1,5})", re.ASCII)
_RAW = "give the whole output of `rocm-smi --showtopo`"


def looks_like_rocm(lines: Sequence[str]) -> bool:
    """Whether a text is this tool's."""
    return any("Link Type between two GPUs" in line or "ROCm System Management" in line for line in lines)


def read_rocm(lines: Sequence[str], source: str) -> Topology:
    """The topology in the output. Raises: TopologyError, one sentence."""
    kinds = _table(lines, "Link Type between two GPUs", source)
    if not kinds:
        raise TopologyError(f"{source}: ROCm's output has no table of link types; {_RAW}")
    size = len(kinds)
    hops = _table(lines, "Hops between two GPUs", source)
    if hops and len(hops) != size:
        raise TopologyError(
            f"{source}: {len(hops)} GPUs in the table of hops, but {size} in that of link types; {_RAW}"
        )
    numa = {int(match[1]): int(match[2]) for line in lines if (match := _NUMA.match(line))}
    labels = [[SELF if i == j else _label(kinds[i][j], numa, i, j, source) for j in range(size)] for i in range(size)]
    for i in range(size):
        for j in range(i):
            if labels[i][j] != labels[j][i]:
                raise TopologyError(
                    f"{source}: GPU{i} to GPU{j} = {labels[i][j]}, but GPU{j} to GPU{i} = {labels[j][i]}; {_RAW}"
                )
    gpus = [Gpu(index=i, numa_nodes=(numa[i],) if numa.get(i, -1) >= 0 else None) for i in range(size)]
    far = {
        f"GPU{i}-GPU{j}"
        for i, row in enumerate(hops)
        for j, cell in enumerate(row[:i])
        if re.fullmatch(r"[0-9]{1,4}", cell) and int(cell) > 2
    }
    notes = [f"{', '.join(sorted(far))}: more than two hops"] if far else []
    return assemble(source=source, gpus=gpus, nics=(), labels=labels, notes=notes)


def _label(word: str, numa: dict[int, int], i: int, j: int, source: str) -> Label:
    if word == "XGMI":
        return Label(kind=LinkKind.XGMI)
    if word == "PCIE":  # ROCm does not say what of PCIe lies between
        near = numa.get(i, -1)
        return Label(kind=LinkKind.NODE if near >= 0 and near == numa.get(j, -2) else LinkKind.SYS)
    raise TopologyError(f"{source}: GPU{i} to GPU{j} = {shown(word)}: no link type of ROCm (XGMI, PCIE); {_RAW}")


def _table(lines: Sequence[str], title: str, source: str) -> list[list[str]]:
    """The cells of a section, square; empty if there is no such section."""
    start = next((i for i, line in enumerate(lines) if (match := _SECTION.fullmatch(line)) and match[1] == title), None)
    if start is None:
        return []
    header: list[str] = []
    rows: list[list[str]] = []
    for line in lines[start + 1 :]:
        words = line.split()
        if _SECTION.fullmatch(line) or (rows and not words):
            break
        if not words:
            continue
        if not header:
            header = words
            if header != [f"GPU{i}" for i in range(len(header))] or len(header) > MAX_DEVICES:
                raise TopologyError(f"{source}: `{title}` does not begin with GPU0 GPU1 ...; {_RAW}")
        elif words[0] != f"GPU{len(rows)}" or len(words) != len(header) + 1:
            raise TopologyError(f"{source}: `{title}`, {shown(words[0])}: the row is out of order or not whole; {_RAW}")
        else:
            rows.append(words[1:])
    if len(rows) != len(header) or not rows:
        raise TopologyError(f"{source}: `{title}` has {len(rows)} rows of {len(header)}: cut off? {_RAW}")
    return rows
