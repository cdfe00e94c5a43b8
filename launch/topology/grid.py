"""The table inside pasted text: where its header is, whose cells each row has, what follows them.

A row's labels are its first words, as many as the header has devices; none is ever shifted to make a row fit. The
columns after them are told apart by their tabs, or in text without tabs by where they begin, since any can be empty.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import TopologyError, shown
from .foreign import what_it_is

MAX_DEVICES = 256
COLUMNS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_GPU = re.compile(r"GPU(\d{1,3})", re.ASCII)
_DEVICE = re.compile(r"(?!CPU$|NUMA$|GPU$|Node$|ID$|Affinity$)[A-Za-z][A-Za-z0-9_.\-:]*\d[A-Za-z0-9_.\-:]*", re.ASCII)
_LABEL = re.compile(r"X|NV\d{1,2}|PSB|PIX|PXB|PHB|NODE|SYS|SOC", re.ASCII)
_GLUED = re.compile(r"(?:NV\d{1,3}|PSB|PIX|PXB|PHB|NODE|SYS|SOC|X){2,}.*", re.ASCII)
_QUOTE = re.compile(r"\s*(?:[#>*]+\s+)+")
RAW = "give the raw output of `nvidia-smi topo -m`, for example `nvidia-smi topo -m > topo.txt`"


@dataclass(kw_only=True)
class Row:
    """A device's line: its labels as words, and what stood in the columns after them."""

    labels: list[str]
    tail: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(kw_only=True)
class Grid:
    """A matrix as words."""

    devices: list[str]
    rows: dict[str, Row]
    after: list[str]
    """The lines that follow: legends."""
    notes: list[str]

    @property
    def num_gpus(self) -> int:
        """GPUs come first."""
        return sum(_GPU.fullmatch(name) is not None for name in self.devices)


@dataclass(kw_only=True)
class _Header:
    line: int
    devices: list[str]
    columns: list[str]
    starts: list[int]
    """Where each column begins, counted from where the first device does."""


def read_grid(lines: Sequence[str], source: str) -> Grid:
    """The first matrix of a text. Raises: TopologyError if there is none, or a GPU's row is not whole."""
    header = _find_header(lines)
    if header is None:
        said = what_it_is(lines)
        raise TopologyError(
            f"{source}: {said}" if said else f"{source}: no line with GPU0, GPU1, ... begins a matrix; {RAW}"
        )
    _check_header(header, source)
    grid = Grid(devices=header.devices, rows={}, after=[], notes=[])
    again = ""
    for number, quoted in enumerate(lines[header.line + 1 :], start=header.line + 2):
        line = _QUOTE.sub("", quoted)
        name = line.split(maxsplit=1)[0] if line else ""
        if name in grid.rows:
            again = f"line {number}: {name} comes again"
            grid.notes.append(f"{again}; only the first matrix is read")
            break
        where = f"{source}, line {number}"
        if name == header.devices[0] and line.split()[1:2] == header.devices[1:2] and len(header.devices) > 1:
            again = f"line {number}: a second header begins"
            grid.notes.append(f"{again}; only the first matrix is read")
            break
        if name in header.devices:
            _read_row(grid, header, name, line, where)
        elif any(name.startswith(each) and _LABEL.match(name[len(each) :]) for each in header.devices):
            raise TopologyError(f"{where} = {shown(name)}: the cells run into each other; {RAW}")
        else:
            grid.after.append(line)
    missing = [name for name in grid.devices[: grid.num_gpus] if name not in grid.rows]
    if missing:
        found = again or ("the text ends before its row" if grid.rows else "there are no rows below the header")
        said = None if grid.rows else what_it_is(lines)
        raise TopologyError(f"{source}: {said}" if said else f"{source}: {missing[0]} has no row: {found}; {RAW}")
    cut = [name for name in grid.devices if name not in grid.rows]
    if cut:
        grid.notes.append(
            f"the text ends before the row of {cut[0]}: how adapters are connected with each other is not known for all"
        )
    return grid


def _find_header(lines: Sequence[str]) -> _Header | None:
    for number, line in enumerate(lines):
        start = re.search(r"(?<![\w.])GPU0(?=\s|$)", line)
        if start is None:
            continue
        devices: list[str] = []
        end = start.start()
        for word in re.finditer(r"\S+", line[start.start() :]):
            again = word[0] in devices and len(devices) < 2  # further on, a name that comes twice is told of
            if again or _DEVICE.fullmatch(word[0]) is None or _LABEL.fullmatch(word[0]):
                if word[0] == "...":
                    devices.append(word[0])
                break
            devices.append(word[0])
            end = start.start() + word.end()
        rest = line[end:]
        if devices[-1:] == ["..."] or (len(devices) == 1 and not re.match(r"\s+(CPU|NUMA|Node|GPU NUMA)\b|\s*$", rest)):
            if "..." in line:
                return _Header(line=number, devices=[*devices, "..."], columns=[], starts=[])
            continue
        found = [(match.start(), title) for title in COLUMNS if (match := re.search(title, rest))]
        columns = [title for _, title in sorted(found)]
        starts = [end + where - start.start() for where, _ in sorted(found)]
        return _Header(line=number, devices=devices, columns=columns, starts=starts)
    return None


def _check_header(header: _Header, source: str) -> None:
    where = f"{source}, line {header.line + 1}"
    if "..." in header.devices:
        raise TopologyError(f"{where}: the matrix is abbreviated with `...`; {RAW}")
    if len(header.devices) > MAX_DEVICES:
        raise TopologyError(
            f"{where}: {len(header.devices)} devices are more than the {MAX_DEVICES} of any machine; {RAW}"
        )
    twice = next((name for i, name in enumerate(header.devices) if name in header.devices[:i]), None)
    if twice is not None:
        raise TopologyError(f"{where}: two columns are named {shown(twice)}, so rows cannot be told apart; {RAW}")
    indices = [int(match[1]) for name in header.devices if (match := _GPU.fullmatch(name))]
    leading = sum(1 for name in header.devices[: len(indices)] if _GPU.fullmatch(name))
    if indices != list(range(len(indices))) or leading != len(indices):
        raise TopologyError(f"{where}: the GPUs are not GPU0, GPU1, ... in this order, a part is missing; {RAW}")


def _read_row(grid: Grid, header: _Header, name: str, line: str, where: str) -> None:
    words = list(re.finditer(r"\S+", line))[1:]
    labels = [word[0] for word in words[: len(header.devices)]]
    wrong = next((i for i, label in enumerate(labels) if _LABEL.fullmatch(label) is None), None)
    is_gpu = _GPU.fullmatch(name) is not None
    if wrong is not None or len(labels) < len(header.devices):
        if not is_gpu:  # what adapters are to each other decides nothing
            grid.notes.append(f"{name}: its row is not whole and is left out")
            grid.rows[name] = Row(labels=[])
            return
        if wrong is None:
            raise TopologyError(
                f"{where}: {name} has {len(labels)} cells, but the header has {len(header.devices)} devices: cut off? "
                f"{RAW}"
            )
        column, value = header.devices[wrong], labels[wrong]
        if value == "...":
            raise TopologyError(f"{where}: the row of {name} is abbreviated with `...`; {RAW}")
        cell = f"{where}: {name} to {column} = {shown(value)}"
        if said := what_it_is([line]):
            raise TopologyError(f"{cell}: {said}")
        glued = _GLUED.fullmatch(value) is not None
        why = "the cells run into each other" if glued else "no label of nvidia-smi (X, NV#, PIX, PXB, PHB, NODE, SYS)"
        raise TopologyError(f"{cell}: {why}; {RAW}")
    grid.rows[name] = Row(labels=labels)
    if is_gpu:
        after = words[len(labels) :]
        first = words[0].start() if words else 0
        grid.rows[name].tail = _tail(header, line, after, first, name, grid.notes)


def _tail(
    header: _Header, line: str, words: list[re.Match[str]], first_cell: int, name: str, notes: list[str]
) -> dict[str, str]:
    """What stands below the titles of the last columns."""
    texts = [word[0] for word in words]
    if "\t" in line:
        cells = [cell.strip() for cell in line.strip(" ").lstrip("\t").split("\t")]
        if len(cells) > len(header.devices) and all(
            _LABEL.fullmatch(cell) for cell in cells[1 : len(header.devices) + 1]
        ):
            texts = cells[len(header.devices) + 1 :]
            if len(texts) == 4 and not texts[2]:  # nvidia-smi writes two tabs before GPU NUMA ID
                del texts[2]
            return dict(zip(header.columns, texts, strict=False))
    if len(texts) == len(header.columns) + 1 == 2 and re.fullmatch(r"[0-9]+", texts[1]):
        note = "a number after CPU Affinity has no title and is read as NUMA Affinity"
        if note not in notes:
            notes.append(note)
        return {"CPU Affinity": texts[0], "NUMA Affinity": texts[1]}
    if len(texts) >= len(header.columns):
        return dict(zip(header.columns, texts, strict=False))
    return _short_tail(header, texts, words, first_cell, name, notes)


def _short_tail(
    header: _Header, texts: list[str], words: list[re.Match[str]], first_cell: int, name: str, notes: list[str]
) -> dict[str, str]:
    """A tail with fewer words than titles: the first column is empty unless a word begins where it does."""
    columns = header.columns
    if not texts:
        return {}
    # A cell's X stands in the middle, one place to the right of where cells begin.
    offset = words[0].start() - first_cell
    at_first = bool(header.starts) and abs(offset - header.starts[0]) <= 2
    if not at_first:
        return {columns[0]: ""} | dict(zip(columns[1:], texts, strict=False)) if columns else {}
    if len(texts) == 2 and len(columns) == 3:
        notes.append(f"{name}: CPU and NUMA affinity run into each other ({shown(texts[0])}) and are left out")
        return {columns[2]: texts[1]}
    return dict(zip(columns, texts, strict=False))
