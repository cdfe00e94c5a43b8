"""By which name this machine goes."""

import re
import socket
from collections.abc import Mapping

_DIGITS = re.compile(r"(\d+)")
HOST_VARIABLE = "STEPLADDER_HOST"
"""Names the machine where its host name does not: in a pod, which is named anew each time, set it to the node's."""


def host_name(environment: Mapping[str, str]) -> str:
    """The name, without its domain."""
    return environment.get(HOST_VARIABLE) or socket.gethostname().partition(".")[0] or "localhost"


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """For sorting names as people count: node2 before node10."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in _DIGITS.split(name) if part)
