"""By which name this machine goes."""

import re
import socket
from collections.abc import Mapping

_DIGITS = re.compile(r"([0-9]+)")
HOST_VARIABLE = "STEPLADDER_HOST"
"""Names the machine where its host name does not: in a pod, which is named anew each time, set it to the node's."""


def host_name(environment: Mapping[str, str]) -> str:
    """The name, without its domain."""
    return environment.get(HOST_VARIABLE) or socket.gethostname().partition(".")[0] or "localhost"


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """For sorting names as people count: node2 before node10. Two names never sort as one, node1 and node01 neither."""
    return (*(_part(part) for part in _DIGITS.split(name) if part), (-1, 0, name))


def _part(text: str) -> tuple[int, int, str]:
    if text[0] not in "0123456789":
        return 1, 0, text
    digits = text.lstrip("0")
    return 0, len(digits), digits  # as numbers compare, of however many digits
