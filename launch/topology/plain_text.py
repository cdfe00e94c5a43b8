"""Pasted text made plain: no escapes, no prompts' colours, no more of it than a machine can have."""

import re

from .errors import TopologyError

MAX_CHARACTERS = 2_000_000
MAX_LINES = 20_000
MAX_LINE = 40_000
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_RESIDUE = re.compile(r"\[(?:0|4|1|24)?m")
"""What is left of an escape when a web page has eaten its first character."""
_SRUN = re.compile(r"\s*([0-9]+): ?")


def plain_lines(text: str, source: str) -> list[str]:
    """The lines of a text. Raises: TopologyError if it is too long to be the output of a tool, or empty."""
    if len(text) > MAX_CHARACTERS:
        raise TopologyError(
            f"{source}: {len(text)} characters are too many for the output of one tool (limit {MAX_CHARACTERS}); "
            f"give the output of `nvidia-smi topo -m` alone"
        )
    plain = _RESIDUE.sub("", _ESCAPE.sub("", text.lstrip("\ufeff"))).replace("\r\n", "\n").replace("\r", "\n")
    plain = plain.replace("\u00a0", " ").replace("\u2002", " ").replace("\u2003", " ")
    lines = [line.rstrip() for line in plain.split("\n")]
    if not any(lines):
        raise TopologyError(f"{source}: the text is empty; give the output of `nvidia-smi topo -m`")
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE for line in lines):
        raise TopologyError(
            f"{source}: more than {MAX_LINES} lines, or one of more than {MAX_LINE} characters; "
            f"give the output of `nvidia-smi topo -m` alone"
        )
    return _without_task_numbers(lines)


def _without_task_numbers(lines: list[str]) -> list[str]:
    """Lines without the `3: ` that `srun --label` puts before each, and of one task only."""
    header = next((line for line in lines if "GPU0" in line), "")
    match = _SRUN.match(header)
    if match is None:
        return lines
    own = re.compile(rf"\s*{match[1]}: ?")
    return [line[found.end() :] for line in lines if (found := own.match(line))]
