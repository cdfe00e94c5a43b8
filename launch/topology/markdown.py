"""A matrix that somebody made a Markdown table of, brought back into nvidia-smi's form."""

import re
from collections.abc import Sequence

from .grid import COLUMNS


def unfold_table(lines: Sequence[str]) -> Sequence[str]:
    """Lines with tabs in place of bars, affinity last; the same lines if there is no such table."""
    rows = [[cell.strip(" *`") for cell in line.strip().strip("|").split("|")] for line in lines if line.count("|") > 2]
    header = next((row for row in rows if "GPU0" in row and row[0] != "GPU0"), None)
    if header is None or any("\t" in line and "GPU0" in line for line in lines):
        return lines
    names = header.index("") if "" in header else 0
    devices = [i for i, cell in enumerate(header) if i != names and cell and cell not in COLUMNS]
    titles = [header.index(title) for title in COLUMNS if title in header]
    body = [row for row in rows if len(row) == len(header) and not all(re.fullmatch(r":?-*:?", cell) for cell in row)]
    unfolded = ["\t" + "\t".join(header[i] for i in (*devices, *titles))]
    for row in body[body.index(header) + 1 :]:
        unfolded.append("\t".join([row[names], *(row[i] for i in devices), *(row[i] for i in titles)]))
    return unfolded
