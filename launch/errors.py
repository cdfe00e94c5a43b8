"""What a user can have got wrong, and the codes with which the command ends."""

import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from ..profiling.trace.spelling import printable


class ExitCode(IntEnum):
    """Exit codes of `stepladder`, the same however the workers were started by it."""

    DONE = 0
    FAILED = 1
    """The training failed; the reason stands above."""
    USAGE = 2
    """The recipe, the command or the data cannot be used; nothing was written."""
    CHECKPOINT = 66
    """A checkpoint cannot be read or written."""
    INTERRUPTED = 130
    """Ctrl-C: stopped after a whole step."""
    TERMINATED = 143
    """SIGTERM: stopped after a whole step."""


class UsageError(Exception):
    """What a user wrote cannot be used. Holds every problem, each one sentence."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RecipeError(UsageError):
    """A recipe has mistakes. What of it could be read is kept, so that the rest can be looked through as well."""

    def __init__(self, *problems: str, draft: Any = None, doubtful: frozenset[str] = frozenset()) -> None:
        super().__init__(*problems)
        self.draft = draft
        """The recipe with defaults in place of what was refused; None if nothing can be made of it."""
        self.doubtful = doubtful
        """Keys whose value in the draft is not what the user meant."""


def complain(problems: Iterable[str]) -> None:
    """Say what is wrong, a line each."""
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
