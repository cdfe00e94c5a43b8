"""A user's own Python file: loaded because the recipe names it, and blamed by line when it fails.

Such a file is a program, run with the user's rights, like any script. Only a recipe's `file` keys lead to one: no data
file and no checkpoint can name one.
"""

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

_PREFIX = "stepladder_own_file_"
FAILURES = (Exception, SystemExit)
"""What a user's code may raise and a run tells: to leave in the middle, with whatever code, is a failure too."""


class OwnFileError(Exception):
    """A user's file cannot be used; the text is one sentence with file and line."""


def problem_with(file: str) -> str | None:
    """Why a file cannot be a Python file, found without running it; None if nothing speaks against it."""
    path = Path(file)
    try:
        compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        return f"file = {file!r}: cannot be read ({error.strerror}); it is looked for from {Path.cwd()}"
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"file = {file!r}: line {line}: {getattr(error, 'msg', error)}; correct it there"
    return None


def load(file: str) -> ModuleType:
    """The file as a module, run once in a process; beside it lies what it may import. Raises: OwnFileError."""
    path = Path(file).resolve()
    name = _PREFIX + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OwnFileError(f"{file}: is no Python file; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except FAILURES as error:
        del sys.modules[name]
        raise OwnFileError(told(error, path) or f"{file}: {_kind(error)}") from error
    return module


def call(file: str, function: str, *arguments: Any) -> Any:
    """What a function of the file answers. Raises: OwnFileError if there is none, or it fails."""
    found = getattr(load(file), function, None)
    if not callable(found):
        raise OwnFileError(f"{file}: has no function {function}(); define it there")
    try:
        return found(*arguments)
    except FAILURES as error:
        raise OwnFileError(told(error, Path(file).resolve()) or f"{file}: {function}(): {_kind(error)}") from error


def told(error: BaseException, path: Path | None = None) -> str | None:
    """Where in a user's file an error arose, and what it says; None if none of its frames is in one.

    `path` is a file that may not be loaded yet; every file that is loaded counts.
    """
    files = {getattr(module, "__file__", "") or "" for name, module in sys.modules.items() if name.startswith(_PREFIX)}
    files |= {str(path)} if path else set()
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename in files]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.filename}, line {last.lineno}, in {last.name.strip('<>')}: {_kind(error)}"


def _kind(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, SystemExit):
        return f"ends the program, with exit code {error.code!r}, in the middle of a run; return, or raise an error"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
