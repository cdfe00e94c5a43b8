"""`python -m stepladder`: the same command as the console script, and what torchrun starts."""

import sys
from pathlib import Path

# `python -m` puts the working directory first on the path. When that is this very checkout, its folders (`profiling`,
# `trainer`, ...) would answer to names that are not theirs; Python 3.15 has a standard-library `profiling`.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

from stepladder.launch.cli import main  # noqa: E402  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    sys.exit(main())
